//! The definition of batch normalization, in f64, one channel at a time. Never made faster.
use super::check::{check_values_per_channel, total_count};
use super::saved::{Buffers, ByChannel, Opened};
use super::{Activation, Backward, Derivative, Engine, ForwardEval, ForwardTrain, Input};
use super::{
    Constrain, DoubleBackward, MergeStats, OptimizerStep, Regularize, Request, Statistics, Stats,
};
use super::{LayerNormBackward, LayerNormForward};
use super::{Renormalize, RenormalizeBackward};
use crate::{Element, Host, Mask, Real, Result, Shape};
use statistics::{Moments, Statistics64};

mod double_backward;
mod layer_norm;
mod masked;
mod parameters;
mod statistics;

type Train<'a, E> = ForwardTrain<'a, Host, E>;
type Eval<'a, E> = ForwardEval<'a, Host, E>;

/// What is right: f64 throughout, rounded once at the end. Slow.
///
/// Its reserve space is one byte per element, in the elements' order, for activations whose derivative
/// has two values: 1 where it is 1.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

impl Engine for Reference {
    type Memory = Host;

    fn name(&self) -> &'static str {
        "reference"
    }
    fn memory(&self) -> &Host {
        &Host
    }
    fn reserve_len(&self, shape: &Shape, request: Request) -> usize {
        if has_mask(request.activation) { shape.len() } else { 0 }
    }

    fn forward_train<E: Element>(&self, shape: &Shape, mut args: Train<'_, E>) -> Result<()> {
        args.check(&Host, shape)?;
        let saved = args.open(self, shape)?.map(Opened::filled);
        let ForwardTrain { x, residual, weight, bias, activation, eps, one_value, y, .. } = args;
        let mut running = args.running;
        let x_view = Input::View(x);
        let mut output = Output { x: x_view, residual, weight, bias, activation, y, saved };
        let mask = args.mask.map(|mask| masked::Masked::new(shape, &mask)).transpose()?;
        for c in 0..shape.channels() {
            if let Some(mask) = &mask {
                let (by, count, var_over) = mask.statistics(shape, c, x, eps);
                output.channel(shape, c, by);
                if let Some(running) = &mut running {
                    let rules = (one_value, mask.rules.all_masked);
                    running.update_masked(c, count, by.mean + by.rest, var_over, rules);
                }
                continue;
            }
            let by = Statistics64::of_batch(shape, c, x, eps);
            output.channel(shape, c, by);
            if let Some(running) = &mut running {
                let m = shape.per_channel() as f64;
                running.update(c, m, by.mean + by.rest, |over| by.var * m / over, one_value);
            }
        }
        Ok(())
    }

    fn forward_eval<E: Element>(&self, shape: &Shape, mut args: Eval<'_, E>) -> Result<()> {
        args.check(&Host, shape)?;
        let saved = args.open(self, shape)?.map(Opened::filled);
        let ForwardEval { x, residual, weight, bias, activation, statistics, eps, y, .. } = args;
        let mut output = Output { x, residual, weight, bias, activation, y, saved };
        let channels = shape.channels();
        for c in 0..channels {
            let (mean, rest, var) = match statistics {
                Statistics::Given { mean, var } => (mean[c].to_f64(), 0.0, var[c].to_f64()),
                Statistics::Record(r) => (r[c], r[channels + c], r[2 * channels + c]),
            };
            output.channel(shape, c, Statistics64::given(mean, rest, var, eps));
        }
        Ok(())
    }

    fn backward<E: Element>(&self, shape: &Shape, mut args: Backward<'_, Host, E>) -> Result<()> {
        args.check(self, shape)?;
        let (forward, saved) = args.saved.made()?;
        let (channels, m) = (shape.channels(), shape.per_channel() as f64);
        let (activation, residual) =
            (forward.activation, args.residual.filter(|_| forward.residual));
        let by_channel = saved.by_channel();
        let mask = forward.mask.zip(args.mask);
        let mask = mask.map(|(rules, places)| masked::Masked::with_rules(shape, rules, places));
        let mask = mask.transpose()?;
        for c in 0..channels {
            let ByChannel { mean, mean_rest, invstd, weight, bias } = by_channel;
            let [mean, rest, invstd] = [mean, mean_rest, invstd].map(|array| array[c].to_f64());
            let by = Statistics64 { mean, rest, var: f64::NAN, invstd };
            let xhat = |i: usize| by.xhat(wide(args.x[i]));
            let (weight, bias) = (weight[c].to_f64(), bias[c].to_f64());
            let derivative = |i: usize| match &saved.reserve {
                Some(ones) if has_mask(activation) => {
                    if ones[i] == 1 {
                        1.0
                    } else {
                        activation.negative_slope()
                    }
                }
                _ => {
                    let residual = residual.map_or(0.0, |r| wide(r[i]));
                    activation.derivative::<E>(weight * xhat(i) + bias + residual)
                }
            };
            let g = |i: usize| {
                let grad_y = match (args.grad_y, &args.grad_x) {
                    (Input::View(grad_y), _) => wide(grad_y[i]),
                    (Input::InPlace, grad_x) => grad_x.as_ref().map_or(0.0, |g| wide(g[i])),
                };
                // A ReLU stops infinities, too.
                match derivative(i) {
                    0.0 => 0.0,
                    derivative => grad_y * derivative,
                }
            };
            let g: Vec<(usize, f64)> = shape.channel(c).map(|i| (i, g(i))).collect();
            let sum_g: f64 = g.iter().map(|(_, g)| g).sum();
            let sum_g_xhat: f64 = g.iter().map(|&(i, g)| g * xhat(i)).sum();
            // What flows through the statistics; nothing where they are constants.
            let means = match args.total_sums {
                Some(sums) => {
                    let m = sums[2 * channels].to_f64();
                    Some((sums[c].to_f64() / m, sums[channels + c].to_f64() / m))
                }
                None => forward.batch_statistics.then_some((sum_g / m, sum_g_xhat / m)),
            };
            let count = match args.saved.counted() {
                Some(counted) => counted.counts[c],
                None => mask.as_ref().map_or(m, |mask| mask.count(shape, c)),
            };
            let totals = match args.total_sums {
                Some(sums) => (sums[c].to_f64(), sums[channels + c].to_f64()),
                None => (sum_g, sum_g_xhat),
            };
            for (i, g) in g {
                if let Some(grad_x) = &mut args.grad_x {
                    let means = match &mask {
                        Some(mask) => mask.through(i, count, by, totals),
                        None => means,
                    };
                    let centered = means.map_or(g, |(g1, g2)| g - g1 - xhat(i) * g2);
                    grad_x[i] = narrow(centered * invstd * weight);
                }
                if let Some(grad_residual) = &mut args.grad_residual {
                    grad_residual[i] = narrow(g);
                }
            }
            let gradients = [(&mut args.grad_weight, sum_g_xhat), (&mut args.grad_bias, sum_g)];
            for (gradient, sum) in gradients {
                if let Some(gradient) = gradient {
                    let before = if args.accumulate { gradient[c].to_f64() } else { 0.0 };
                    gradient[c] = Real::from_f64(before + sum);
                }
            }
            if let Some(sums) = &mut args.sums {
                (sums[c], sums[channels + c]) = (Real::from_f64(sum_g), Real::from_f64(sum_g_xhat));
                sums[2 * channels] = Real::from_f64(m);
            }
        }
        Ok(())
    }

    fn double_backward<E: Element>(
        &self,
        shape: &Shape,
        args: DoubleBackward<'_, Host, E>,
    ) -> Result<()> {
        double_backward::double_backward(self, shape, args)
    }

    fn stats<E: Element>(&self, shape: &Shape, mut args: Stats<'_, Host, E>) -> Result<()> {
        args.check(&Host, shape)?;
        let channels = shape.channels();
        let mask = args.mask.as_ref().map(|mask| masked::Masked::new(shape, mask)).transpose()?;
        for c in 0..channels {
            // No invstd is wanted.
            let Statistics64 { mean, rest, var, .. } = match &mask {
                Some(mask) => mask.statistics(shape, c, args.x, 1.0).0,
                None => Statistics64::of_batch(shape, c, args.x, 1.0),
            };
            args.record[c] = mean;
            args.record[channels + c] = rest;
            args.record[2 * channels + c] = var;
        }
        args.record[3 * channels] = match &mask {
            Some(mask) => mask.rules.recorded(mask.count(shape, 0)),
            None => shape.per_channel() as f64,
        };
        Ok(())
    }

    fn masked_stats<E: Element>(
        &self,
        shape: &Shape,
        x: &[E],
        mask: Mask<'_, Host>,
        _: f64,
        to: &mut [f64],
    ) -> Result<()> {
        masked::stats(shape, x, &mask, to)
    }

    fn merge_stats<P: Real>(&self, mut args: MergeStats<'_, Host, P>) -> Result<()> {
        let channels = args.check(&Host)?;
        let parts = || args.records.chunks_exact(3 * channels + 1);
        let total = total_count(parts().map(|part| part[3 * channels]).enumerate())?;
        check_values_per_channel("records", total as usize, args.one_value)?;
        for c in 0..channels {
            let parts = || parts().filter(|part| part[3 * channels] > 0.0);
            // Means count from the first part's, so that large ones keep their digits.
            let base = parts().next().map_or(0.0, |part| part[c]);
            let base = if base.is_finite() { base } else { 0.0 };
            let part = |p: &[f64]| {
                (p[c] - base + p[channels + c], p[2 * channels + c], p[3 * channels] / total)
            };
            let parts = || parts().map(part);
            // Chan's formula: the variance within the parts plus that between them.
            let offset = parts().map(|(mean, _, share)| share * mean).sum::<f64>();
            let var = parts().map(|(mu, var, share)| share * (var + (mu - offset).powi(2)));
            let (mean, var) = (base + offset, var.sum());
            args.record[c] = mean;
            args.record[channels + c] = or_zero(base - mean + offset);
            args.record[2 * channels + c] = var;
            if let Some(running) = &mut args.running {
                running.update(c, total, mean, |over| var * total / over, args.one_value);
            }
        }
        args.record[3 * channels] = total;
        Ok(())
    }

    fn layer_norm<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormForward<'_, Host, E>,
    ) -> Result<()> {
        layer_norm::forward(self, shape, args)
    }
    fn layer_norm_backward<E: Element>(
        &self,
        shape: &Shape,
        args: LayerNormBackward<'_, Host, E>,
    ) -> Result<()> {
        layer_norm::backward(self, shape, args)
    }

    fn renormalize<P: Real>(&self, mut args: Renormalize<'_, Host, P>) -> Result<()> {
        args.check(&Host)?;
        args.on_host();
        Ok(())
    }
    fn renormalize_backward<P: Real>(
        &self,
        mut args: RenormalizeBackward<'_, Host, P>,
    ) -> Result<()> {
        args.check(&Host)?;
        args.on_host();
        Ok(())
    }

    fn optimizer_step<P: Real>(&self, mut args: OptimizerStep<'_, Host, P>) -> Result<()> {
        args.check(&Host)?;
        parameters::optimizer_step(args);
        Ok(())
    }
    fn regularize<P: Real>(&self, mut args: Regularize<'_, Host, P>) -> Result<()> {
        args.check(&Host)?;
        parameters::regularize(args);
        Ok(())
    }
    fn constrain<P: Real>(&self, mut args: Constrain<'_, Host, P>) -> Result<()> {
        args.check(&Host)?;
        parameters::constrain(args);
        Ok(())
    }
}

/// What both forwards do once they have mean and variance.
struct Output<'a, E: Element> {
    x: Input<&'a [E]>,
    residual: Option<&'a [E]>,
    weight: Option<&'a [E::Acc]>,
    bias: Option<&'a [E::Acc]>,
    activation: Activation,
    y: &'a mut [E],
    saved: Option<&'a mut Buffers<Host, E::Acc>>,
}

impl<E: Element> Output<'_, E> {
    fn channel(&mut self, shape: &Shape, c: usize, by: Statistics64) {
        let (weight, bias) = (at(self.weight, c, 1.0), at(self.bias, c, 0.0));
        for i in shape.channel(c) {
            let x = wide(if let Input::View(x) = self.x { x[i] } else { self.y[i] });
            let z = weight * by.xhat(x) + bias;
            // None is not 0, which would take its sign from a -0.
            let z = self.residual.map_or(z, |r| z + wide(r[i]));
            self.y[i] = narrow(self.activation.value(z));
            let ones = self.saved.as_mut().filter(|_| has_mask(self.activation));
            if let Some(ones) = ones.and_then(|saved| saved.reserve.as_mut()) {
                ones[i] = self.activation.is_one::<E>(z).into();
            }
        }
        if let Some(saved) = &mut self.saved {
            let saved = saved.by_channel_mut();
            saved.mean[c] = Real::from_f64(by.mean);
            saved.mean_rest[c] =
                Real::from_f64(or_zero(by.mean - saved.mean[c].to_f64() + by.rest));
            saved.invstd[c] = Real::from_f64(by.invstd);
            (saved.weight[c], saved.bias[c]) = (Real::from_f64(weight), Real::from_f64(bias));
        }
    }
}

/// Whether the derivative has two values.
fn has_mask(activation: Activation) -> bool {
    activation.derivative_from(true) == Derivative::FromMask
}
fn or_zero(rest: f64) -> f64 {
    if rest.is_finite() { rest } else { 0.0 }
}
fn wide<E: Element>(x: E) -> f64 {
    x.widen().to_f64()
}
fn narrow<E: Element>(v: f64) -> E {
    E::narrow(E::Acc::from_f64(v))
}
fn at<P: Real>(parameter: Option<&[P]>, c: usize, absent: f64) -> f64 {
    parameter.map_or(absent, |p| p[c].to_f64())
}
