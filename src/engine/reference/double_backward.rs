//! The definition of the gradients of a backward, one channel at a time.
use super::masked::Masked;
use super::{Reference, Statistics64, at, has_mask, narrow, wide};
use crate::engine::DoubleBackward;
use crate::engine::ops::DOUBLE_SUMS as SUMS;
use crate::engine::saved::ByChannel;
use crate::{Element, Host, Real, Result, Shape};

/// What flows in an element.
struct Flow {
    xhat: f64,
    /// The derivative of the activation.
    slope: f64,
    g: f64,
    /// `grad_y` times the second derivative, if there is one.
    q: f64,
    v: f64,
    r: f64,
    /// Whether the value is one of those that the statistics are of.
    counts: bool,
}

impl Flow {
    fn terms(&self) -> [f64; SUMS] {
        let Self { xhat, g, q, v, r, counts, .. } = *self;
        let counted = if counts { v } else { 0.0 };
        let of_g = [g, g * xhat, counted, counted * xhat, v * g];
        let of_q = [q, q * xhat, q * xhat * xhat, q * v, q * v * xhat, q * r, q * r * xhat];
        std::array::from_fn(|k| if k < 5 { of_g[k] } else { of_q[k - 5] })
    }
}

/// A derivative of 0 stops infinities, too.
fn times(by: f64, value: f64) -> f64 {
    if by == 0.0 { 0.0 } else { by * value }
}

/// What a gradient of which these are the sums loses on its way through the statistics of n values,
/// `S(q)/n + (xhat - shift) S(q xhat)/n`.
#[derive(Clone, Copy, Default)]
struct Through {
    one: f64,
    xhat: f64,
}

impl Through {
    fn new(sum: f64, dot: f64, n: f64, shift: f64) -> Self {
        Self { one: sum / n - shift * (dot / n), xhat: dot / n }
    }
    fn of(self, xhat: f64) -> f64 {
        self.one + self.xhat * xhat
    }
}

pub(super) fn double_backward<E: Element>(
    engine: &Reference,
    shape: &Shape,
    mut args: DoubleBackward<'_, Host, E>,
) -> Result<()> {
    args.check(engine, shape)?;
    let (forward, saved) = args.saved.made()?;
    let activation = forward.activation;
    let residual = args.residual.filter(|_| forward.residual);
    let batch = forward.batch_statistics || args.total_sums.is_some();
    let m = args.total_sums.map_or(shape.per_channel(), |(_, m)| m).max(1) as f64;
    let mask = forward.mask.zip(args.mask);
    let mask = mask.map(|(rules, places)| Masked::with_rules(shape, rules, places)).transpose()?;
    let channels = shape.channels();
    let ByChannel { mean, mean_rest, invstd, weight, bias } = saved.by_channel();
    for c in 0..channels {
        let [mean, rest, invstd] = [mean, mean_rest, invstd].map(|array| array[c].to_f64());
        let by = Statistics64 { mean, rest, var: f64::NAN, invstd };
        let (weight, bias) = (weight[c].to_f64(), bias[c].to_f64());
        let (v_weight, v_bias) = (at(args.v_weight, c, 0.0), at(args.v_bias, c, 0.0));
        let flow = |i: usize| {
            let of = |tensor: Option<&[E]>| tensor.map_or(0.0, |tensor| wide(tensor[i]));
            let xhat = by.xhat(wide(args.x[i]));
            let z = weight * xhat + bias + of(residual);
            let slope = match &saved.reserve {
                Some(ones) if has_mask(activation) => match ones[i] {
                    1 => 1.0,
                    _ => activation.negative_slope(),
                },
                _ => activation.derivative::<E>(z),
            };
            let second = match activation.is_curved() {
                true => activation.second_derivative::<E>(z),
                false => 0.0,
            };
            let grad_y = wide(args.grad_y[i]);
            let (g, q) = (times(slope, grad_y), times(second, grad_y));
            let counts = mask.as_ref().is_none_or(|mask| mask.keeps(i));
            Flow { xhat, slope, g, q, v: of(args.v_x), r: of(args.v_residual), counts }
        };
        let flows: Vec<(usize, Flow)> = shape.channel(c).map(|i| (i, flow(i))).collect();
        let mut own = [0.0; SUMS];
        for (_, flow) in &flows {
            own.iter_mut().zip(flow.terms()).for_each(|(sum, term)| *sum += term);
        }
        if let Some(sums) = &mut args.sums {
            for (k, sum) in own.into_iter().enumerate() {
                let to = &mut sums[k * channels + c];
                *to = sum + if args.accumulate { *to } else { 0.0 };
            }
            continue;
        }
        let total = args.total_sums.map(|(all, _)| std::array::from_fn(|k| all[k * channels + c]));
        let [g, g_xhat, v, v_xhat, v_g, q, q_xhat, q_xhat_2, q_v, q_v_xhat, q_r, q_r_xhat] =
            total.unwrap_or(own);
        // How many values the statistics are of, and what divided their sums: the mean of xhat over those is 0 but for
        // what that is more.
        let count = match (&mask, args.saved.counted()) {
            (Some(_), Some(counted)) => counted.counts[c],
            (Some(mask), None) => mask.count(shape, c),
            (None, _) => m,
        };
        let more = mask.as_ref().map_or(0.0, |mask| mask.rules.count_eps);
        let n = if count + more > 0.0 { count + more } else { 1.0 };
        let shift = if more > 0.0 { invstd * (by.mean + by.rest) * (more / n) } else { 0.0 };
        let through = |sum, dot, shift| match batch {
            true => Through::new(sum, dot, n, shift),
            false => Through::default(),
        };

        // The gradient of what grad_y became behind the activation.
        let scale = weight * invstd;
        let of_v = match batch {
            true => Through { one: v / n, xhat: (v_xhat - shift * v) / n },
            false => Through::default(),
        };
        let u = |f: &Flow| scale * (f.v - of_v.of(f.xhat)) + v_weight * f.xhat + v_bias + f.r;
        // What flows to z.
        let h = |f: &Flow| times(f.q, u(f));
        let (u_xhat, u_one) = (v_weight - scale * of_v.xhat, v_bias - scale * of_v.one);
        let sum_h = scale * q_v + u_xhat * q_xhat + u_one * q + q_r;
        let dot_h = scale * q_v_xhat + u_xhat * q_xhat_2 + u_one * q_xhat + q_r_xhat;
        let of_h = through(sum_h, dot_h, shift);
        // What flows to xhat, and through invstd.
        let slope_g = if batch { g_xhat / n } else { 0.0 };
        let counted = |f: &Flow, value: f64| if f.counts { value } else { 0.0 };
        let t = |f: &Flow| {
            v_weight * f.g - scale * (counted(f, f.v - of_v.one) * slope_g + f.g * of_v.xhat)
        };
        let sum_t = v_weight * g - scale * ((v - of_v.one * count) * slope_g + g * of_v.xhat);
        let dot_t = v_weight * g_xhat - 2.0 * scale * g_xhat * of_v.xhat;
        let of_t = through(sum_t, dot_t, shift);
        let kappa = v_g - of_v.one * g - of_v.xhat * g_xhat;
        let by_std = if batch { weight * kappa * invstd * invstd / n } else { 0.0 };

        for (i, f) in &flows {
            if let Some(gg_grad_y) = &mut args.gg_grad_y {
                gg_grad_y[*i] = narrow(times(f.slope, u(f)));
            }
            if let Some(gg_x) = &mut args.gg_x {
                let through_t = counted(f, of_t.of(f.xhat) * invstd + by_std * (f.xhat - shift));
                let through_h = counted(f, of_h.of(f.xhat));
                gg_x[*i] = narrow(invstd * t(f) - through_t + scale * (h(f) - through_h));
            }
            if let Some(gg_residual) = &mut args.gg_residual {
                gg_residual[*i] = narrow(h(f));
            }
        }
        let of_weight = invstd * kappa + dot_h;
        let gradients = [(&mut args.gg_weight, of_weight), (&mut args.gg_bias, sum_h)];
        for (gradient, sum) in gradients {
            if let Some(gradient) = gradient {
                let before = if args.accumulate { gradient[c].to_f64() } else { 0.0 };
                gradient[c] = Real::from_f64(before + sum);
            }
        }
    }
    Ok(())
}
