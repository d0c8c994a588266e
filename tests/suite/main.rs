//! All tests of engines and layers in one program: what is generic over dtype and engine is compiled
//! once.
#[path = "../support/mod.rs"]
mod support;

mod axes; // any rank and axes, beside a computation without shapes
mod bad_input; // every wrong argument of every operation
mod conformance; // engines x dtypes x shapes x operations x epilogues
mod definition; // numbers worked out by hand
mod double_backward; // the gradients of a backward
mod double_backward_layers; // the same through layers
mod epilogues; // kinks, special values, what a backward is given
mod extremes; // numbers beyond the range of a type on the way
mod fold; // layers that do a normalization's work
mod ghost; // groups of a batch's rows
mod ghost_bits; // groups that are taken at once beside calls
mod ghost_dealt; // strided groups behind whose channels other axes lie
mod ghost_masks; // groups of few rows by a mask, which are taken at once
mod ghost_steps; // groups through all operations, with masks
mod given_statistics; // a backward without the forward's `Saved`
mod golden; // what PyTorch computed in float64
mod golden_layers; // golden cases of a whole layer, by kind
mod golden_reader; // malformed cases
mod gradients; // finite differences
mod halves; // weight and bias in one buffer
mod host; // slices and offsets
mod interpreted; // what Miri runs
mod layer; // modes, forward, backward
mod layer_calls; // forms of a call: with memory, in place, from threads, on another engine
mod layer_norm; // rows by their own statistics
mod layer_norm_calls; // the same: wrong arguments, the layer
mod layer_optimizer; // optimizers, regularizers, constraints, values by name
mod lazy; // channels from the first input or a state dict
mod masked_double_backward; // the gradients of a backward by a mask
mod masked_renorm; // renormalization by the values that count
mod masks; // statistics of the values that count
mod masks_by_hand; // the same of the reference, and what is refused
mod nonfinite; // NaN, infinities, the largest values, constants
mod optimizer; // steps, penalties and constraints of a vector
mod parameters; // parameters, gradients, moving, display
mod parts; // a list of inputs as one batch
mod population; // statistics of a whole data set
mod presets; // defaults of other systems
mod properties; // random calls, repeatability, threads
mod renorm; // statistics brought to the running ones
mod running; // by which rules running statistics move
mod serialized; // configurations by serde
mod state; // state dicts, and files that torch wrote
mod state_dict; // arbitrary bytes
mod stress; // kinds of values x shapes x epilogues x modes x dtypes
mod synchronized; // statistics of a batch in parts
