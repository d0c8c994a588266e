//! A drop-in for burn's `nn::BatchNorm` on its CPU backend Flex: the same configuration, fields and records, but one
//! fused operation forward and one backward, by the CPU engine of [`batchnorm`] instead of a dozen tensor
//! operations.
//!
//! Where a program says `use burn::nn::{BatchNorm, BatchNormConfig}`, it says `batchnorm_burn` instead:
//!
//! ```
//! use batchnorm_burn::{Activation, BatchNorm, BatchNormConfig};
//! use burn::module::Module;
//! use burn::optim::{GradientsParams, SgdConfig};
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! #[derive(Module, Debug)]
//! struct Block {
//!     bn1: BatchNorm, // as burn's
//!     bn2: BatchNorm,
//! }
//!
//! let device = Device::flex().autodiff();
//! let norm = BatchNormConfig::new(64).with_epsilon(1e-5);
//! let bn2 = norm.init(&device).with_activation(Activation::Relu);
//! let block = Block { bn1: norm.init(&device), bn2 };
//!
//! let x = Tensor::<4>::random([8, 64, 14, 14], Distribution::Default, &device);
//! let y = block.bn1.forward(x.clone()); // moves the running statistics
//! let y = block.bn2.forward_add(y, x); // relu(norm(y) + x) in one pass
//! let grads = GradientsParams::from_grads(y.powf_scalar(2.0).mean().backward(), &block);
//! let block = SgdConfig::new().init().step(0.1, block, grads);
//! # assert_eq!(block.num_params(), 2 * 4 * 64);
//! ```
//!
//! It trains where burn's layer does: on an input of a device with autodiff, unless `freeze` or `valid` of burn's
//! modules have said otherwise.
//!
//! What differs from burn's layer:
//!
//! | | burn's `nn::BatchNorm` | [`BatchNorm`] |
//! |---|---|---|
//! | backends | all | Flex, with autodiff or without; an error that names the device elsewhere |
//! | a batch's variance in the running one | over m values: biased | the same; [`with_variance`](BatchNorm::with_variance) for PyTorch's, over m - 1 |
//! | f16, bf16 inputs | sums and parameters of the same type | sums in f32, and f64 where it counts; parameters of any type |
//! | channels-last, sliced inputs | copied or walked by strides in each operation | read as they lie, where the memory is dense; the output lies the same |
//! | activation, residual | operations of their own | in the same pass: [`with_activation`](BatchNorm::with_activation), [`forward_add`](BatchNorm::forward_add) |
//! | statistics frozen while the rest trains | `training` disabled | the same |
//! | one value per channel in training | a batch of variance 0 | the same, or PyTorch's error: [`with_one_value`](BatchNorm::with_one_value) |
//! | a batch without values | statistics become NaN | statistics stay |
//! | bad input | a panic | the same, or an [`Error`]: [`try_forward`](BatchNorm::try_forward) |
//!
//! Memory is burn's: an operation reads and writes Flex's buffers. A forward allocates the output alone, and without
//! a graph not even that if x is nobody else's; a backward writes the gradient of x over that of y if this is
//! nobody else's, as it is within a network. What a forward leaves for its backward (a few values per channel, one
//! bit per value behind a ReLU with a residual) is used again by later steps. Under gradient checkpointing x is
//! computed again for the backward, as for burn's layer.
//!
//! Records are those of burn's layer, in both directions, and so is the file of a [`BatchNormConfig`]. Activation and
//! variance are the program's to say: a record holds neither.
extern crate burn_core as burn;

mod config;
mod error;
mod flex;
mod layer;
mod op;
mod order;
mod pool;

pub use batchnorm::{Activation, OneValue, Variance};
pub use config::BatchNormConfig;
pub use error::{Error, Result};
pub use layer::BatchNorm;
