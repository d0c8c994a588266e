//! Forward calls: for training, and for inference.

use std::sync::{Arc, atomic::Ordering};

use softlibrary::{Job, Memory, Use};

use super::{
    arguments::{
        Mode, Normalization, Operand, Ops, Space, argument, check_epsilon, check_handle, pair,
    },
    compute::{Elements, Statistics, blend, inverse, normalize, passes},
    reserve,
};
use crate::{
    handle::{Activation, Handle, failed},
    status::{Refusal, Status},
    tensor::Tensor,
};

/// How many sums per mean the workspace of a forward has room for.
pub const SUMS: usize = 2;

#[derive(Debug)]
pub struct Training {
    pub mode: Mode,
    pub ops: Ops,
    /// Alpha and beta.
    pub blend: [f64; 2],
    pub x: Operand,
    pub z: Option<Operand>,
    pub y: Operand,
    pub parameters: Tensor,
    pub scale: u64,
    pub bias: u64,
    pub factor: f64,
    pub running: [u64; 2],
    pub epsilon: f64,
    pub saved: [u64; 2],
    pub activation: Option<Activation>,
    pub workspace: Space,
    pub reserve: Space,
}

impl Training {
    /// Checks everything and queues the work.
    pub fn queue(self, handle: &Handle) -> Result<(), Refusal> {
        let Self { mode, ops, blend: factors, ref x, ref y, .. } = self;
        check_handle(handle)?;
        check_epsilon(self.epsilon)?;
        let z = self.z.as_ref().filter(|_| ops == Ops::AddActivation);
        if ops == Ops::AddActivation && z.is_none() {
            return Status::BAD_PARAM.because("z or its descriptor is null");
        }
        let others: Vec<_> = [y].into_iter().chain(z).map(|o| (o.name, &o.tensor)).collect();
        let norm =
            Normalization::new(mode, ops, &x.tensor, &others, &self.parameters, self.activation)?;
        if ops != Ops::Nothing && factors != [1.0, 0.0] {
            return Status::NOT_SUPPORTED
                .because(format!("an activation with alpha and beta of {factors:?}"));
        }
        let running = pair("running mean and variance", self.running)?;
        let saved = pair("saved mean and inverse variance", self.saved)?;
        if running.is_some() && !(0.0..=1.0).contains(&self.factor) {
            return Status::BAD_PARAM.because(format!("the average's factor is {}", self.factor));
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
        let of_y = if factors[1] == 0.0 { Use::Write } else { Use::Update };
        let mut tensor = |how: Use, operand: &Operand| {
            let slot = argument(&mut job, how, operand.name, operand.address, number, count)?;
            Ok(Elements::new(slot, &operand.tensor))
        };
        let (x, y) = (tensor(Use::Read, x)?, tensor(of_y, y)?);
        let z = z.map(|z| tensor(Use::Read, z)).transpose()?;
        let mut per_group = |how: Use, name: &str, address: u64| {
            argument(&mut job, how, name, address, parameter, groups)
        };
        let scale = per_group(Use::Read, "scale", self.scale)?;
        let bias = per_group(Use::Read, "bias", self.bias)?;
        let mut both = |how: Use, addresses: Option<[u64; 2]>, name: &str| {
            let Some([a, b]) = addresses else { return Ok(None) };
            Ok(Some([per_group(how, name, a)?, per_group(how, name, b)?]))
        };
        let running = both(Use::Update, running, "running statistics")?;
        let saved = both(Use::Write, saved, "saved statistics")?;
        let space = match has_spaces {
            true => Some(argument(
                &mut job,
                Use::Write,
                "the reserve space",
                self.reserve.address,
                softlibrary::Number::Byte,
                reserve::bytes(&norm),
            )?),
            false => None,
        };
        if has_spaces {
            let Space { address, bytes } = self.workspace;
            handle.queue.spoil(handle.stream, address, bytes).map_err(failed)?;
        }
        let (overflow, epsilon, factor) = (Arc::clone(&handle.overflow), self.epsilon, self.factor);
        let run = move |memory: &mut Memory<'_>| {
            let values = x.load(memory);
            let statistics = Statistics::of(&norm, &values);
            let mut invstd = inverse(&statistics.var, epsilon);
            if norm.can_overflow() {
                for (group, invstd) in invstd.iter_mut().enumerate() {
                    let sums = [statistics.mean[group], statistics.var[group]];
                    if sums.iter().any(|sum| !(*sum as f32).is_finite()) {
                        overflow.store(true, Ordering::Relaxed);
                        *invstd = f64::NAN;
                    }
                }
            }
            let (weight, shift) = (memory.load(scale), memory.load(bias));
            let mut result =
                normalize(&norm, &values, [&statistics.mean, &invstd, &weight, &shift]);
            if let Some(z) = &z {
                result.iter_mut().zip(z.load(memory)).for_each(|(result, z)| *result += z);
            }
            let mut passed = Vec::new();
            if norm.ops != Ops::Nothing {
                result.iter_mut().for_each(|value| *value = norm.number.round(*value));
                passed = result.iter().map(|value| passes(&norm, *value)).collect();
                let dropped = result.iter_mut().zip(&passed).filter(|(_, passed)| !**passed);
                dropped.for_each(|(value, _)| *value = 0.0);
            }
            let old = y.load(memory);
            y.store(memory, &blend(factors, &result, &old));
            if let Some([mean, var]) = running {
                let average = |new: &[f64], old: &[f64]| blend([factor, 1.0 - factor], new, old);
                let (old_mean, old_var) = (memory.load(mean), memory.load(var));
                memory.store(mean, &average(&statistics.mean, &old_mean));
                memory.store(var, &average(&statistics.unbiased(), &old_var));
            }
            if let Some([mean, inverse]) = saved {
                memory.store(mean, &statistics.mean);
                memory.store(inverse, &invstd);
            }
            if let Some(space) = space {
                reserve::write(&norm, &passed, memory.bytes(space));
            }
        };
        handle.queue.push(handle.stream, &job, run).map_err(failed)
    }
}

#[derive(Debug)]
pub struct Inference {
    pub mode: Mode,
    /// Alpha and beta.
    pub blend: [f64; 2],
    pub x: Operand,
    pub y: Operand,
    pub parameters: Tensor,
    /// Scale, bias, mean and variance.
    pub values: [u64; 4],
    pub epsilon: f64,
}

impl Inference {
    /// Checks everything and queues the work.
    pub fn queue(self, handle: &Handle) -> Result<(), Refusal> {
        check_handle(handle)?;
        check_epsilon(self.epsilon)?;
        if self.mode == Mode::Persistent {
            return Status::NOT_SUPPORTED.because("inference in the persistent mode");
        }
        let (x, y, factors) = (&self.x, &self.y, self.blend);
        let others = [(y.name, &y.tensor)];
        let norm = Normalization::new(
            self.mode,
            Ops::Nothing,
            &x.tensor,
            &others,
            &self.parameters,
            None,
        )?;
        let mut job = Job::default();
        let of_y = if factors[1] == 0.0 { Use::Write } else { Use::Update };
        let (number, count) = (norm.number, norm.x.len());
        let of_x = argument(&mut job, Use::Read, x.name, x.address, number, count)?;
        let of_y = argument(&mut job, of_y, y.name, y.address, number, count)?;
        let (x, y) = (Elements::new(of_x, &x.tensor), Elements::new(of_y, &y.tensor));
        let mut slots = Vec::new();
        for (name, address) in ["scale", "bias", "mean", "variance"].iter().zip(self.values) {
            let (parameter, groups) = (norm.parameter, norm.groups());
            slots.push(argument(&mut job, Use::Read, name, address, parameter, groups)?);
        }
        let epsilon = self.epsilon;
        let run = move |memory: &mut Memory<'_>| {
            let values: Vec<_> = slots.iter().map(|slot| memory.load(*slot)).collect();
            let invstd = inverse(&values[3], epsilon);
            let parameters: [&[f64]; 4] = [&values[2], &invstd, &values[0], &values[1]];
            let result = normalize(&norm, &x.load(memory), parameters);
            let old = y.load(memory);
            y.store(memory, &blend(factors, &result, &old));
        };
        handle.queue.push(handle.stream, &job, run).map_err(failed)
    }
}

impl Training {
    /// What the query of the workspace's size answers.
    pub fn workspace_bytes(norm: &Normalization, others: &[&Tensor]) -> usize {
        if norm.is_semi_persistent(others) { norm.workspace(SUMS) } else { 0 }
    }

    /// What the query of the reserve space's size answers.
    pub fn reserve_bytes(norm: &Normalization) -> usize {
        if norm.is_semi_persistent(&[]) { reserve::bytes(norm) } else { 0 }
    }
}
