mod element;
mod engine;
mod error;
mod layer;
mod memory;
mod shape;

pub use element::{DType, Element, Plain, Real};
pub use engine::{
    Activation, Backward, Cpu, Engine, ForwardEval, ForwardTrain, Input, MergeStats, Op, Reference,
    Request, Running, Saved, Stats,
};
pub use error::{Error, Result};
pub use layer::{
    BatchNorm, Config, LoadReport, Mismatch, Momentum, Param, RunningStats, StateDict, Strict,
};
pub use memory::{Host, Memory};
pub use shape::Shape;
