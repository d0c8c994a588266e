//! What the memory alone takes: copies and additions of tensors of the case's size, on all
//! threads. No operation that reads and writes tensors larger than the cache can be faster.
//!
//! This file has the table's only `unsafe`: stores that go past the cache, which are quicker for
//! large tensors and slower for small ones. A floor is the quicker of both.
use super::{Case, Op, Pass};
use anyhow::{Result, ensure};
use rayon::prelude::*;
use std::time::Instant;

/// Elements of a task: 256 KiB.
const CHUNK: usize = 1 << 16;

/// A floor by what it reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// z = x
    Copy,
    /// z = x + y
    Add,
    /// z = x + y, w = y
    AddAndCopy,
}

impl Kind {
    /// The one that moves as much as the operation must.
    pub fn of(op: Op) -> Self {
        match (op.pass, op.residual) {
            (Pass::Backward, false) => Kind::Add,
            (Pass::Backward, true) => Kind::AddAndCopy,
            (_, false) => Kind::Copy,
            (_, true) => Kind::Add,
        }
    }
    /// As tables name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Copy => "floor:copy_1R1W",
            Kind::Add => "floor:add_2R1W",
            Kind::AddAndCopy => "floor:add_2R2W",
        }
    }
}

/// A floor ready to run.
pub trait Floor {
    /// Runs it once; seconds.
    fn time(&mut self) -> Result<f64>;
    /// What ran.
    fn what(&self) -> &'static str;
}

/// The floor of the host's memory.
pub struct HostFloor {
    kind: Kind,
    streaming: bool,
    x: Vec<f32>,
    y: Vec<f32>,
    z: Vec<f32>,
    w: Vec<f32>,
}

impl HostFloor {
    /// The floor of a case: as many bytes, moved as f32 whatever the dtype.
    ///
    /// # Errors
    /// Memory that does not hold what was copied there.
    pub fn new(case: &Case) -> Result<Self> {
        let (kind, len) = (Kind::of(case.op), case.bytes().div_ceil(4));
        let fill = |scale: f32| -> Vec<f32> {
            (0..len).into_par_iter().map(|i| (i % 1024) as f32 * scale).collect()
        };
        let one = |used: bool| if used { fill(0.5) } else { Vec::new() };
        let mut floor = Self {
            kind,
            streaming: false,
            x: fill(0.25),
            y: one(kind != Kind::Copy),
            z: fill(0.0),
            w: one(kind == Kind::AddAndCopy),
        };
        floor.verify()?;
        let mut best = |streaming| {
            floor.streaming = streaming;
            (0..7).map(|_| floor.run()).fold(f64::MAX, f64::min)
        };
        floor.streaming = best(true) < best(false);
        Ok(floor)
    }

    fn verify(&mut self) -> Result<()> {
        for streaming in [true, false] {
            self.streaming = streaming;
            self.z.fill(f32::NAN);
            self.w.fill(f32::NAN);
            self.run();
            let y = |i| if self.kind == Kind::Copy { 0.0 } else { self.y[i] };
            let sums = self.z.iter().enumerate().all(|(i, z)| *z == self.x[i] + y(i));
            ensure!(sums && self.w.iter().zip(&self.y).all(|(w, y)| w == y), "{:?}", self.kind);
        }
        Ok(())
    }

    /// Runs it once; seconds.
    fn run(&mut self) -> f64 {
        let (kind, streaming) = (self.kind, self.streaming);
        let start = Instant::now();
        let z = self.z.par_chunks_mut(CHUNK).zip(self.x.par_chunks(CHUNK));
        match kind {
            Kind::Copy => z.for_each(|(z, x)| put(z, streaming, |i| four(x, i), |i| x[i])),
            Kind::Add => z.zip(self.y.par_chunks(CHUNK)).for_each(|((z, x), y)| {
                put(z, streaming, |i| add(four(x, i), four(y, i)), |i| x[i] + y[i]);
            }),
            Kind::AddAndCopy => {
                let y = self.y.par_chunks(CHUNK).zip(self.w.par_chunks_mut(CHUNK));
                z.zip(y).for_each(|((z, x), (y, w))| {
                    // In parts that the first level of the cache keeps: y is read once.
                    let parts = z.chunks_mut(2048).zip(w.chunks_mut(2048));
                    for ((z, w), (x, y)) in parts.zip(x.chunks(2048).zip(y.chunks(2048))) {
                        put(z, streaming, |i| add(four(x, i), four(y, i)), |i| x[i] + y[i]);
                        put(w, streaming, |i| four(y, i), |i| y[i]);
                    }
                });
            }
        }
        start.elapsed().as_secs_f64()
    }
}

impl Floor for HostFloor {
    fn time(&mut self) -> Result<f64> {
        Ok(self.run())
    }
    fn what(&self) -> &'static str {
        if self.streaming { "streaming stores" } else { "plain stores" }
    }
}

#[inline(always)]
fn four(values: &[f32], i: usize) -> [f32; 4] {
    let values = &values[i..i + 4];
    [values[0], values[1], values[2], values[3]]
}
#[inline(always)]
fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
    [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
}

/// Writes `to`, four values at a time past the cache where asked for and the machine can.
#[inline(always)]
fn put(
    to: &mut [f32],
    streaming: bool,
    four: impl Fn(usize) -> [f32; 4],
    one: impl Fn(usize) -> f32,
) {
    #[cfg(target_arch = "x86_64")]
    if streaming {
        use std::arch::x86_64::{_mm_loadu_ps, _mm_sfence, _mm_stream_ps};
        let len = to.len();
        let head = to.as_ptr().align_offset(16).min(len);
        let (before, aligned) = to.split_at_mut(head);
        before.iter_mut().enumerate().for_each(|(i, v)| *v = one(i));
        let mut groups = aligned.chunks_exact_mut(4);
        for (k, group) in groups.by_ref().enumerate() {
            let values = four(head + 4 * k);
            // SAFETY: every x86-64 has SSE; `group` and `values` hold four values each, and the
            // address of `group` is a multiple of 16, as `aligned` begins at one.
            unsafe { _mm_stream_ps(group.as_mut_ptr(), _mm_loadu_ps(values.as_ptr())) };
        }
        let tail = groups.into_remainder();
        let first = len - tail.len();
        tail.iter_mut().enumerate().for_each(|(i, v)| *v = one(first + i));
        // SAFETY: every x86-64 has SSE. Stores past the cache are ordered for other threads here.
        unsafe { _mm_sfence() };
        return;
    }
    let _ = (streaming, four);
    to.iter_mut().enumerate().for_each(|(i, v)| *v = one(i));
}
