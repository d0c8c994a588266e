//! What kernels take: structures that lie as `kernels/layout.cuh` declares them, and the tensors of a
//! backward.
use super::module::is_any;
use super::plan::{Geometry, Plan};
use super::resident::Resident;
use super::update::Update;
use crate::engine::pointers::Ptr;
use crate::engine::{Activation, Derivative};
use crate::{Element, Real};

/// What normalizes: one value for each channel.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Channels<A> {
    pub mean: Ptr<A>,
    pub mean_rest: Ptr<A>,
    pub invstd: Ptr<A>,
    pub weight: Ptr<A>,
    pub bias: Ptr<A>,
}

/// Statistics that are given, of which a forward makes what normalizes, and where it keeps that.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Given<A> {
    pub eps: f64,
    pub mean: Ptr<A>,
    pub var: Ptr<A>,
    /// Instead of these two.
    pub record: Ptr<f64>,
    pub saved_mean: Ptr<A>,
    pub saved_mean_rest: Ptr<A>,
    pub saved_invstd: Ptr<A>,
    pub saved_weight: Ptr<A>,
    pub saved_bias: Ptr<A>,
    pub nonfinite: Ptr<u32>,
}

impl<A> Given<A> {
    /// None, where a pass before has made what normalizes; nothing is kept.
    pub const NONE: Self = Self {
        eps: 0.0,
        mean: Ptr::NULL,
        var: Ptr::NULL,
        record: Ptr::NULL,
        saved_mean: Ptr::NULL,
        saved_mean_rest: Ptr::NULL,
        saved_invstd: Ptr::NULL,
        saved_weight: Ptr::NULL,
        saved_bias: Ptr::NULL,
        nonfinite: Ptr::NULL,
    };
}

/// How the partial results of a channel make it up.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Merge {
    count: u64,
    tile_count: u64,
    lie: Lie,
    tiles: u32,
    lanes: u32,
}

/// Where the values of a channel are: `together` channels lie side by side, `positions` times, before the next so many.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Lie {
    channels: u64,
    inner: u64,
    together: u32,
    positions: u32,
}

impl From<&Plan> for Merge {
    fn from(plan: &Plan) -> Self {
        let &Plan { geometry, count, tile_count, tiles, lanes, .. } = plan;
        let Geometry { channels, inner, slice_channels, positions, .. } = geometry;
        // None where there are no elements.
        let (together, positions) = (slice_channels.max(1), positions.max(1));
        let lie = Lie { channels: channels.into(), inner, together, positions };
        Self { count, tile_count, lie, tiles, lanes }
    }
}

/// What the statistics are written to.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Outputs<A> {
    pub eps: f64,
    pub running: Update<A>,
    pub mean: Ptr<A>,
    pub mean_rest: Ptr<A>,
    pub invstd: Ptr<A>,
    pub record: Ptr<f64>,
    pub nonfinite: Ptr<u32>,
    /// What is applied, and where a backward finds it.
    pub weight: Ptr<A>,
    pub bias: Ptr<A>,
    pub saved_weight: Ptr<A>,
    pub saved_bias: Ptr<A>,
}

impl<A: Real> Outputs<A> {
    /// Nothing is written yet.
    pub fn new(eps: f64, nonfinite: Ptr<u32>) -> Self {
        let none = Ptr::NULL;
        Self {
            eps,
            running: Update::NONE,
            mean: none,
            mean_rest: none,
            invstd: none,
            record: Ptr::NULL,
            nonfinite,
            weight: none,
            bias: none,
            saved_weight: none,
            saved_bias: none,
        }
    }
}

/// What the sums of a backward are written to.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Gradients<A> {
    pub total_sums: Ptr<A>,
    pub grad_weight: Ptr<A>,
    pub grad_bias: Ptr<A>,
    pub sums: Ptr<A>,
    pub coefs: Ptr<A>,
    pub nonfinite: Ptr<u32>,
}

/// The tensors of a backward.
#[derive(Clone, Copy)]
pub(super) struct Tensors<E: Element> {
    pub x: Ptr<E>,
    pub grad_y: Ptr<E>,
    pub mask: Ptr<u8>,
    /// What derivatives are taken from.
    pub source: Derivative,
    /// Null unless that is the residual.
    pub residual: Ptr<E>,
    pub act: Act<E::Acc>,
    pub grad_x: Ptr<E>,
    pub grad_residual: Ptr<E>,
}

/// What follows the normalization, as kernels take it.
#[derive(Clone, Copy)]
pub(super) enum Act<A> {
    /// Whether it is a ReLU.
    Plain(u32),
    Any(AnyActivation<A>),
}

/// Any activation, for kernels that take any.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct AnyActivation<A> {
    activation: u32,
    slope: A,
}

impl<A: Real> Act<A> {
    pub fn new(activation: Activation) -> Self {
        if !is_any(activation) {
            return Self::Plain((activation == Activation::Relu).into());
        }
        Self::Any(AnyActivation::new(activation))
    }
}

impl<A: Real> AnyActivation<A> {
    pub fn new(activation: Activation) -> Self {
        let slope = A::from_f64(activation.negative_slope());
        Self { activation: activation.code(), slope }
    }
}

/// The blocks that share a slice, and where they tell each other what they found.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Group {
    blocks: u32,
    kept: u32,
    early: u32,
    late: u32,
    partials: Ptr<f64>,
    words: Ptr<u32>,
}

impl Group {
    pub fn new(plan: &Resident, partials: Ptr<f64>, words: Ptr<u32>) -> Self {
        let &Resident { blocks, kept, early, late, .. } = plan;
        let (partials, words) = match blocks {
            1 => (Ptr::NULL, Ptr::NULL),
            _ => (partials, words),
        };
        Self { blocks, kept, early, late, partials, words }
    }
}

impl<E: Element> Tensors<E> {
    pub fn all(&self) -> [Ptr<E>; 5] {
        [self.x, self.grad_y, self.residual, self.grad_x, self.grad_residual]
    }
    /// Whether each starts at a multiple of 16 bytes.
    pub fn are_aligned(&self) -> bool {
        self.all().iter().all(|tensor| tensor.is_aligned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pointers::assert_layout;

    #[test]
    fn arguments_lie_as_the_kernels_declare_them() {
        assert_layout! {
            include_str!("../../../kernels/layout.cuh");
            "Geometry": Geometry { vectors, tile, row, width, inner, slices, slice_channels, channels, threads, aligned, positions }
            "Channels<float>": Channels<f32> { mean, mean_rest, invstd, weight, bias }
            "Given<float>": Given<f32> { eps, mean, var, record, saved_mean, saved_mean_rest, saved_invstd, saved_weight, saved_bias, nonfinite }
            "Merge": Merge { count, tile_count, lie, tiles, lanes }
            "Lie": Lie { channels, inner, together, positions }
            "Running<float>": Update<f32> { factor, var_factor, mean, var, skipped, rules, reserved }
            "Outputs<float>": Outputs<f32> { eps, running, mean, mean_rest, invstd, record, nonfinite, weight, bias, saved_weight, saved_bias }
            "Gradients<float>": Gradients<f32> { total_sums, grad_weight, grad_bias, sums, coefs, nonfinite }
            "Group": Group { blocks, kept, early, late, partials, words }
            "AnyActivation<float>": AnyActivation<f32> { activation, slope }
            "AnyActivation<double>": AnyActivation<f64> { activation, slope }
        }
        assert_eq!(size_of::<Ptr<f64>>(), 8);
    }
}
