//! The definition of the gradients of a backward, one channel at a time.
use super::{Reference, Statistics64, at, has_mask, narrow, wide};
use crate::engine::DoubleBackward;
use crate::engine::saved::ByChannel;
use crate::{Element, Host, Real, Result, Shape};

fn sum(values: impl Iterator<Item = f64>) -> f64 {
    values.sum()
}
fn dot(a: &[f64], b: &[f64]) -> f64 {
    sum(a.iter().zip(b).map(|(a, b)| a * b))
}

/// What a gradient loses on its way through the statistics of a batch, `q - S(q)/m - xhat S(q xhat)/m`;
/// nothing where they are constants.
fn project(q: &[f64], xhat: &[f64], batch: bool) -> Vec<f64> {
    if !batch {
        return q.to_vec();
    }
    let m = q.len() as f64;
    let (mean, slope) = (sum(q.iter().copied()) / m, dot(q, xhat) / m);
    q.iter().zip(xhat).map(|(q, xhat)| q - mean - xhat * slope).collect()
}

pub(super) fn double_backward<E: Element>(
    engine: &Reference,
    shape: &Shape,
    mut args: DoubleBackward<'_, Host, E>,
) -> Result<()> {
    args.check(engine, shape)?;
    let (forward, saved) = args.saved.made()?;
    let (activation, batch) = (forward.activation, forward.batch_statistics);
    let residual = args.residual.filter(|_| forward.residual);
    let m = shape.per_channel().max(1) as f64;
    let ByChannel { mean, mean_rest, invstd, weight, bias } = saved.by_channel();
    for c in 0..shape.channels() {
        let [mean, rest, invstd] = [mean, mean_rest, invstd].map(|array| array[c].to_f64());
        let by = Statistics64 { mean, rest, var: f64::NAN, invstd };
        let (weight, bias) = (weight[c].to_f64(), bias[c].to_f64());
        let (v_weight, v_bias) = (at(args.v_weight, c, 0.0), at(args.v_bias, c, 0.0));
        let elements: Vec<usize> = shape.channel(c).collect();
        let of = |tensor: Option<&[E]>| -> Vec<f64> {
            elements.iter().map(|&i| tensor.map_or(0.0, |tensor| wide(tensor[i]))).collect()
        };
        let (grad_y, v, v_residual) = (of(Some(args.grad_y)), of(args.v_x), of(args.v_residual));
        let xhat: Vec<f64> = elements.iter().map(|&i| by.xhat(wide(args.x[i]))).collect();
        let z = |k: usize| weight * xhat[k] + bias + residual.map_or(0.0, |r| wide(r[elements[k]]));
        let slope = |k: usize| match &saved.reserve {
            Some(ones) if has_mask(activation) => match ones[elements[k]] {
                1 => 1.0,
                _ => activation.negative_slope(),
            },
            _ => activation.derivative::<E>(z(k)),
        };
        // A derivative of 0 stops infinities, too.
        let times = |by: f64, value: f64| if by == 0.0 { 0.0 } else { by * value };
        let all = 0..elements.len();
        let slopes: Vec<f64> = all.clone().map(slope).collect();
        let g: Vec<f64> = all.clone().map(|k| times(slopes[k], grad_y[k])).collect();

        // The gradient of what grad_y became behind the activation.
        let scale = weight * invstd;
        let pv = project(&v, &xhat, batch);
        let u: Vec<f64> = all
            .clone()
            .map(|k| scale * pv[k] + v_weight * xhat[k] + v_bias + v_residual[k])
            .collect();
        // What flows to z.
        let curve = |k: usize| match activation.is_curved() {
            true => times(activation.second_derivative::<E>(z(k)), u[k] * grad_y[k]),
            false => 0.0,
        };
        let h: Vec<f64> = all.clone().map(curve).collect();
        let ph = project(&h, &xhat, batch);
        // What flows to xhat, and through invstd.
        let (sum_v, sum_g) = (sum(v.iter().copied()), sum(g.iter().copied()));
        let (dot_v, dot_g) = (dot(&v, &xhat), dot(&g, &xhat));
        let through = |k: usize| scale * (v[k] * dot_g + g[k] * dot_v) / m;
        let t: Vec<f64> =
            all.clone().map(|k| v_weight * g[k] - if batch { through(k) } else { 0.0 }).collect();
        let pt = project(&t, &xhat, batch);
        let kappa = dot(&v, &g) - if batch { sum_v * sum_g / m + dot_v * dot_g / m } else { 0.0 };
        let by_std = if batch { weight * kappa * invstd * invstd / m } else { 0.0 };

        for (k, &i) in elements.iter().enumerate() {
            if let Some(gg_grad_y) = &mut args.gg_grad_y {
                gg_grad_y[i] = narrow(times(slopes[k], u[k]));
            }
            if let Some(gg_x) = &mut args.gg_x {
                gg_x[i] = narrow(invstd * pt[k] - by_std * xhat[k] + scale * ph[k]);
            }
            if let Some(gg_residual) = &mut args.gg_residual {
                gg_residual[i] = narrow(h[k]);
            }
        }
        let of_weight = invstd * kappa + dot(&h, &xhat);
        let gradients = [(&mut args.gg_weight, of_weight), (&mut args.gg_bias, sum(h.into_iter()))];
        for (gradient, sum) in gradients {
            if let Some(gradient) = gradient {
                let before = if args.accumulate { gradient[c].to_f64() } else { 0.0 };
                gradient[c] = Real::from_f64(before + sum);
            }
        }
    }
    Ok(())
}
