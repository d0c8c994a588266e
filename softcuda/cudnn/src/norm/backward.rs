//! The backward call.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
};

use softlibrary::{Job, List, Memory, Number, Use};

use super::{
    arguments::{
        Mode, Normalization, Operand, Ops, Space, argument, check_epsilon, check_handle, pair,
    },
    compute::{Elements, Statistics, blend, gradients, inverse},
    reserve,
};
use crate::{
    handle::{Activation, Handle, LOG, failed},
    status::{Refusal, Status},
    tensor::Tensor,
};

/// How many sums per mean the workspace of a backward has room for.
pub const SUMS: usize = 4;

#[derive(Debug)]
pub struct Backward {
    pub mode: Mode,
    pub ops: Ops,
    /// Alpha and beta of dx.
    pub data: [f64; 2],
    /// Alpha and beta of the parameters' gradients.
    pub gradients: [f64; 2],
    pub x: Operand,
    pub y: Option<Operand>,
    pub dy: Operand,
    pub dz: Option<Operand>,
    pub dx: Operand,
    pub parameters: Tensor,
    pub scale: u64,
    pub bias: u64,
    pub dscale: u64,
    pub dbias: u64,
    pub epsilon: f64,
    pub saved: [u64; 2],
    pub activation: Option<Activation>,
    pub workspace: Space,
    pub reserve: Space,
}

impl Backward {
    /// Checks everything and queues the work.
    pub fn queue(self, handle: &Handle) -> Result<(), Refusal> {
        let Self { mode, ops, ref x, ref dy, ref dx, .. } = self;
        check_handle(handle)?;
        check_epsilon(self.epsilon)?;
        let y = self.y.as_ref().filter(|_| ops != Ops::Nothing);
        let dz = self.dz.as_ref().filter(|_| ops == Ops::AddActivation);
        if ops != Ops::Nothing && (y.is_none() || self.bias == 0) {
            return Status::BAD_PARAM.because("an activation needs y, its descriptor and the bias");
        }
        if ops == Ops::AddActivation && dz.is_none() {
            return Status::BAD_PARAM.because("dz or its descriptor is null");
        }
        let others = [dy, dx].into_iter().chain(y).chain(dz);
        let others: Vec<_> = others.map(|operand| (operand.name, &operand.tensor)).collect();
        let norm =
            Normalization::new(mode, ops, &x.tensor, &others, &self.parameters, self.activation)?;
        let (of_data, of_gradients) = (self.data, self.gradients);
        if ops != Ops::Nothing && of_data != [1.0, 0.0] {
            return Status::NOT_SUPPORTED
                .because(format!("an activation with alpha and beta of {of_data:?}"));
        }
        let saved = pair("saved mean and inverse variance", self.saved)?;
        if mode == Mode::Persistent && saved.is_none() {
            return Status::BAD_PARAM.because("the persistent mode needs the saved statistics");
        }
        let others: Vec<_> = others.iter().map(|(_, tensor)| *tensor).collect();
        let is_plain =
            ops == Ops::Nothing && self.workspace.address == 0 && self.workspace.bytes == 0;
        let has_spaces = norm.is_semi_persistent(&others) && !is_plain;
        if has_spaces {
            self.workspace.check("the workspace", norm.workspace(SUMS))?;
            self.reserve.check("the reserve space", reserve::bytes(&norm))?;
        }

        let mut job = Job::default();
        let (number, parameter) = (norm.number, norm.parameter);
        let (count, groups) = (norm.x.len(), norm.groups());
        let written = |beta: f64| if beta == 0.0 { Use::Write } else { Use::Update };
        let mut tensor = |how: Use, operand: &Operand| {
            let slot = argument(&mut job, how, operand.name, operand.address, number, count)?;
            Ok(Elements::new(slot, &operand.tensor))
        };
        let (x, dy) = (tensor(Use::Read, x)?, tensor(Use::Read, dy)?);
        let y = y.map(|y| tensor(Use::Read, y)).transpose()?;
        let dx = tensor(written(of_data[1]), dx)?;
        let dz = dz.map(|dz| tensor(Use::Write, dz)).transpose()?;
        let mut per_group = |how: Use, name: &str, address: u64| {
            argument(&mut job, how, name, address, parameter, groups)
        };
        let scale = per_group(Use::Read, "scale", self.scale)?;
        let of_beta = written(of_gradients[1]);
        let dscale = per_group(of_beta, "the gradient of scale", self.dscale)?;
        let dbias = per_group(of_beta, "the gradient of bias", self.dbias)?;
        let saved = match saved {
            None => None,
            Some([mean, inverse]) => Some([
                per_group(Use::Read, "saved mean", mean)?,
                per_group(Use::Read, "saved inverse variance", inverse)?,
            ]),
        };
        let space = match has_spaces {
            true => Some(argument(
                &mut job,
                Use::Read,
                "the reserve space",
                self.reserve.address,
                Number::Byte,
                reserve::bytes(&norm),
            )?),
            false => None,
        };
        if has_spaces {
            let Space { address, bytes } = self.workspace;
            handle.queue.spoil(handle.stream, address, bytes).map_err(failed)?;
        }
        let (overflow, epsilon) = (Arc::clone(&handle.overflow), self.epsilon);
        let caller = thread::current().id();
        let run = move |memory: &mut Memory<'_>| {
            let values = x.load(memory);
            let [mean, invstd] = match saved {
                Some(saved) => saved.map(|slot| memory.load(slot)),
                None => {
                    let statistics = Statistics::of(&norm, &values);
                    [statistics.mean, inverse(&statistics.var, epsilon)]
                }
            };
            let mut gradient = dy.load(memory);
            if let Some(space) = space {
                let passed = reserve::read(&norm, memory.bytes(space));
                let wrong = match (&passed, &y) {
                    (None, _) => Some("the reserve space is not that of a forward like this"),
                    (Some(passed), Some(y)) => {
                        let is_zero = |y: f64| y == 0.0;
                        let mut pairs = y.load(memory).into_iter().zip(passed);
                        let differs = pairs.any(|(y, passed)| is_zero(y) == *passed);
                        differs.then_some("y is not what the forward of the reserve space wrote")
                    }
                    _ => None,
                };
                if let Some(wrong) = wrong {
                    let message = format!("backward: {wrong}");
                    LOG.note(caller, List::Faults, message);
                    gradient.fill(f64::NAN);
                }
                let passed = passed.unwrap_or_else(|| vec![true; gradient.len()]);
                let stopped = gradient.iter_mut().zip(&passed).filter(|(_, passed)| !**passed);
                stopped.for_each(|(gradient, _)| *gradient = 0.0);
            }
            let weight = memory.load(scale);
            let [by_x, by_scale, by_bias] =
                gradients(&norm, &values, &gradient, [&mean, &invstd, &weight]);
            let sums = by_scale.iter().chain(&by_bias);
            if norm.can_overflow() && sums.into_iter().any(|sum| !(*sum as f32).is_finite()) {
                overflow.store(true, Ordering::Relaxed);
            }
            let old = dx.load(memory);
            dx.store(memory, &blend(of_data, &by_x, &old));
            if let Some(dz) = &dz {
                dz.store(memory, &gradient);
            }
            for (slot, new) in [(dscale, by_scale), (dbias, by_bias)] {
                let old = memory.load(slot);
                memory.store(slot, &blend(of_gradients, &new, &old));
            }
        };
        handle.queue.push(handle.stream, &job, run).map_err(failed)
    }

    /// What the query of the workspace's size answers.
    pub fn workspace_bytes(norm: &Normalization, others: &[&Tensor]) -> usize {
        if norm.is_semi_persistent(others) { norm.workspace(SUMS) } else { 0 }
    }
}
