//! A layer's state dict: PyTorch's five names, all checked before the first write.
use std::fmt;
use std::ops::Bound;

use super::entry::{A_COUNT, Entry, accepted};
use super::{StateDict, state};
use crate::RenormStats;
use crate::{BatchNorm, Engine, Error, Memory, Real, Result};

const COUNTER: &str = "num_batches_tracked";

/// What to do about entries that are missing, unexpected or do not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Strict {
    /// Refuse to load: PyTorch's `strict=True`, its default.
    Yes,
    /// Load the others and report these: PyTorch's `strict=False`. Unlike there, an entry that
    /// does not fit is no error either; what it was for keeps its values.
    No,
}

/// What in a state dict was not as the layer expects it, by full names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Expected, and not there.
    pub missing: Vec<String>,
    /// There under the prefix, and not of this layer.
    pub unexpected: Vec<String>,
    /// There, but of a wrong shape, of a type that does not widen to the layer's, or a counter that
    /// is no count.
    pub mismatched: Vec<Mismatch>,
}

/// An entry that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Its full name.
    pub name: String,
    /// What would fit.
    pub expected: String,
    /// What is there.
    pub got: String,
}

impl LoadReport {
    /// Whether everything was as expected.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.mismatched.is_empty()
    }
}

/// `missing a, b; unexpected c; d: expected f32 [5], got f32 [4]`.
impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [("missing", &self.missing), ("unexpected", &self.unexpected)];
        let lists = lists.into_iter().filter(|(_, names)| !names.is_empty());
        let lists = lists.map(|(what, names)| format!("{what} {}", names.join(", ")));
        let mismatched = self.mismatched.iter().map(Mismatch::to_string);
        f.write_str(&lists.chain(mismatched).collect::<Vec<_>>().join("; "))
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.name, self.expected, self.got)
    }
}

/// Looks entries up under a prefix, and notes what is wrong.
pub(super) struct Reader<'a, D> {
    dict: &'a StateDict<D>,
    prefix: &'a str,
    expected: Vec<String>,
    report: LoadReport,
}

impl<'a, D: AsRef<[u8]>> Reader<'a, D> {
    pub fn new(dict: &'a StateDict<D>, prefix: &'a str) -> Self {
        Self { dict, prefix, expected: Vec::new(), report: LoadReport::default() }
    }

    /// Whether there is such an entry.
    fn has(&self, name: &str) -> bool {
        self.dict.entries.contains_key(&format!("{}{name}", self.prefix))
    }
    fn entry(&mut self, name: &str) -> (String, Option<&'a Entry<D>>) {
        let name = format!("{}{name}", self.prefix);
        self.expected.push(name.clone());
        let entry = self.dict.entries.get(&name);
        (name, entry)
    }

    fn mismatch(&mut self, name: String, expected: String, got: String) {
        self.report.mismatched.push(Mismatch { name, expected, got });
    }

    /// One value per channel, if they are there and fit.
    pub fn floats<P: Real>(&mut self, name: &str, channels: usize) -> Option<Vec<P>> {
        let (name, Some(entry)) = self.entry(name) else {
            self.report.missing.push(format!("{}{name}", self.prefix));
            return None;
        };
        let values = if entry.shape == [channels] { entry.values() } else { None };
        if values.is_none() {
            let expected = format!("{} [{channels}]", accepted::<P>());
            self.mismatch(name, expected, entry.to_string());
        }
        values
    }

    /// The counter, if it is there and fits. PyTorch has had one since version 2 of its state
    /// (0.4.1), and lets a layer keep its own where a dict names no later version: safetensors
    /// files name none.
    fn counter(&mut self) -> Option<u64> {
        let (name, entry) = self.entry(COUNTER);
        let entry = entry?;
        let got = match entry.count() {
            Some(Ok(count)) => return Some(count),
            Some(Err(value)) => value,
            None => entry.to_string(),
        };
        self.mismatch(name, A_COUNT.into(), got);
        None
    }

    /// What was wrong, with the names under the prefix that nobody asked for.
    pub fn finish(mut self) -> LoadReport {
        // From the prefix on, not from the start: a dict of many layers is asked once for each.
        let from = (Bound::Included(self.prefix), Bound::Unbounded);
        let names = self.dict.entries.range::<str, _>(from).map(|(name, _)| name);
        let names = names.take_while(|name| name.starts_with(self.prefix));
        let names = names.filter(|name| !self.expected.contains(name));
        self.report.unexpected = names.cloned().collect();
        self.report
    }
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// What the layer knows, under PyTorch's names, each behind `prefix` (`"layer1.0.bn1."`, its
    /// dot included): `weight`, `bias`, `running_mean`, `running_var` of shape `[C]` and type `P`,
    /// `num_batches_tracked`, an i64 scalar; those that the layer has. Gradients and mode are not
    /// part of it.
    ///
    /// # Errors
    /// The memory's refusal; [`Error::State`] where the counter exceeds i64.
    pub fn state_dict(&self, prefix: &str) -> Result<StateDict> {
        let mut dict = StateDict::new();
        let mut insert = |name: &str, buf: &M::Buf<P>| {
            let values = self.engine().memory().download(M::view(buf))?;
            dict.insert(format!("{prefix}{name}"), &[values.len()], &values)
        };
        for (name, param) in self.named_parameters() {
            insert(name, &param.value)?;
        }
        if let Some(running) = self.running() {
            insert("running_mean", &running.mean)?;
            insert("running_var", &running.var)?;
            for (name, buf) in running.renorm.iter().flat_map(RenormStats::named) {
                insert(name, buf)?;
            }
            let count = i64::try_from(running.num_batches_tracked).map_err(|e| {
                state(format_args!("{prefix}{COUNTER}: {}: {e}", running.num_batches_tracked))
            })?;
            dict.entries.insert(format!("{prefix}{COUNTER}"), Entry::counter(count));
        }
        Ok(dict)
    }

    /// Takes over values, running statistics and counter, as
    /// [`state_dict`](Self::state_dict) gives them, into the memory that is there. Only names that
    /// begin with `prefix` concern this layer.
    ///
    /// f16 and bf16 entries widen to f32 and f64 parameters, f32 entries to f64 ones; other types
    /// do not fit. The counter may be of any type of whole or of floating-point numbers, as in a dict
    /// that was converted by `.half()`, or a bool, if its value is a whole number from 0 to `i64::MAX`.
    /// A missing counter is never reported, as in PyTorch: files from before it had one load, and the
    /// layer keeps its own. Values may be anything, NaN too. Gradients and mode stay.
    ///
    /// What comes back is empty with [`Strict::Yes`]; with [`Strict::No`] it names what was not
    /// loaded.
    ///
    /// # Errors
    /// With [`Strict::Yes`], [`Error::Load`] with everything that was not as expected;
    /// [`Error::Length`] where a buffer of the layer was replaced by one of another length; the
    /// memory's refusal. Everything is checked before the first write; a device that fails at a later
    /// one leaves the layer with a part of the dict.
    pub fn load_state_dict<D: AsRef<[u8]>>(
        &mut self,
        dict: &StateDict<D>,
        prefix: &str,
        strict: Strict,
    ) -> Result<LoadReport> {
        self.check_lengths()?;
        let channels = self.channels();
        let mut reader = Reader::new(dict, prefix);
        let mut floats = |there: bool, name: &str| {
            if there { reader.floats::<P>(name, channels) } else { None }
        };
        let tracked = self.running.is_some();
        let weight = floats(self.weight().is_some(), "weight");
        let bias = floats(self.bias().is_some(), "bias");
        let mean = floats(tracked, "running_mean");
        let var = floats(tracked, "running_var");
        let kept = self.running.iter().flat_map(|running| &running.renorm);
        let kept: Vec<_> = kept.flat_map(RenormStats::named).map(|(name, _)| name).collect();
        // A plain layer's state has none of them, and none is missed.
        let is_plain = kept.iter().all(|name| !reader.has(name));
        let kept: Vec<_> = match is_plain {
            true => vec![],
            false => kept.iter().map(|name| reader.floats::<P>(name, channels)).collect(),
        };
        let count = if tracked { reader.counter() } else { None };
        let report = reader.finish();
        if strict == Strict::Yes && !report.is_empty() {
            return Err(Error::Load(report));
        }

        let memory = self.affine.engine.memory();
        let write = |values: Option<Vec<P>>, to: Option<&mut M::Buf<P>>| match (values, to) {
            (Some(values), Some(to)) => memory.write(&values, M::view_mut(to)),
            _ => Ok(()),
        };
        write(weight, self.affine.weight.as_mut().map(|p| &mut p.value))?;
        write(bias, self.affine.bias.as_mut().map(|p| &mut p.value))?;
        if let Some(running) = &mut self.running {
            if let Some(renorm) = &mut running.renorm {
                if let (true, Some(mean), Some(var)) = (is_plain, &mean, &var) {
                    renorm.take_plain(memory, self.affine.config.eps, mean, var)?;
                }
                for (values, (_, to)) in kept.into_iter().zip(renorm.named_mut()) {
                    write(values, Some(to))?;
                }
            }
            write(mean, Some(&mut running.mean))?;
            write(var, Some(&mut running.var))?;
            running.num_batches_tracked = count.unwrap_or(running.num_batches_tracked);
            running.forget_skipped(memory)?;
        }
        Ok(report)
    }
}
