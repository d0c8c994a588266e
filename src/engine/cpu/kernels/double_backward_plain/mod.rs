//! The loops of the double backward where no activation is curved: from the tensors to sums, and from the
//! tensors to the results, without blocks between.
use super::super::simd::{GROUP, Simd};
use super::double_backward::{Coefs, FIELDS, PLAIN};
use crate::{Element, Real};
use std::ops::Range;

mod results;
mod sums;

pub use results::{Results, Through};
pub use sums::{OfChannel, add_columns, add_runs};

/// What a gradient is multiplied by on its way through the activation.
#[derive(Clone, Copy)]
pub struct Passing<A> {
    pub by: By,
    /// The largest z that counts as 0.
    pub zero: A,
    /// The least z that counts as 6.
    pub six: A,
    /// What the derivative is where it is not 1.
    pub slope: A,
}

/// By what it is found where the derivative is 1.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// It is so everywhere.
    Nothing,
    /// z, which is computed again: it is 0 up to 0, and NaN passes. ReLU.
    Above,
    /// The same; from 6 on it is 0, too. ReLU6.
    Within,
    /// The same; it is the slope up to 0, and for NaN. Leaky ReLU.
    Leaking,
    /// Bits that the forward left.
    Bits,
}
const NOTHING: u8 = 0;
const ABOVE: u8 = 1;
const WITHIN: u8 = 2;
const LEAKING: u8 = 3;
const BITS: u8 = 4;

/// What the loops read of some values: x, `grad_y`, `v_x`, and where they are given, the bits, of which the first
/// value has the one of that number, and bytes, 0 where a value does not count.
#[derive(Clone, Copy)]
pub struct From<'a, E> {
    pub x: &'a [E],
    pub grad_y: &'a [E],
    pub v: &'a [E],
    pub bits: &'a [u8],
    pub first_bit: usize,
    /// A byte for each; of runs the first one's, see [`Runs`]; nothing where all count.
    pub counts: &'a [u8],
}

/// What they read of a group.
#[derive(Clone, Copy)]
struct Group<'a, E> {
    values: [&'a [E; GROUP]; 3],
    bits: u32,
    counts: &'a [u8; GROUP],
}
/// Where all count, which no loop looks at.
const ALL: &[u8; GROUP] = &[1; GROUP];

/// The same of a group, and what follows.
struct Wide<A> {
    xhat: [A; GROUP],
    z: [A; GROUP],
    g: [A; GROUP],
    v: [A; GROUP],
}

impl<'a, E: Element> From<'a, E> {
    /// Values `at` of it.
    #[inline(always)]
    fn part(self, at: Range<usize>) -> Self {
        let Self { x, grad_y, v, bits, first_bit, counts } = self;
        let counts = if counts.is_empty() { counts } else { &counts[at.clone()] };
        let (x, grad_y, v) = (&x[at.clone()], &grad_y[at.clone()], &v[at.clone()]);
        From { x, grad_y, v, bits, first_bit: first_bit + at.start, counts }
    }
    /// The `k`th of runs.
    #[inline(always)]
    fn run<A>(self, k: usize, runs: &Runs<'_, A>) -> Self {
        let Runs { inner, bits, counts, .. } = *runs;
        let of_run = if self.counts.is_empty() { &[] } else { &self.counts[k * counts..][..inner] };
        let from = From { counts: &[], ..self }.part(k * inner..(k + 1) * inner);
        From { first_bit: self.first_bit + k * bits, counts: of_run, ..from }
    }
    /// Its whole groups, and their bytes where they are asked for.
    #[inline(always)]
    fn groups(&self, counted: bool) -> ([&'a [[E; GROUP]]; 3], &'a [[u8; GROUP]]) {
        let x = self.x.as_chunks().0;
        let (grad_y, v) = (self.grad_y.as_chunks().0, self.v.as_chunks().0);
        let counts = if counted { &self.counts.as_chunks().0[..x.len()] } else { &[] };
        ([x, &grad_y[..x.len()], &v[..x.len()]], counts)
    }
    /// The bits of a group from the `at`th value on.
    #[inline(always)]
    fn bits<const BY: u8>(&self, at: usize) -> u32 {
        if BY != BITS {
            return 0;
        }
        let at = self.first_bit + at;
        let (first, shift) = (at / 8, at % 8);
        if shift == 0 && first + 2 <= self.bits.len() {
            return u32::from(self.bits[first]) | u32::from(self.bits[first + 1]) << 8;
        }
        let byte = |k: usize| match self.bits.get(first + k) {
            Some(byte) => u32::from(*byte) << (8 * k),
            None => 0,
        };
        (byte(0) | byte(1) | byte(2)) >> shift
    }
    /// The group from the `at`th value on.
    #[inline(always)]
    fn group<const BY: u8>(&self, at: usize, counted: bool) -> Group<'a, E> {
        let of = |values: &'a [E]| values[at..].first_chunk().unwrap();
        let values = [of(self.x), of(self.grad_y), of(self.v)];
        let counts = if counted { self.counts[at..].first_chunk().unwrap() } else { ALL };
        Group { values, bits: self.bits::<BY>(at), counts }
    }
    /// Hands on all of it, fewer values than a group, as one with zeros behind them.
    #[inline(always)]
    fn padded<const BY: u8>(&self, counted: bool, f: impl FnOnce(Group<'_, E>)) {
        let [x, grad_y, v] = [padded(self.x), padded(self.grad_y), padded(self.v)];
        let counts = if counted { padded(self.counts) } else { *ALL };
        f(Group { values: [&x, &grad_y, &v], bits: self.bits::<BY>(0), counts: &counts });
    }
}

/// Fewer values than a group, with zeros behind them. Loops meet it where a row ends at most.
#[cold]
#[inline(never)]
fn padded<V: Copy + Default>(values: &[V]) -> [V; GROUP] {
    let mut group = [V::default(); GROUP];
    group[..values.len()].copy_from_slice(values);
    group
}

impl<A: Real> Passing<A> {
    /// The gradients of a group on the other side.
    #[inline(always)]
    fn group<const BY: u8>(
        &self,
        simd: Simd,
        z: &[A; GROUP],
        bits: u32,
        g: [A; GROUP],
    ) -> [A; GROUP] {
        let Self { zero, six, slope, .. } = *self;
        let (none, mut passed) = (A::default(), g);
        match BY {
            ABOVE => {
                for l in 0..GROUP {
                    passed[l] = if z[l] <= zero { none } else { g[l] };
                }
            }
            WITHIN => {
                for l in 0..GROUP {
                    passed[l] = if z[l] <= zero { none } else { g[l] };
                }
                for l in 0..GROUP {
                    passed[l] = if z[l] >= six { none } else { passed[l] };
                }
            }
            LEAKING => {
                let less = self.less(g);
                for l in 0..GROUP {
                    passed[l] = if z[l] > zero { g[l] } else { less[l] };
                }
            }
            BITS => {
                let less = if slope == none { [none; GROUP] } else { self.less(g) };
                let (ones, others) = (halves(&g), halves(&less));
                for k in 0..2 {
                    let bits = (bits >> (8 * k)) as u8;
                    let (ones, others) = (simd.keep(bits, &ones[k]), simd.keep(!bits, &others[k]));
                    for l in 0..8 {
                        passed[8 * k + l] = ones[l] + others[l];
                    }
                }
            }
            _ => (),
        }
        passed
    }
    /// Gradients times the slope; a slope of 0 stops what is not finite, too.
    #[inline(always)]
    fn less(&self, g: [A; GROUP]) -> [A; GROUP] {
        let (slope, mut less) = (self.slope, [A::default(); GROUP]);
        if slope != A::default() {
            for l in 0..GROUP {
                less[l] = g[l] * slope;
            }
        }
        less
    }
}

#[inline(always)]
fn halves<A>(values: &[A; GROUP]) -> &[[A; 8]; 2] {
    const { assert!(GROUP == 16) };
    values.as_chunks().0.first_chunk().unwrap()
}

/// What is known of a group by the `i`th group of coefficients.
#[inline(always)]
fn wide<E: Element, const BY: u8>(
    simd: Simd,
    Group { values: [x, grad_y, v], bits, .. }: Group<'_, E>,
    (coefs, i): (impl Coefs<E::Acc>, usize),
    passing: &Passing<E::Acc>,
) -> Wide<E::Acc> {
    let zeros = [E::Acc::default(); GROUP];
    let (x, g, v) = (simd.widen(x), simd.widen(grad_y), simd.widen(v));
    let (mean, invstd, less) = (coefs.field(0, i), coefs.field(1, i), coefs.field(2, i));
    let (scale, bias) = (coefs.field(3, i), coefs.field(4, i));
    let (mut xhat, mut z) = (zeros, zeros);
    for l in 0..GROUP {
        let distance = x[l] - mean[l];
        xhat[l] = distance * invstd[l] + less[l];
        z[l] = distance * scale[l] + bias[l];
    }
    let g = passing.group::<BY>(simd, &z, bits, g);
    Wide { xhat, z, g, v }
}

impl<A: Real> Wide<A> {
    /// The same with zeros in other lanes.
    #[inline(always)]
    fn only(mut self, lanes: Range<usize>) -> Self {
        let zero = A::default();
        for l in 0..GROUP {
            let is = (l >= lanes.start) & (l < lanes.end);
            self.xhat[l] = if is { self.xhat[l] } else { zero };
            self.g[l] = if is { self.g[l] } else { zero };
            self.v[l] = if is { self.v[l] } else { zero };
        }
        self
    }
    /// Adds the terms of its sums: see [`SUMS`](super::double_backward::SUMS). Those of `v` alone are of values that
    /// count.
    #[inline(always)]
    fn add<const COUNTED: bool>(
        &self,
        simd: Simd,
        counts: &[u8; GROUP],
        [a, b, c, d, e]: [&mut [A; GROUP]; PLAIN],
    ) {
        let Self { xhat, g, v, .. } = self;
        let counted = if COUNTED { simd.counted(counts, v) } else { *v };
        for l in 0..GROUP {
            a[l] += g[l];
            b[l] += g[l] * xhat[l];
            c[l] += counted[l];
            d[l] += counted[l] * xhat[l];
            e[l] += v[l] * g[l];
        }
    }
}

/// The runs of some channels, one after the other: how long they are, and each one's coefficients.
#[derive(Clone, Copy)]
pub struct Runs<'a, A> {
    pub inner: usize,
    /// Bits from one run's first to the next one's, where there are any.
    pub bits: usize,
    /// The same of bytes: none where positions count in all channels or in none.
    pub counts: usize,
    pub coefs: &'a [[A; FIELDS]],
}

/// Columns that are taken at a time: what belongs to so many fits the first cache beside their coefficients.
pub const COLUMNS: usize = 256;
/// Of each of them a number.
pub type OfColumns<A> = [A; COLUMNS];

/// Of columns: each has its own.
#[derive(Clone, Copy)]
pub struct Many<'a, A>(pub &'a [OfColumns<A>; FIELDS]);

impl<A: Real> Coefs<A> for Many<'_, A> {
    #[inline(always)]
    fn field(self, field: usize, group: usize) -> [A; GROUP] {
        groups(&self.0[field])[group]
    }
}

#[inline(always)]
fn groups<A>(columns: &OfColumns<A>) -> &[[A; GROUP]; COLUMNS / GROUP] {
    const { assert!(COLUMNS.is_multiple_of(GROUP)) };
    columns.as_chunks().0.first_chunk().unwrap()
}
