//! Ghost batches of few rows of N x C: kernels that take groups of channels through all steps at once. What they do
//! not serve, and groups of which a channel's numbers leave the range of their type, take the way of every batch.
use super::extremes::Extreme;
use super::groups::{Common, Gradient, Group};
use super::kernels::few_rows::{self as kernel, MOST_ROWS};
use super::moments::small_squares;
use super::policy::{PAGE, SMALL};
use super::simd::{GROUP, Simd};
use super::table::Parameters;
use super::{Cpu, backward};
use crate::engine::saved::{ByChannel, Opened};
use crate::engine::{Activation, Derivative, Engine, Input};
use crate::{Element, Result, Shape};

/// Rows whose starts lie a large power of two apart share a part of the first cache: of more of them than these the
/// kernels, which read a column of them several times, find little there, and take up to twice as long as loops over
/// rows.
const ROWS_OF_A_PART: usize = 4;

/// Whether the kernels take groups of a shape.
fn is_served<E>(shape: &Shape) -> bool {
    let (rows, channels) = (shape.outer(), shape.channels());
    let parts = PAGE >> (channels * size_of::<E>()).trailing_zeros().min(PAGE.trailing_zeros());
    let most = MOST_ROWS.min(ROWS_OF_A_PART * parts);
    shape.inner() == 1 && (2..=most).contains(&rows) && channels >= GROUP && shape.len() <= SMALL
}

/// A forward of a group; whether the kernel has served it.
pub(super) fn forward_train<E: Element>(
    (cpu, simd): (&Cpu, Simd),
    common: &Common<'_, E>,
    group: &mut Group<'_, E>,
) -> Result<bool> {
    let Group { shape, x, residual, y, saved, kept } = group;
    let channels = shape.channels();
    let relu = common.activation == Activation::Relu;
    let is_len = |values: Option<&[E::Acc]>| values.is_none_or(|values| values.len() == channels);
    let takes = common.activation.derivative_from(residual.is_some());
    let is_plain = takes == Derivative::One || takes == Derivative::FromX && relu;
    let is_served =
        is_served::<E>(shape) && is_plain && is_len(common.weight) && is_len(common.bias);
    if !is_served || common.eps.is_nan() || common.eps < 0.0 {
        return Ok(false);
    }
    // Where results lie does not matter to what is saved.
    let mut part = common.part((x, *residual), &mut [], saved);
    let Some(saved) = part.open(cpu, shape)?.map(Opened::filled) else { return Ok(false) };
    let parameters = Parameters { weight: common.weight, bias: common.bias };
    parameters.save(saved);
    let ByChannel { mean, mean_rest, invstd, .. } = saved.by_channel_mut();
    let (means, squares) = kept.split_at_mut(channels);
    kernel::Forward {
        x,
        residual: *residual,
        y,
        weight: common.weight,
        bias: common.bias,
        eps: common.eps,
        relu,
        statistics: [mean, mean_rest, invstd],
        moments: [means, &mut *squares],
    }
    .run(simd);
    let (has_small_eps, small_var) = small_squares::<E::Acc>(common.eps);
    let least = if has_small_eps { shape.outer() as f64 * small_var } else { 0.0 };
    let is_odd = |square: &f64| !square.is_finite() | (*square < least);
    let is_ordinary = !squares.iter().fold(false, |odd, square| odd | is_odd(square));
    Ok(is_ordinary && Extreme::of_saved(simd, saved).is_empty())
}

/// A backward of a group; whether the kernel has served it.
pub(super) fn backward<E: Element>(
    (cpu, simd): (&Cpu, Simd),
    group: &mut Gradient<'_, E>,
) -> Result<bool> {
    let (shape, channels) = (&group.shape, group.shape.channels());
    let (forward, saved) = group.saved.made()?;
    let takes = forward.activation.derivative_from(forward.residual);
    let relu = forward.activation == Activation::Relu;
    let is_plain = takes == Derivative::One || takes == Derivative::FromX && relu;
    let is_own = forward.batch_statistics && forward.mask.is_none();
    let is_checked = forward.check(shape, E::DTYPE, cpu.name()).is_ok();
    let (Input::View(grad_y), Some(grad_x)) = (group.grad_y.as_ref(), &mut group.grad_x) else {
        return Ok(false);
    };
    let is_served = is_served::<E>(shape) && is_plain && is_own && is_checked;
    if !is_served || group.grad_residual.is_some() || !Extreme::of_saved(simd, saved).is_empty() {
        return Ok(false);
    }
    let ByChannel { mean, mean_rest, invstd, weight, bias } = saved.by_channel();
    let (sums, products) = group.kept.split_at_mut(channels);
    kernel::Backward {
        x: group.x,
        grad_y,
        grad_x,
        saved: [mean, mean_rest, invstd, weight, bias],
        relu,
        sums: [&mut *sums, &mut *products],
    }
    .run(simd);
    let both = sums.iter().zip(products.iter());
    Ok(!both.fold(false, |lost, (sum, product)| lost | backward::is_lost::<E>(*sum, *product)))
}
