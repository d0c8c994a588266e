// Its examples are tested where there is what all of them use.
#![cfg_attr(any(not(doctest), feature = "cudnn"), doc = include_str!("../README.md"))]
#![cfg_attr(docsrs, feature(doc_cfg))]
// The map. Who stands higher may use who stands lower, never the other way round.

mod layer; // policy: configuration, parameters, running statistics, modes, state dicts

mod engine; // arithmetic: the trait and its arguments; `Reference` defines, the others are fast

mod input_spec; // which dims every input has
mod memory; // where numbers live: `Host`, `Device`
mod shape; // any rank and layout -> (outer, channels, inner)

#[doc(hidden)]
pub mod dispatch; // from a dtype to its type: the macro, which is public, and what it expands to
mod element; // f16, bf16, f32, f64: what is stored, and what sums are made in
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod library; // vendors' shared libraries, looked for before they are called

mod error; // what went wrong, both sides shown

#[doc = include_str!("docs/conventions.md")]
pub mod conventions {}

#[doc = include_str!("docs/integrations.md")]
pub mod integrations {}

#[doc = include_str!("docs/scaling.md")]
pub mod scaling {}

#[cfg(feature = "cuda")]
pub use cudarc; // its streams and slices are what `Cuda` works on

pub use element::{DType, Element, Plain, Real};
#[cfg(feature = "nccl")]
pub use engine::Nccl;
pub use engine::{
    Activation, Algorithm, AllMasked, Argument, Arguments, Backward, Collective, Constrain,
    Constraint, Cpu, Derivative, DoubleBackward, EmptyBatch, Engine, EpsRule, ForwardEval,
    ForwardTrain, GivenStatistics, Input, LayerNormBackward, LayerNormForward, LayerNormSaved,
    Mask, MergeStats, NonFinite, OneValue, Op, OptimizerStep, Rank, Reference, Regularize,
    Regularizer, RenormClip, RenormState, Renormalize, RenormalizeBackward, Request, Role, Running,
    RunningRules, Saved, SimdLevel, Statistics, Stats, Synced, Threads, Variance, Visitor, Words,
};
#[cfg(feature = "cudnn")]
pub use engine::{Choice, Cudnn, Gpu, Rule};
#[cfg(feature = "cuda")]
pub use engine::{Costs, Cuda, Family, Tuning};
pub use error::{Cause, Error, Result};
pub use input_spec::InputSpec;
pub use layer::{
    BatchNorm, Config, Folded, Ghost, GhostRemainder, GhostRows, GhostUpdate, Initializer, Keras1,
    Keras1Std, LayerNorm, LayerNormConfig, LazyBatchNorm, Momentum, Optimizer, OptimizerState,
    Order, Param, ParamState, Part, PartGradients, Population, PopulationRule,
    PopulationStatistics, Progress, Renorm, RenormStats, RunningStats, SavedParts, ScaleShift,
    Slot, WeightLayout,
};
#[cfg(feature = "safetensors")]
pub use layer::{LoadReport, Mismatch, StateDict, Strict};
#[cfg(feature = "cuda")]
pub use memory::{Device, RawView, RawViewMut};
pub use memory::{Host, Memory};
pub use shape::{MemoryOrder, Shape};
