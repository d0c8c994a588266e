//! The four operations on tensors, from the checks of their arguments to the rounds over tiles.
use super::coefs::Strip;
use super::plan::Plan;
use super::simd::vectorized;
use super::tiles::{Elements, for_each_tile};
use super::{Cpu, Output, Parameters, mask, update};
use crate::engine::saved::Opened;
use crate::engine::{Activation, Backward, ForwardEval, ForwardTrain, Input, Stats};
use crate::{Element, Host, Real, Result, Shape};
use std::ops::Range;

impl Cpu {
    pub(super) fn forward_train_of<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, Host, E>,
    ) -> Result<()> {
        args.check(shape)?;
        let saved = args.open(self, shape)?.map(Opened::filled);
        let parameters = Parameters { weight: args.weight, bias: args.bias };
        let output = Output {
            x: Some(args.x),
            residual: args.residual,
            relu: args.activation == Activation::Relu,
        };
        let ForwardTrain { x, eps, y, .. } = args;
        self.train(shape, x, output, parameters, eps, y, saved, |channels, moments| {
            update(&mut args.running, channels, |k| moments.get(k));
        });
        Ok(())
    }

    pub(super) fn forward_eval_of<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardEval<'_, Host, E>,
    ) -> Result<()> {
        args.check(shape)?;
        let mut saved = args.open(self, shape)?.map(Opened::filled);
        let plan = Plan::once(shape);
        let parameters = Parameters { weight: args.weight, bias: args.bias };
        let output = Output {
            x: match args.x {
                Input::View(x) => Some(x),
                Input::InPlace => None,
            },
            residual: args.residual,
            relu: args.activation == Activation::Relu,
        };
        self.with_workspace(shape.channels(), |invstds| {
            for (invstd, var) in invstds.iter_mut().zip(args.var) {
                *invstd = 1.0 / (var.to_f64() + args.eps).sqrt();
            }
            if let Some(saved) = &mut saved {
                saved.mean.copy_from_slice(args.mean);
                saved.mean_rest.fill(E::Acc::default());
                let invstds = invstds.iter().map(|v| E::Acc::from_f64(*v));
                saved.invstd.iter_mut().zip(invstds).for_each(|(saved, v)| *saved = v);
            }
            let invstds = &*invstds;
            let outputs = (Elements::new(args.y), mask(&plan, output.masks(), saved));
            for_each_tile(&plan, false, outputs, |tile, (y, mask)| {
                output.write(
                    &plan,
                    &tile,
                    &|channels: Range<usize>, strip: &mut Strip<E::Acc>| {
                        let mean = &args.mean[channels.clone()];
                        let invstd = &invstds[channels.clone()];
                        vectorized(
                            #[inline(always)]
                            |_| {
                                parameters.coefs(
                                    channels,
                                    #[inline(always)]
                                    |k| (mean[k], Real::from_f64(0.0), Real::from_f64(invstd[k])),
                                    strip,
                                );
                            },
                        );
                    },
                    y,
                    mask,
                );
            });
        });
        Ok(())
    }

    pub(super) fn backward_of<E: Element>(
        &self,
        shape: &Shape,
        args: Backward<'_, Host, E>,
    ) -> Result<()> {
        args.check(self, shape)?;
        let (forward, saved) = args.saved.made()?;
        self.gradients(shape, forward, saved, args);
        Ok(())
    }

    pub(super) fn stats_of<E: Element>(
        &self,
        shape: &Shape,
        args: Stats<'_, Host, E>,
    ) -> Result<()> {
        args.check(shape)?;
        let (mean, rest) = args.record.split_at_mut(shape.channels());
        if shape.is_empty() {
            mean.fill(Real::from_f64(0.0));
            rest.fill(Real::from_f64(0.0));
        } else {
            self.moments(shape, args.x, |channels, moments| {
                for (k, c) in channels.enumerate() {
                    let moments = moments.get(k);
                    (mean[c], rest[c]) =
                        (Real::from_f64(moments.mean()), Real::from_f64(moments.var()));
                }
            });
        }
        rest[shape.channels()] = Real::from_f64(shape.per_channel() as f64);
        Ok(())
    }
}
