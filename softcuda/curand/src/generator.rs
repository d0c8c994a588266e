//! Generators, and what every call does first.

use std::{sync::Mutex, thread};

use softlibrary::{Job, List, Log, Memory, Number, Objects, Queue, Use};

use crate::status::{Refusal, Status};

/// The version that it says it has.
pub const VERSION: usize = 10_400;

pub static LOG: Log = Log::new("softcurand", VERSION);
pub static GENERATORS: Objects<Generator> = Objects::new("cuRAND generator", 1);

/// A source of numbers: the one at `offset` is a function of the seed and of that.
#[derive(Debug)]
pub struct Generator {
    pub queue: Queue,
    pub stream: usize,
    pub seed: u64,
    /// How many 64-bit numbers have been taken.
    pub offset: u64,
}

/// What numbers are spread like.
#[derive(Clone, Copy, Debug)]
pub enum Distribution {
    /// From 0, which never comes, to 1, which does.
    Uniform,
    /// By mean and standard deviation.
    Normal(f64, f64),
    /// Whose logarithm is normal so.
    LogNormal(f64, f64),
}

/// Bits that a seed and a place determine (SplitMix64).
fn bits(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add((place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Above 0, at most 1.
fn uniform(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// Numbers of a distribution, from a place on. Normal ones come in pairs (Box and Muller).
fn numbers(distribution: Distribution, seed: u64, offset: u64, count: usize) -> Vec<f64> {
    let at = |i: usize| uniform(bits(seed, offset.wrapping_add(i as u64)));
    let normal = |i: usize| {
        let (radius, angle) = ((-2.0 * at(i & !1).ln()).sqrt(), std::f64::consts::TAU * at(i | 1));
        radius * if i & 1 == 0 { angle.cos() } else { angle.sin() }
    };
    let number = |i: usize| match distribution {
        Distribution::Uniform => at(i),
        Distribution::Normal(mean, deviation) => mean + deviation * normal(i),
        Distribution::LogNormal(mean, deviation) => (mean + deviation * normal(i)).exp(),
    };
    (0..count).map(number).collect()
}

impl Generator {
    /// Where numbers of `width` bytes go; whether there are any to make.
    fn target(&self, address: u64, width: u64, count: usize) -> Result<bool, Refusal> {
        let launched = self.queue.check(self.stream);
        launched.or_else(|reason| Status::LaunchFailure.because(reason))?;
        if count > 0 && (address == 0 || !address.is_multiple_of(width)) {
            return Status::LaunchFailure.because(format!("the numbers are to go to {address:#x}"));
        }
        Ok(count > 0)
    }

    /// Queues numbers.
    pub fn fill(
        &mut self,
        address: u64,
        number: Number,
        count: usize,
        distribution: Distribution,
    ) -> Result<(), Refusal> {
        if !matches!(distribution, Distribution::Uniform) && !count.is_multiple_of(2) {
            let reason = format!("{count} normal numbers; they come in pairs");
            return Status::LengthNotMultiple.because(reason);
        }
        if !self.target(address, number.width() as u64, count)? {
            return Ok(());
        }
        let mut job = Job::default();
        let slot = job.argument(Use::Write, address, number, count);
        let (seed, offset) = (self.seed, self.offset);
        let run = move |memory: &mut Memory<'_>| {
            memory.store(slot, &numbers(distribution, seed, offset, count));
        };
        self.queue.push(self.stream, &job, run).map_err(failed)?;
        self.offset = self.offset.wrapping_add(count as u64);
        Ok(())
    }

    /// Queues integers of 4 or 8 bytes.
    pub fn fill_integers(
        &mut self,
        address: u64,
        width: usize,
        count: usize,
    ) -> Result<(), Refusal> {
        if !self.target(address, width as u64, count)? {
            return Ok(());
        }
        let mut job = Job::default();
        let slot = job.argument(Use::Write, address, Number::Byte, count * width);
        let (seed, offset) = (self.seed, self.offset);
        let run = move |memory: &mut Memory<'_>| {
            for (i, place) in memory.bytes(slot).chunks_exact_mut(width).enumerate() {
                let bits = bits(seed, offset.wrapping_add(i as u64)).to_le_bytes();
                place.copy_from_slice(&bits[8 - width..]);
            }
        };
        self.queue.push(self.stream, &job, run).map_err(failed)?;
        self.offset = self.offset.wrapping_add(count as u64);
        Ok(())
    }
}

fn failed(refused: softlibrary::Refused) -> Refusal {
    (Status::LaunchFailure, refused.to_string())
}

/// A call of this name: answers a failure that was asked for, or does its work.
pub fn call(name: &str, f: impl FnOnce() -> Result<(), Refusal>) -> Status {
    if let Some(status) = LOG.failure(name) {
        return Status::from_number(status).unwrap_or(Status::InternalError);
    }
    match f() {
        Ok(()) => Status::Success,
        Err((status, reason)) => {
            LOG.note(thread::current().id(), List::Refusals, format!("{name}: {reason}"));
            status
        }
    }
}

/// A call on a generator that no other thread is using.
pub fn on_generator(
    name: &str,
    generator: usize,
    f: impl FnOnce(&mut Generator) -> Result<(), Refusal>,
) -> Status {
    call(name, || {
        let generator =
            GENERATORS.get(generator).or_else(|reason| Status::NotInitialized.because(reason))?;
        f(&mut *alone(&generator)?)
    })
}

fn alone(generator: &Mutex<Generator>) -> Result<std::sync::MutexGuard<'_, Generator>, Refusal> {
    let used = "another thread is in a call with this generator";
    generator.try_lock().or_else(|_| Status::InternalError.because(used))
}

pub fn live() -> Vec<String> {
    GENERATORS.live()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and variance of many numbers, and that a place says which they are.
    #[test]
    fn numbers_are_spread_as_they_should() {
        for (distribution, mean, variance) in [
            (Distribution::Uniform, 0.5, 1.0 / 12.0),
            (Distribution::Normal(3.0, 2.0), 3.0, 4.0),
            (Distribution::LogNormal(0.0, 0.5), 0.125f64.exp(), 0.25f64.exp() * 0.25f64.exp_m1()),
        ] {
            let all = numbers(distribution, 7, 0, 100_000);
            let found = all.iter().sum::<f64>() / all.len() as f64;
            let spread = all.iter().map(|x| (x - found).powi(2)).sum::<f64>() / all.len() as f64;
            assert!((found - mean).abs() < 0.02, "{distribution:?}: {found}");
            assert!((spread - variance).abs() < 0.05, "{distribution:?}: {spread}");
            assert_eq!(numbers(distribution, 7, 10, 100), all[10..110]);
            assert_ne!(numbers(distribution, 8, 10, 100), all[10..110]);
        }
        assert!(
            numbers(Distribution::Uniform, 1, 0, 100_000).iter().all(|x| 0.0 < *x && *x <= 1.0)
        );
    }
}
