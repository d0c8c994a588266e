//! What layer normalization divides by, and what travels from its forward to its backward.
use super::saved::{Opening, SavedBuffers, check_parameters, check_source, stride};
use crate::{DType, Error, Host, Memory, Real, Result, Shape};
#[cfg(feature = "cuda")]
use {crate::Device, cudarc::driver::CudaViewMut};

/// What eps is added to, where a row is divided by its deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum EpsRule {
    /// The variance: `1 / sqrt(var + eps)`, as in PyTorch and everywhere else today.
    #[default]
    Variance,
    /// The deviation: `1 / (sqrt(var) + eps)`, as Keras 1 did in mode 1 before 1.0.5.
    Std,
    /// The variance, and its root once more: `1 / (sqrt(var + eps) + eps)`, as Keras 1 did in mode 1 from
    /// 1.0.5 on.
    Both,
}

impl EpsRule {
    /// The root that is taken, of a deviation: with eps in it, or without.
    pub(super) fn root(self, std: f64, eps: f64) -> f64 {
        match self {
            Self::Std => std,
            // Neither square leaves f64.
            Self::Variance | Self::Both => f64::hypot(std, eps.sqrt()),
        }
    }
    /// What is added to the root.
    pub(super) fn outside(self, eps: f64) -> f64 {
        if self == Self::Variance { 0.0 } else { eps }
    }
    /// How many times what flows through the mean's `1 / divisor` flows through the root: 0 for a constant
    /// row under [`Std`](Self::Std), whose deviation has no derivative.
    pub(super) fn through(self, root: f64, eps: f64) -> f64 {
        if root.is_nan() {
            root
        } else if root > 0.0 && root.is_finite() {
            (root + self.outside(eps)) / root
        } else {
            0.0
        }
    }
    /// Refuses an eps by which a constant row has no divisor that is a number of the parameters' type.
    pub(crate) fn check<P: Real>(self, eps: f64) -> Result<()> {
        if !(eps > 0.0 && eps.is_finite()) {
            let reason = format!("expected a finite number above 0, got {eps}");
            return Err(Error::invalid("eps", reason));
        }
        let divisor = self.root(0.0, eps) + self.outside(eps);
        if !P::from_f64(1.0 / divisor).to_f64().is_finite() {
            let divisor = match self {
                Self::Variance => "sqrt(eps)",
                Self::Std => "eps",
                Self::Both => "(sqrt(eps) + eps)",
            };
            let reason =
                format!("expected one whose 1 / {divisor} is finite in {}, got {eps:e}", P::DTYPE);
            return Err(Error::invalid("eps", reason));
        }
        Ok(())
    }
    /// As kernels have it.
    #[cfg(feature = "cuda")]
    pub(super) fn code(self) -> u32 {
        match self {
            Self::Variance => 0,
            Self::Std => 1,
            Self::Both => 2,
        }
    }
}

/// What a layer normalization leaves for its backward: mean and deviation of every row, the weight it used,
/// and for which shape, dtype, eps and engine.
///
/// It belongs to the caller and is reusable: the first forward of a shape makes its buffers, later ones
/// write into them. Two forwards before a backward take one each. x alone is the caller's to keep.
pub struct LayerNormSaved<M: Memory, P: Real>(SavedBuffers<Forward, Buffers<M, P>>);

/// The forward that filled a [`LayerNormSaved`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forward {
    pub shape: Shape,
    pub dtype: DType,
    pub weight: bool,
    pub bias: bool,
    pub eps: f64,
    pub rule: EpsRule,
    pub engine: &'static str,
}

/// One allocation, so that a launch has one argument to wait for and to record: the arrays of [`ByRow`], one
/// behind the other.
pub(crate) struct Buffers<M: Memory, P: Real> {
    values: M::Buf<P>,
    rows: usize,
    features: usize,
}

/// What a forward saves: views, or where they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByRow<T> {
    /// One per row.
    pub mean: T,
    /// One per row: what rounding left of the mean.
    pub mean_rest: T,
    /// One per row: [`EpsRule::root`].
    pub root: T,
    /// One per feature, as in the forward; ones if absent.
    pub weight: T,
}

/// Arrays of a [`ByRow`] that have a value per row; the weight is behind them.
const PER_ROW: usize = 3;

impl<M: Memory, P: Real> Buffers<M, P> {
    fn new(memory: &M, rows: usize, features: usize) -> Result<Self> {
        let len = stride(rows).saturating_mul(PER_ROW).saturating_add(features);
        Ok(Self { values: memory.unwritten(len)?, rows, features })
    }
    /// One of the arrays that have a value per row.
    fn array(&self, index: usize) -> Option<M::View<'_, P>> {
        let start = index * stride(self.rows);
        M::part(&self.values, start..start + self.rows)
    }
    /// All of them, to ask where they are.
    pub fn all(&self) -> M::View<'_, P> {
        M::view(&self.values)
    }
}

impl<P: Real> Buffers<Host, P> {
    pub fn by_row(&self) -> ByRow<&[P]> {
        let at = |index| &self.values[index * stride(self.rows)..];
        let [mean, mean_rest, root] = [0, 1, 2].map(|index| &at(index)[..self.rows]);
        ByRow { mean, mean_rest, root, weight: &at(PER_ROW)[..self.features] }
    }
    pub fn by_row_mut(&mut self) -> ByRow<&mut [P]> {
        let (stride, rows) = (stride(self.rows), self.rows);
        let mut rest = &mut self.values[..];
        let [mean, mean_rest, root] = [(); PER_ROW].map(|()| {
            let (array, behind) = std::mem::take(&mut rest).split_at_mut(stride);
            rest = behind;
            &mut array[..rows]
        });
        ByRow { mean, mean_rest, root, weight: &mut rest[..self.features] }
    }
}

#[cfg(feature = "cuda")]
impl<P: Real> Buffers<Device, P> {
    pub fn all_mut(&mut self) -> CudaViewMut<'_, P> {
        self.values.as_view_mut()
    }
    /// Bytes before each of the arrays.
    pub fn offsets(&self) -> ByRow<u64> {
        let of = |index: usize| (index * stride(self.rows) * size_of::<P>()) as u64;
        ByRow { mean: of(0), mean_rest: of(1), root: of(2), weight: of(PER_ROW) }
    }
}

/// An [`Opening`] of a [`LayerNormSaved`].
pub(crate) type Opened<'s, M, P> = Opening<'s, Forward, Buffers<M, P>>;

impl<M: Memory, P: Real> LayerNormSaved<M, P> {
    /// Nothing saved, nothing allocated.
    pub fn new() -> Self {
        Self(SavedBuffers::NONE)
    }
    /// The shape of the forward; none before the first.
    pub fn shape(&self) -> Option<Shape> {
        self.0.forward().map(|forward| forward.shape)
    }
    /// The mean of every row, rounded to the parameters' type: length N for x `[N, C]`.
    pub fn mean(&self) -> Option<M::View<'_, P>> {
        self.0.filled()?.array(0)
    }
    /// The root that every row was divided by, before an eps outside of it: `sqrt(var + eps)`, or `sqrt(var)`
    /// under [`EpsRule::Std`]. Length N for x `[N, C]`.
    pub fn std(&self) -> Option<M::View<'_, P>> {
        self.0.filled()?.array(2)
    }

    /// Buffers for a forward that is about to run. Until it says that they are filled, nothing is saved.
    pub(crate) fn open(&mut self, memory: &M, forward: Forward) -> Result<Opened<'_, M, P>> {
        let shape = forward.shape;
        let (rows, features) = (shape.len() / shape.channels(), shape.channels());
        let fit = |buffers: &Buffers<M, P>| {
            let here = memory.check_here("saved", &buffers.all()).is_ok();
            here && buffers.rows == rows && buffers.features == features
        };
        self.0.open(forward, fit, || Buffers::new(memory, rows, features))
    }

    /// What a forward left, if there was one.
    pub(crate) fn made(&self) -> Result<(&Forward, &Buffers<M, P>)> {
        self.0.made()
    }
}

impl<M: Memory, P: Real> Default for LayerNormSaved<M, P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Memory, P: Real> std::fmt::Debug for LayerNormSaved<M, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerNormSaved").field("forward", &self.0.forward()).finish_non_exhaustive()
    }
}

impl Forward {
    /// Refuses a backward that asks for another shape, dtype or engine.
    pub(crate) fn check(&self, shape: &Shape, dtype: DType, engine: &'static str) -> Result<()> {
        check_source((&self.shape, self.dtype, self.engine), (shape, dtype, engine))
    }
    /// Refuses a layer that has other parameters.
    pub(crate) fn check_parameters(&self, weight: bool, bias: bool) -> Result<()> {
        check_parameters((self.weight, self.bias), (weight, bias))
    }
}
