//! The four operations on tensors, from the checks of their arguments to the rounds over tiles.
use super::moments::Moments;
use super::plan::Plan;
use super::simd::vectorized;
use super::tiles::{Elements, for_each_tile};
use super::{Cpu, Output, Parameters, Table, TableMut, mask, update};
use crate::engine::saved::{Buffers, Opened};
use crate::engine::{Activation, Backward, ForwardEval, ForwardTrain, Input, Statistics, Stats};
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
        let (n, eps) = (shape.channels(), args.eps);
        self.with_workspace(Table::<E::Acc>::LEN * n, |memory| {
            let statistics = args.statistics;
            vectorized(
                #[inline(always)]
                |_| match statistics {
                    Statistics::Given { mean, var } => {
                        let (mean, var) = (&mean[..n], &var[..n]);
                        given(memory, n, parameters, saved.as_deref_mut(), |c| {
                            (mean[c], E::Acc::default(), invstd(var[c].to_f64(), eps))
                        });
                    }
                    Statistics::Record(record) => {
                        given(memory, n, parameters, saved.as_deref_mut(), |c| {
                            let moments = Moments::of_record(record, n, c);
                            let (mean, rest) = moments.mean_and_rest();
                            (mean, rest, invstd(record[2 * n + c], eps))
                        });
                    }
                },
            );
            let table = Table::new(memory, 0..n);
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
        let (record, count) = (args.record, shape.channels());
        if shape.is_empty() {
            record.fill(0.0);
        } else {
            self.moments(shape, args.x, |channels, moments| {
                channels.enumerate().for_each(|(k, c)| moments.get(k).write(record, count, c));
            });
        }
        record[3 * count] = shape.per_channel() as f64;
        Ok(())
    }
}

/// The coefficients of `n` channels, and what is saved, by statistics that are given: mean, what
/// rounding left of it, invstd.
#[inline(always)]
fn given<A: Real>(
    memory: &mut [f64],
    n: usize,
    parameters: Parameters<'_, A>,
    saved: Option<&mut Buffers<Host, A>>,
    of: impl Fn(usize) -> (A, A, A),
) {
    if let Some(saved) = saved {
        parameters.save(saved);
        let (mean, rest) = (&mut saved.mean[..n], &mut saved.mean_rest[..n]);
        let invstd = &mut saved.invstd[..n];
        for c in 0..n {
            (mean[c], rest[c], invstd[c]) = of(c);
        }
    }
    TableMut::new(memory, 0..n).forward(parameters, of);
}

#[inline(always)]
fn invstd<A: Real>(var: f64, eps: f64) -> A {
    A::from_f64(1.0 / (var + eps).sqrt())
}
