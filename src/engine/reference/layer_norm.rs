//! The definition of layer normalization, one row at a time.
use super::{Moments, Reference, Statistics64, at, narrow, or_zero, wide};
use crate::engine::{EpsRule, LayerNormBackward, LayerNormForward};
use crate::{Element, Host, Real, Result, Shape};

/// What normalizes a row: `invstd` is one over the divisor, eps included.
fn row(rule: EpsRule, eps: f64, mean: f64, rest: f64, root: f64) -> Statistics64 {
    let invstd = 1.0 / (root + rule.outside(eps));
    Statistics64 { mean, rest, var: f64::NAN, invstd }
}

pub(super) fn forward<E: Element>(
    engine: &Reference,
    shape: &Shape,
    mut args: LayerNormForward<'_, Host, E>,
) -> Result<()> {
    args.check(&Host, shape)?;
    let mut saved = args.open(engine, shape)?.map(|opened| opened.filled().by_row_mut());
    let LayerNormForward { x, weight, bias, eps, eps_rule, y, .. } = args;
    let features = shape.channels();
    for (n, (x, y)) in x.chunks(features).zip(y.chunks_mut(features)).enumerate() {
        let Moments { mean, rest, var, unit } = Moments::of(x.iter().map(|&x| wide(x)), features);
        let root = eps_rule.root(var.sqrt() * unit, eps);
        let by = row(eps_rule, eps, mean, rest, root);
        for c in 0..features {
            y[c] = narrow(at(weight, c, 1.0) * by.xhat(wide(x[c])) + at(bias, c, 0.0));
        }
        if let Some(saved) = &mut saved {
            saved.mean[n] = Real::from_f64(mean);
            saved.mean_rest[n] = Real::from_f64(or_zero(mean - saved.mean[n].to_f64() + rest));
            saved.root[n] = Real::from_f64(root);
        }
    }
    if let Some(saved) = &mut saved {
        (0..features).for_each(|c| saved.weight[c] = Real::from_f64(at(weight, c, 1.0)));
    }
    Ok(())
}

pub(super) fn backward<E: Element>(
    engine: &Reference,
    shape: &Shape,
    mut args: LayerNormBackward<'_, Host, E>,
) -> Result<()> {
    args.check(engine, shape)?;
    let (forward, saved) = args.saved.made()?;
    let saved = saved.by_row();
    let (rows, features) = (shape.len() / shape.channels(), shape.channels());
    let (mut sums, mut dots) = (vec![0.0; features], vec![0.0; features]);
    for n in 0..rows {
        let (mean, rest) = (saved.mean[n].to_f64(), saved.mean_rest[n].to_f64());
        let root = saved.root[n].to_f64();
        let by = row(forward.rule, forward.eps, mean, rest, root);
        let at = |c: usize| n * features + c;
        let xhat = |c: usize| by.xhat(wide(args.x[at(c)]));
        let g = |c: usize| wide(args.grad_y[at(c)]) * saved.weight[c].to_f64();
        let mean = |of: &dyn Fn(usize) -> f64| (0..features).map(of).sum::<f64>() / features as f64;
        let (mean_g, mean_dot) = (mean(&g), mean(&|c| g(c) * xhat(c)));
        // Through the root; the mean and the distance are seen through the divisor.
        let through = forward.rule.through(root, forward.eps);
        for c in 0..features {
            sums[c] += wide(args.grad_y[at(c)]);
            dots[c] += wide(args.grad_y[at(c)]) * xhat(c);
            if let Some(grad_x) = &mut args.grad_x {
                let centered = g(c) - mean_g - xhat(c) * mean_dot * through;
                grad_x[at(c)] = narrow(centered * by.invstd);
            }
        }
    }
    for (gradient, sums) in [(&mut args.grad_weight, dots), (&mut args.grad_bias, sums)] {
        for (gradient, sum) in gradient.iter_mut().flat_map(|to| to.iter_mut()).zip(sums) {
            let before = if args.accumulate { gradient.to_f64() } else { 0.0 };
            *gradient = Real::from_f64(before + sum);
        }
    }
    Ok(())
}
