//! The four operations on tensors, from the checks of their arguments to the rounds over tiles.
use super::plan::Plan;
use super::simd::vectorized;
use super::tiles::{Elements, for_each_tile};
use super::{Cpu, Output, Parameters, Table, TableMut, mask, update};
use crate::engine::saved::Opened;
use crate::engine::{Activation, Backward, ForwardEval, ForwardTrain, Input, Stats};
use crate::{Element, Host, Real, Result, Shape};

impl Cpu {
    pub(super) fn forward_train_of<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, Host, E>,
    ) -> Result<()> {
        args.check(&Host, shape)?;
        let mut saved = args.open(self, shape)?.map(Opened::filled);
        let parameters = Parameters { weight: args.weight, bias: args.bias };
        saved.iter_mut().for_each(|saved| parameters.save(saved));
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
        args.check(&Host, shape)?;
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
        let channels = 0..shape.channels();
        let (mean, var) = (&args.mean[channels.clone()], &args.var[channels.clone()]);
        if let Some(saved) = &mut saved {
            parameters.save(saved);
            saved.mean.copy_from_slice(mean);
            saved.mean_rest.fill(E::Acc::default());
            let invstds = saved.invstd.iter_mut().zip(var);
            invstds.for_each(|(saved, var)| *saved = invstd(*var, args.eps));
        }
        self.with_workspace(Table::<E::Acc>::LEN * channels.len(), |memory| {
            vectorized(
                #[inline(always)]
                |_| {
                    TableMut::new(memory, channels.clone()).forward(
                        parameters,
                        #[inline(always)]
                        |c| (mean[c], Real::from_f64(0.0), invstd(var[c], args.eps)),
                    );
                },
            );
            let table = Table::new(memory, channels);
            let outputs = (Elements::new(args.y), mask(&plan, output.masks(), saved));
            for_each_tile(&plan, false, outputs, |tile, (y, mask)| {
                output.write(&plan, &tile, &table, y, mask);
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
        args.check(&Host, shape)?;
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

#[inline(always)]
fn invstd<A: Real>(var: A, eps: f64) -> A {
    A::from_f64(1.0 / (var.to_f64() + eps).sqrt())
}
