//! Batch renormalization: what a batch is scaled and shifted by, and the gradients of that.
use super::{
    Arguments, Check, DEFAULT_EPS, EmptyBatch, OneValue, Op, Request, Visitor, channel,
    check_momentum, record,
};
use crate::engine::check::check_eps;
use crate::engine::renorm::{Moments, RenormClip, Rules, blend};
use crate::{Host, Memory, Real, Result};

/// Arguments of [`Engine::renormalize`](crate::Engine::renormalize). C is the number of channels.
///
/// With the batch's mean and `s = sqrt(var + eps)`, and a kept mean m and deviation sd, at least `sqrt(eps)`:
/// `r = s / sd` and `d = (mean - m) / sd`, within bounds, so that
/// `y = ((x - mean) / s * r + d) * weight + bias = (x - mean) / s * scale + shift`, which
/// [`Engine::forward_eval`](crate::Engine::forward_eval) computes by the record.
///
/// ```
/// # use batchnorm::{Cpu, Engine, Host, RenormClip, RenormState, Renormalize};
/// let record = [3.0, 0.0, 4.0, 8.0]; // one channel of mean 3 and variance 4
/// let (mut mean, mut stddev, mut var) = ([1f32], [1.0], [1.0]);
/// let [mut scale, mut shift, mut r, mut d] = [[0f32]; 4];
/// let state = RenormState::<Host, f32>::new(&mut mean, &mut stddev, &mut var, 0.5);
/// let to = ([&mut scale[..], &mut shift], [&mut r[..], &mut d]);
/// let args = Renormalize::<Host, f32>::new(&record, state, to.0, to.1).eps(1e-12);
/// Cpu::default().renormalize(args.clip(RenormClip::NONE.d_max(1.5)))?;
/// assert_eq!((r, d, mean, stddev), ([2.0], [1.5], [2.0], [1.5]));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct Renormalize<'a, M: Memory, P: Real> {
    /// Length 3C + 1: the batch's statistics.
    pub record: M::View<'a, f64>,
    /// Length C; ones if absent.
    pub weight: Option<M::View<'a, P>>,
    /// Length C; zeros if absent.
    pub bias: Option<M::View<'a, P>>,
    /// Added to the variance; more than 0.
    pub eps: f64,
    /// Bounds of r and d.
    pub clip: RenormClip,
    /// What one value per channel is.
    pub one_value: OneValue,
    /// What a batch without values does.
    pub empty_batch: EmptyBatch,
    /// What is kept from batch to batch.
    pub state: RenormState<'a, M, P>,
    /// Whether it moves.
    pub updates: bool,
    /// Length C: `weight * r`.
    pub scale: M::ViewMut<'a, P>,
    /// Length C: `weight * d + bias`.
    pub shift: M::ViewMut<'a, P>,
    /// Length C: for the gradients.
    pub r: M::ViewMut<'a, P>,
    /// Length C: for the gradients.
    pub d: M::ViewMut<'a, P>,
}

/// Statistics that renormalization keeps, of length C each, and by how much a batch moves them.
#[non_exhaustive]
pub struct RenormState<'a, M: Memory, P: Real> {
    /// The mean that evaluation takes.
    pub mean: M::ViewMut<'a, P>,
    /// The standard deviation, eps within the root.
    pub stddev: M::ViewMut<'a, P>,
    /// The variance that evaluation takes: `max(stddev^2 - eps, 0)`.
    pub var: M::ViewMut<'a, P>,
    /// The weight of a batch in the mean, 0 to 1.
    pub factor: f64,
    /// Likewise in the deviation.
    pub stddev_factor: f64,
    /// The mean that r and d are taken by: `mean` if absent, and if the next one is.
    pub renorm_mean: Option<M::ViewMut<'a, P>>,
    /// The deviation that they are taken by: `stddev` if absent, and if the last one is.
    pub renorm_stddev: Option<M::ViewMut<'a, P>>,
    /// The weight of a batch in both, 0 to 1.
    pub renorm_factor: f64,
}

impl<'a, M: Memory, P: Real> RenormState<'a, M, P> {
    /// One pair for all, as the paper has it; `factor` is the weight of the new value, 0 to 1.
    pub fn new(
        mean: M::ViewMut<'a, P>,
        stddev: M::ViewMut<'a, P>,
        var: M::ViewMut<'a, P>,
        factor: f64,
    ) -> Self {
        let (stddev_factor, renorm_factor) = (factor, factor);
        let (renorm_mean, renorm_stddev) = (None, None);
        Self { mean, stddev, var, factor, stddev_factor, renorm_mean, renorm_stddev, renorm_factor }
    }
    /// A pair of its own for r and d (length C each), as Keras has it, with this weight of the new value.
    pub fn renorm(
        self,
        mean: M::ViewMut<'a, P>,
        stddev: M::ViewMut<'a, P>,
        renorm_factor: f64,
    ) -> Self {
        Self { renorm_mean: Some(mean), renorm_stddev: Some(stddev), renorm_factor, ..self }
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> RenormState<'_, M, P> {
        RenormState {
            mean: M::reborrow_mut(&mut self.mean),
            stddev: M::reborrow_mut(&mut self.stddev),
            var: M::reborrow_mut(&mut self.var),
            factor: self.factor,
            stddev_factor: self.stddev_factor,
            renorm_mean: self.renorm_mean.as_mut().map(M::reborrow_mut),
            renorm_stddev: self.renorm_stddev.as_mut().map(M::reborrow_mut),
            renorm_factor: self.renorm_factor,
        }
    }
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { mean, stddev, var, renorm_mean, renorm_stddev, .. } = self;
        let Self { factor: _, stddev_factor: _, renorm_factor: _, .. } = self;
        visitor.write(channel("moving_mean"), mean)?;
        visitor.write(channel("moving_stddev"), stddev)?;
        visitor.write(channel("moving_variance"), var)?;
        visitor.write_some(channel("renorm_mean"), renorm_mean)?;
        visitor.write_some(channel("renorm_stddev"), renorm_stddev)
    }
}

impl<'a, M: Memory, P: Real> Renormalize<'a, M, P> {
    /// By a record (length 3C + 1) and this state, which moves; scale and shift, r and d of length C each. With
    /// an eps of 1e-5, without parameters and bounds.
    pub fn new(
        record: M::View<'a, f64>,
        state: RenormState<'a, M, P>,
        [scale, shift]: [M::ViewMut<'a, P>; 2],
        [r, d]: [M::ViewMut<'a, P>; 2],
    ) -> Self {
        Self {
            record,
            weight: None,
            bias: None,
            eps: DEFAULT_EPS,
            clip: RenormClip::NONE,
            one_value: OneValue::Refuse,
            empty_batch: EmptyBatch::Keep,
            state,
            updates: true,
            scale,
            shift,
            r,
            d,
        }
    }
    /// Adds this to the variance, more than 0, instead of 1e-5.
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }
    /// With these bounds.
    pub fn clip(self, clip: RenormClip) -> Self {
        Self { clip, ..self }
    }
    /// Moves the state, or leaves it alone.
    pub fn updates(self, updates: bool) -> Self {
        Self { updates, ..self }
    }
    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        Request::new(Op::Renormalize, P::DTYPE)
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> Renormalize<'_, M, P> {
        Renormalize {
            record: M::reborrow(&self.record),
            weight: self.weight.as_ref().map(M::reborrow),
            bias: self.bias.as_ref().map(M::reborrow),
            eps: self.eps,
            clip: self.clip,
            one_value: self.one_value,
            empty_batch: self.empty_batch,
            state: self.state.reborrow(),
            updates: self.updates,
            scale: M::reborrow_mut(&mut self.scale),
            shift: M::reborrow_mut(&mut self.shift),
            r: M::reborrow_mut(&mut self.r),
            d: M::reborrow_mut(&mut self.d),
        }
    }
    /// The check every engine makes first, for the memory that it works on. What comes back is the number of
    /// channels.
    pub(in crate::engine) fn check(&mut self, on: &M) -> Result<usize> {
        let channels = M::len(&M::as_view(&self.state.mean));
        self.walk(&mut Check { on, elements: 0, channels })?;
        check_eps::<P>(self.eps)?;
        self.clip.check()?;
        let RenormState { factor, stddev_factor, renorm_factor, .. } = self.state;
        [factor, stddev_factor, renorm_factor].into_iter().try_for_each(check_momentum)?;
        Ok(channels)
    }
}

impl<'a, M: Memory, P: Real> Arguments<'a, M> for Renormalize<'a, M, P> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { record: from, weight, bias, state, scale, shift, r, d, .. } = self;
        let Self { eps: _, clip: _, one_value: _, empty_batch: _, updates: _, .. } = self;
        visitor.read(record("record"), from)?;
        visitor.read_some(channel("weight"), weight)?;
        visitor.read_some(channel("bias"), bias)?;
        state.walk(visitor)?;
        visitor.write(channel("scale"), scale)?;
        visitor.write(channel("shift"), shift)?;
        visitor.write(channel("r"), r)?;
        visitor.write(channel("d"), d)
    }
}

impl<P: Real> Renormalize<'_, Host, P> {
    /// On the host, in f64 and rounded where it is stored: vectors of one value per channel are short beside a
    /// tensor. Arguments have been checked.
    pub(in crate::engine) fn on_host(self) {
        let Self { record, weight, bias, eps, clip, state, updates, scale, shift, r, d, .. } = self;
        let channels = r.len();
        let count = record[3 * channels];
        let (one_value, empty_batch) = (self.one_value, self.empty_batch);
        let rules = Rules { count, one_value, empty_batch };
        let RenormState { mean, stddev, var, factor, stddev_factor, renorm_factor, .. } = state;
        let mut renorm = state.renorm_mean.zip(state.renorm_stddev);
        for c in 0..channels {
            let [batch_mean, rest, batch_var] = [0, 1, 2].map(|k| record[k * channels + c]);
            let batch = Moments { mean: batch_mean + rest, stddev: (batch_var + eps).sqrt() };
            let (kept_mean, kept_stddev) = match &renorm {
                Some((mean, stddev)) => (mean[c], stddev[c]),
                None => (mean[c], stddev[c]),
            };
            let kept = Moments { mean: kept_mean.to_f64(), stddev: kept_stddev.to_f64() };
            let by = if count == 0.0 { (1.0, 0.0) } else { clip.factors(batch, kept, eps) };
            (r[c], d[c]) = (P::from_f64(by.0), P::from_f64(by.1));
            let weight = weight.map_or(1.0, |weight| weight[c].to_f64());
            let bias = bias.map_or(0.0, |bias| bias[c].to_f64());
            scale[c] = P::from_f64(weight * by.0);
            shift[c] = P::from_f64(weight * by.1 + bias);
            if !updates {
                continue;
            }
            let (batch, [moves_mean, moves_stddev]) = rules.moved(batch);
            if moves_mean {
                mean[c] = P::from_f64(blend(mean[c], batch.mean, factor));
                if let Some((mean, _)) = &mut renorm {
                    mean[c] = P::from_f64(blend(mean[c], batch.mean, renorm_factor));
                }
            }
            if moves_stddev {
                let moved = blend(stddev[c], batch.stddev, stddev_factor);
                stddev[c] = P::from_f64(moved);
                let moved = moved * moved - eps;
                var[c] = P::from_f64(if moved < 0.0 { 0.0 } else { moved });
                if let Some((_, stddev)) = &mut renorm {
                    stddev[c] = P::from_f64(blend(stddev[c], batch.stddev, renorm_factor));
                }
            }
        }
    }
}

/// Arguments of [`Engine::renormalize_backward`](crate::Engine::renormalize_backward): the gradients of weight
/// and bias behind batch renormalization, whose r and d are constants: `sum(g * (xhat * r + d))` and `sum(g)`.
/// C is the number of channels.
///
/// ```
/// # use batchnorm::{Cpu, Engine, Host, RenormalizeBackward};
/// let (r, d, sum_g_xhat, sum_g) = ([2f32], [0.5], [3.0], [4.0]);
/// let mut grad_weight = [0.0];
/// let args = RenormalizeBackward::<Host, f32>::new([&r, &d], [&sum_g_xhat, &sum_g]);
/// Cpu::default().renormalize_backward(args.grad_weight(&mut grad_weight))?;
/// assert_eq!(grad_weight, [8.0]);
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[non_exhaustive]
pub struct RenormalizeBackward<'a, M: Memory, P: Real> {
    /// Length C, as the forward had it.
    pub r: M::View<'a, P>,
    /// Length C, as the forward had it.
    pub d: M::View<'a, P>,
    /// Length C: what [`Backward::grad_weight`](crate::Backward::grad_weight) gives.
    pub sum_g_xhat: M::View<'a, P>,
    /// Length C: what [`Backward::grad_bias`](crate::Backward::grad_bias) gives.
    pub sum_g: M::View<'a, P>,
    /// Length C.
    pub grad_weight: Option<M::ViewMut<'a, P>>,
    /// Length C.
    pub grad_bias: Option<M::ViewMut<'a, P>>,
    /// Add to both instead of replacing them.
    pub accumulate: bool,
}

impl<'a, M: Memory, P: Real> RenormalizeBackward<'a, M, P> {
    /// By the forward's r and d, and the sums of g * xhat and of g, of length C each. Nothing is asked for yet.
    pub fn new([r, d]: [M::View<'a, P>; 2], [sum_g_xhat, sum_g]: [M::View<'a, P>; 2]) -> Self {
        let (grad_weight, grad_bias, accumulate) = (None, None, false);
        Self { r, d, sum_g_xhat, sum_g, grad_weight, grad_bias, accumulate }
    }
    /// Asks for the gradient of the weight (length C).
    pub fn grad_weight(self, grad_weight: M::ViewMut<'a, P>) -> Self {
        Self { grad_weight: Some(grad_weight), ..self }
    }
    /// Asks for the gradient of the bias (length C).
    pub fn grad_bias(self, grad_bias: M::ViewMut<'a, P>) -> Self {
        Self { grad_bias: Some(grad_bias), ..self }
    }
    /// Adds to the gradients, or replaces them.
    pub fn accumulate(self, accumulate: bool) -> Self {
        Self { accumulate, ..self }
    }
    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        Request::new(Op::RenormalizeBackward, P::DTYPE)
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> RenormalizeBackward<'_, M, P> {
        RenormalizeBackward {
            r: M::reborrow(&self.r),
            d: M::reborrow(&self.d),
            sum_g_xhat: M::reborrow(&self.sum_g_xhat),
            sum_g: M::reborrow(&self.sum_g),
            grad_weight: self.grad_weight.as_mut().map(M::reborrow_mut),
            grad_bias: self.grad_bias.as_mut().map(M::reborrow_mut),
            accumulate: self.accumulate,
        }
    }
    /// The check every engine makes first, for the memory that it works on. What comes back is the number of
    /// channels.
    pub(in crate::engine) fn check(&mut self, on: &M) -> Result<usize> {
        let channels = M::len(&self.r);
        self.walk(&mut Check { on, elements: 0, channels })?;
        Ok(channels)
    }
}

impl<'a, M: Memory, P: Real> Arguments<'a, M> for RenormalizeBackward<'a, M, P> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { r, d, sum_g_xhat, sum_g, grad_weight, grad_bias, accumulate: _ } = self;
        visitor.read(channel("r"), r)?;
        visitor.read(channel("d"), d)?;
        visitor.read(channel("sum_g_xhat"), sum_g_xhat)?;
        visitor.read(channel("sum_g"), sum_g)?;
        visitor.write_some(channel("grad_weight"), grad_weight)?;
        visitor.write_some(channel("grad_bias"), grad_bias)
    }
}

impl<P: Real> RenormalizeBackward<'_, Host, P> {
    /// On the host, as [`Renormalize::on_host`].
    pub(in crate::engine) fn on_host(self) {
        let Self { r, d, sum_g_xhat, sum_g, grad_weight, grad_bias, accumulate } = self;
        let add = |to: &mut P, value: f64| {
            *to = P::from_f64(if accumulate { to.to_f64() + value } else { value });
        };
        for (c, to) in grad_weight.into_iter().flatten().enumerate() {
            let (r, d) = (r[c].to_f64(), d[c].to_f64());
            add(to, r * sum_g_xhat[c].to_f64() + d * sum_g[c].to_f64());
        }
        for (c, to) in grad_bias.into_iter().flatten().enumerate() {
            add(to, sum_g[c].to_f64());
        }
    }
}
