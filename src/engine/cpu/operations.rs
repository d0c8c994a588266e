//! The four operations on tensors, from the checks of their arguments to the rounds over tiles.
use super::extremes::{self, Extreme};
use super::moments::Moments;
use super::plan::Plan;
use super::simd::vectorized;
use super::tiles::{Elements, for_each_tile, numbers_mut};
use super::{Cpu, Output, Parameters, Table, TableMut, mask, update};
use crate::engine::saved::{Buffers, Opened};
use crate::engine::{Activation, Backward, ForwardEval, ForwardTrain, Input, Statistics, Stats};
use crate::{Element, Error, Host, Real, Result, Shape};

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
        let output =
            Output { x: Some(args.x), residual: args.residual, relu: relu(args.activation)? };
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
            relu: relu(args.activation)?,
        };
        let (n, eps, y) = (shape.channels(), args.eps, args.y);
        self.with_workspace((1 + Table::<E::Acc>::LEN) * n, |memory| {
            let (invstds, memory) = memory.split_at_mut(n);
            let (invstds, statistics) = (&mut numbers_mut(invstds)[..n], args.statistics);
            let extremes = vectorized(
                #[inline(always)]
                |_| match statistics {
                    Statistics::Given { mean, var } => {
                        let (mean, var) = (&mean[..n], &var[..n]);
                        for (invstd, var) in invstds.iter_mut().zip(var) {
                            *invstd = Real::from_f64(1.0 / (var.to_f64() + eps).sqrt());
                        }
                        given(
                            memory,
                            parameters,
                            saved.as_deref_mut(),
                            invstds,
                            #[inline(always)]
                            move |c| (mean[c], E::Acc::default()),
                        )
                    }
                    Statistics::Record(record) => {
                        for (invstd, var) in invstds.iter_mut().zip(&record[2 * n..3 * n]) {
                            *invstd = Real::from_f64(1.0 / (var + eps).sqrt());
                        }
                        given(
                            memory,
                            parameters,
                            saved.as_deref_mut(),
                            invstds,
                            #[inline(always)]
                            move |c| Moments::of_record(record, n, c).mean_and_rest(),
                        )
                    }
                },
            );
            let table = Table::new(memory, 0..n);
            // In place, before the loops overwrite it.
            let x = extremes::held(&extremes, shape, output.x.unwrap_or(y));
            let masks = output.masks();
            let of_mask = mask(&plan, masks, saved.as_deref_mut()).map(Elements::mask);
            for_each_tile(&plan, false, (Elements::new(&mut *y), of_mask), |tile, (y, mask)| {
                output.write(&plan, &tile, &table, y, mask);
            });
            output.write_apart(shape, &plan, &extremes, x, y, mask(&plan, masks, saved));
        });
        Ok(())
    }

    pub(super) fn backward_of<E: Element>(
        &self,
        shape: &Shape,
        mut args: Backward<'_, Host, E>,
    ) -> Result<()> {
        args.check(self, shape)?;
        let (forward, saved) = args.saved.made()?;
        self.gradients(shape, forward, saved, args);
        Ok(())
    }

    pub(super) fn stats_of<E: Element>(
        &self,
        shape: &Shape,
        mut args: Stats<'_, Host, E>,
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

/// Whether the activation is a ReLU; the others are not computed here.
fn relu(activation: Activation) -> Result<bool> {
    match activation {
        Activation::Identity => Ok(false),
        Activation::Relu => Ok(true),
        _ => Err(Error::Unsupported { engine: "cpu", reason: format!("no {activation}") }),
    }
}

/// The coefficients of all channels, and what is saved, by statistics that are given: invstd, and by
/// `mean` the mean and what rounding left of it. What comes back are the channels that those are not
/// enough for.
#[inline(always)]
fn given<A: Real>(
    memory: &mut [f64],
    parameters: Parameters<'_, A>,
    saved: Option<&mut Buffers<Host, A>>,
    invstd: &[A],
    mean: impl Fn(usize) -> (A, A) + Copy,
) -> Vec<Extreme> {
    let n = invstd.len();
    if let Some(saved) = saved {
        parameters.save(saved);
        saved.invstd.copy_from_slice(invstd);
        let (means, rests) = (&mut saved.mean[..n], &mut saved.mean_rest[..n]);
        for c in 0..n {
            (means[c], rests[c]) = mean(c);
        }
    }
    let extremes = Extreme::among(
        0..n,
        parameters,
        #[inline(always)]
        move |c| (mean(c).0, invstd[c]),
        |c| mean(c).1,
    );
    TableMut::new(memory, 0..n).forward(
        parameters,
        #[inline(always)]
        move |c| {
            let (mean, rest) = mean(c);
            (mean, rest, invstd[c])
        },
    );
    extremes
}
