//! A drop-in for [`candle_nn::BatchNorm`]: the same constructors, accessors and names in files, but one fused
//! operation forward and one backward, by the engines of [`batchnorm`] instead of a dozen tensor operations.
//!
//! Where a program says `use candle_nn::{BatchNorm, BatchNormConfig, batch_norm}`, it says `batchnorm_candle`
//! instead:
//!
//! ```
//! use batchnorm_candle::{Activation, batch_norm};
//! use candle_core::{DType, Device, Result, Tensor};
//! use candle_nn::{ModuleT, Optimizer, SGD, VarBuilder, VarMap};
//!
//! # fn main() -> Result<()> {
//! let vars = VarMap::new();
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let bn1 = batch_norm(64, 1e-5, vb.pp("bn1"))?; // as candle_nn's
//! let bn2 = batch_norm(64, 1e-5, vb.pp("bn2"))?.with_activation(Activation::Relu);
//!
//! let x = Tensor::randn(0f32, 1.0, (8, 64, 14, 14), &Device::Cpu)?;
//! let y = bn1.forward_t(&x, true)?; // moves the running statistics
//! let y = bn2.forward_add(&y, &x, true)?; // relu(norm(y) + x) in one pass
//! SGD::new(vars.all_vars(), 0.1)?.backward_step(&y.sqr()?.mean_all()?)?;
//! # Ok(())
//! # }
//! ```
//!
//! What differs from candle's layer:
//!
//! | | [`candle_nn::BatchNorm`] | [`BatchNorm`] |
//! |---|---|---|
//! | f16, bf16 inputs | parameters of the same type; statistics in f32 | f32 parameters and statistics, whatever the `VarBuilder`'s type; sums in f64 where it counts |
//! | channels-last, sliced inputs | copied | read as they lie, where the memory is dense; the output lies the same |
//! | activation, residual | operations of their own | in the same pass: [`with_activation`](BatchNorm::with_activation), [`forward_add`](BatchNorm::forward_add) |
//! | statistics frozen while the rest trains | `forward_t(x, false)` | the same, or [`frozen`](BatchNorm::frozen) |
//! | one value per channel in training | running_var becomes NaN | an error, nothing changes |
//! | `remove_mean: false` | not centered | an error: there is no such normalization here |
//! | gradients of the output by the gradients (second order) | through the composed operations | none, as for all of candle's custom operations |
//!
//! Memory is candle's: an operation reads and writes candle's buffers and allocates the output alone; on CUDA
//! it runs on candle's stream. What a forward leaves for its backward (a few values per channel, one bit per
//! value behind a ReLU) is used again by later steps.
//!
//! Files are those of candle's layer, in both directions, for f32 and f64.
mod layer;
mod op;
mod order;
mod place;
mod pool;

pub use batchnorm::Activation;
pub use candle_nn::BatchNormConfig;
pub use layer::{BatchNorm, batch_norm};
