//! The loops of the double backward where no activation is curved: from the tensors to sums, and from the
//! tensors to the results, without blocks between.
use super::super::simd::{GROUP, Simd, Store, prefetch, to_line};
use super::double_backward::{Coefs, FIELDS, One, PLAIN};
use crate::{Element, Real};
use std::ops::Range;

/// Runs from here on are worth to be brought to the start of a cache line.
const ALIGNED: usize = 128;

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
/// value has the one of that number.
#[derive(Clone, Copy)]
pub struct From<'a, E> {
    pub x: &'a [E],
    pub grad_y: &'a [E],
    pub v: &'a [E],
    pub bits: &'a [u8],
    pub first_bit: usize,
}

/// The same of a group, and what follows.
struct Wide<A> {
    xhat: [A; GROUP],
    z: [A; GROUP],
    g: [A; GROUP],
    v: [A; GROUP],
}

impl<'a, E> From<'a, E> {
    /// No values.
    pub const NONE: Self = Self { x: &[], grad_y: &[], v: &[], bits: &[], first_bit: 0 };
    /// Values `at` of it.
    #[inline(always)]
    fn part(self, at: Range<usize>) -> Self {
        let Self { x, grad_y, v, bits, first_bit } = self;
        let (x, grad_y, v) = (&x[at.clone()], &grad_y[at.clone()], &v[at.clone()]);
        From { x, grad_y, v, bits, first_bit: first_bit + at.start }
    }
    /// Its whole groups.
    #[inline(always)]
    fn groups(&self) -> [&'a [[E; GROUP]]; 3] {
        let x = self.x.as_chunks().0;
        let (grad_y, v) = (self.grad_y.as_chunks().0, self.v.as_chunks().0);
        [x, &grad_y[..x.len()], &v[..x.len()]]
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
    fn group(&self, at: usize) -> [&'a [E; GROUP]; 3] {
        let of = |values: &'a [E]| values[at..].first_chunk().unwrap();
        [of(self.x), of(self.grad_y), of(self.v)]
    }
}

/// Fewer values than a group, with zeros behind them. Loops meet it where a row ends at most.
#[cold]
#[inline(never)]
fn padded<E: Element>(values: &[E]) -> [E; GROUP] {
    let mut group = [E::default(); GROUP];
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

/// What is known of a group, of which `bits` are those of a mask, by the `i`th group of coefficients.
#[inline(always)]
fn wide<E: Element, const BY: u8>(
    simd: Simd,
    [x, grad_y, v]: [&[E; GROUP]; 3],
    bits: u32,
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
    /// Adds the terms of its sums: see [`SUMS`](super::double_backward::SUMS).
    #[inline(always)]
    fn add(&self, [a, b, c, d, e]: [&mut [A; GROUP]; PLAIN]) {
        let Self { xhat, g, v, .. } = self;
        for l in 0..GROUP {
            a[l] += g[l];
            b[l] += g[l] * xhat[l];
            c[l] += v[l];
            d[l] += v[l] * xhat[l];
            e[l] += v[l] * g[l];
        }
    }
}

/// The runs of some channels, one after the other: how long they are, and each one's coefficients.
#[derive(Clone, Copy)]
pub struct Runs<'a, A> {
    pub inner: usize,
    pub coefs: &'a [[A; FIELDS]],
}

/// Sums of a channel, in lanes.
pub type OfChannel<A> = [[A; GROUP]; PLAIN];

/// Adds the terms of runs' values to the lanes of their channels.
pub fn add_runs<E: Element>(
    simd: Simd,
    from: From<'_, E>,
    runs: Runs<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfChannel<E::Acc>],
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match passing.by {
            By::Nothing => add_runs_of::<E, NOTHING>(simd, from, runs, passing, sums),
            By::Above => add_runs_of::<E, ABOVE>(simd, from, runs, passing, sums),
            By::Within => add_runs_of::<E, WITHIN>(simd, from, runs, passing, sums),
            By::Leaking => add_runs_of::<E, LEAKING>(simd, from, runs, passing, sums),
            By::Bits => add_runs_of::<E, BITS>(simd, from, runs, passing, sums),
        },
    );
}

#[inline(always)]
fn add_runs_of<E: Element, const BY: u8>(
    simd: Simd,
    from: From<'_, E>,
    Runs { inner, coefs }: Runs<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfChannel<E::Acc>],
) {
    for (k, (coefs, sums)) in coefs.iter().zip(sums).enumerate() {
        let (from, coefs) = (from.part(k * inner..(k + 1) * inner), (One(*coefs), 0));
        let [mut a, mut b, mut c, mut d, mut e] = *sums;
        let [x, grad_y, v] = from.groups();
        for i in 0..x.len() {
            let bits = from.bits::<BY>(i * GROUP);
            let wide = wide::<E, BY>(simd, [&x[i], &grad_y[i], &v[i]], bits, coefs, passing);
            wide.add([&mut a, &mut b, &mut c, &mut d, &mut e]);
        }
        // What is left, in a group that ends with it if there is one.
        let rest = inner % GROUP;
        if inner < GROUP {
            let [x, grad_y, v] = [padded(from.x), padded(from.grad_y), padded(from.v)];
            let bits = from.bits::<BY>(0);
            let wide = wide::<E, BY>(simd, [&x, &grad_y, &v], bits, coefs, passing);
            wide.only(0..rest).add([&mut a, &mut b, &mut c, &mut d, &mut e]);
        } else if rest > 0 {
            let at = inner - GROUP;
            let bits = from.bits::<BY>(at);
            let wide = wide::<E, BY>(simd, from.group(at), bits, coefs, passing);
            wide.only(GROUP - rest..GROUP).add([&mut a, &mut b, &mut c, &mut d, &mut e]);
        }
        *sums = [a, b, c, d, e];
    }
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
#[inline(always)]
fn groups_mut<A>(columns: &mut OfColumns<A>) -> &mut [[A; GROUP]; COLUMNS / GROUP] {
    columns.as_chunks_mut().0.first_chunk_mut().unwrap()
}

/// Adds the terms of some rows' columns to theirs, and asks for what lies so many elements behind each row.
pub fn add_columns<E: Element, const ROWS: usize>(
    simd: Simd,
    rows: &[(From<'_, E>, isize); ROWS],
    coefs: Many<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfColumns<E::Acc>; PLAIN],
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match passing.by {
            By::Nothing => add_columns_of::<E, NOTHING, ROWS>(simd, rows, coefs, passing, sums),
            By::Above => add_columns_of::<E, ABOVE, ROWS>(simd, rows, coefs, passing, sums),
            By::Within => add_columns_of::<E, WITHIN, ROWS>(simd, rows, coefs, passing, sums),
            By::Leaking => add_columns_of::<E, LEAKING, ROWS>(simd, rows, coefs, passing, sums),
            By::Bits => add_columns_of::<E, BITS, ROWS>(simd, rows, coefs, passing, sums),
        },
    );
}

#[inline(always)]
fn add_columns_of<E: Element, const BY: u8, const ROWS: usize>(
    simd: Simd,
    rows: &[(From<'_, E>, isize); ROWS],
    coefs: Many<'_, E::Acc>,
    passing: &Passing<E::Acc>,
    sums: &mut [OfColumns<E::Acc>; PLAIN],
) {
    let n = rows[0].0.x.len();
    assert!(n <= COLUMNS);
    let [a, b, c, d, e] = sums;
    let (a, b, c) = (groups_mut(a), groups_mut(b), groups_mut(c));
    let (d, e) = (groups_mut(d), groups_mut(e));
    for i in 0..n / GROUP {
        let (mut s, mut t, mut u, mut v, mut w) = (a[i], b[i], c[i], d[i], e[i]);
        for (from, ahead) in rows {
            for read in [from.x, from.grad_y, from.v] {
                prefetch(read.as_ptr().wrapping_add(i * GROUP).wrapping_offset(*ahead));
            }
            let [x, g, v_x] = from.groups();
            let bits = from.bits::<BY>(i * GROUP);
            let wide = wide::<E, BY>(simd, [&x[i], &g[i], &v_x[i]], bits, (coefs, i), passing);
            wide.add([&mut s, &mut t, &mut u, &mut v, &mut w]);
        }
        (a[i], b[i], c[i], d[i], e[i]) = (s, t, u, v, w);
    }
    if !n.is_multiple_of(GROUP) {
        let i = n / GROUP;
        let (mut s, mut t, mut u, mut v, mut w) = (a[i], b[i], c[i], d[i], e[i]);
        for (from, _) in rows {
            let from = from.part(i * GROUP..n);
            let [x, g, v_x] = [padded(from.x), padded(from.grad_y), padded(from.v)];
            let bits = from.bits::<BY>(0);
            let wide = wide::<E, BY>(simd, [&x, &g, &v_x], bits, (coefs, i), passing);
            wide.only(0..n % GROUP).add([&mut s, &mut t, &mut u, &mut v, &mut w]);
        }
        (a[i], b[i], c[i], d[i], e[i]) = (s, t, u, v, w);
    }
}

/// What a call writes: `gg_grad_y` and `gg_x` of some values.
pub struct Results<'a, E: Element> {
    pub from: From<'a, E>,
    /// What is given for the residual's gradient.
    pub r: &'a [E],
    pub passing: &'a Passing<E::Acc>,
    /// Whether gradients flow through statistics.
    pub batch: bool,
    pub to: [(Store, &'a mut [E]); 2],
}

impl<E: Element> Results<'_, E> {
    /// Those of runs.
    pub fn write_runs(self, simd: Simd, runs: Runs<'_, E::Acc>) {
        simd.vectorize(
            #[inline(always)]
            |simd| match (self.passing.by, self.batch) {
                (By::Nothing, true) => self.runs::<NOTHING, true>(simd, runs),
                (By::Above, true) => self.runs::<ABOVE, true>(simd, runs),
                (By::Within, true) => self.runs::<WITHIN, true>(simd, runs),
                (By::Leaking, true) => self.runs::<LEAKING, true>(simd, runs),
                (By::Bits, true) => self.runs::<BITS, true>(simd, runs),
                (By::Nothing, false) => self.runs::<NOTHING, false>(simd, runs),
                (By::Above, false) => self.runs::<ABOVE, false>(simd, runs),
                (By::Within, false) => self.runs::<WITHIN, false>(simd, runs),
                (By::Leaking, false) => self.runs::<LEAKING, false>(simd, runs),
                (By::Bits, false) => self.runs::<BITS, false>(simd, runs),
            },
        );
    }
    /// Those of columns, whose coefficients repeat after a period.
    pub fn write_columns(self, simd: Simd, coefs: Many<'_, E::Acc>, period: usize) {
        simd.vectorize(
            #[inline(always)]
            |simd| match (self.passing.by, self.batch) {
                (By::Nothing, true) => self.columns::<NOTHING, true>(simd, coefs, period),
                (By::Above, true) => self.columns::<ABOVE, true>(simd, coefs, period),
                (By::Within, true) => self.columns::<WITHIN, true>(simd, coefs, period),
                (By::Leaking, true) => self.columns::<LEAKING, true>(simd, coefs, period),
                (By::Bits, true) => self.columns::<BITS, true>(simd, coefs, period),
                (By::Nothing, false) => self.columns::<NOTHING, false>(simd, coefs, period),
                (By::Above, false) => self.columns::<ABOVE, false>(simd, coefs, period),
                (By::Within, false) => self.columns::<WITHIN, false>(simd, coefs, period),
                (By::Leaking, false) => self.columns::<LEAKING, false>(simd, coefs, period),
                (By::Bits, false) => self.columns::<BITS, false>(simd, coefs, period),
            },
        );
    }

    /// Of each run a group of which some values lie before `gg_grad_y` starts a line, whole groups from there on, and
    /// one that ends with the run. They overlap, which is harmless, as nothing that is read is written.
    #[inline(always)]
    fn runs<const BY: u8, const BATCH: bool>(mut self, simd: Simd, runs: Runs<'_, E::Acc>) {
        let Runs { inner, coefs } = runs;
        for (k, coefs) in coefs.iter().enumerate() {
            let (start, end, coefs) = (k * inner, (k + 1) * inner, One(*coefs));
            if inner < GROUP {
                self.few::<BY, BATCH>(simd, start..end, (coefs, 0));
                continue;
            }
            let head = match inner >= ALIGNED {
                true => to_line(&self.to[0].1[start..end]) % GROUP,
                false => 0,
            };
            let rest = (inner - head) % GROUP;
            if head > 0 {
                self.lanes::<BY, BATCH>(simd, start, coefs, 0..head);
            }
            self.groups::<BY, BATCH>(simd, start + head..end - rest, coefs);
            if rest > 0 {
                self.lanes::<BY, BATCH>(simd, end - GROUP, coefs, GROUP - rest..GROUP);
            }
        }
    }
    #[inline(always)]
    fn columns<const BY: u8, const BATCH: bool>(
        mut self,
        simd: Simd,
        coefs: Many<'_, E::Acc>,
        period: usize,
    ) {
        let n = self.from.x.len();
        for start in (0..n).step_by(period) {
            let end = n.min(start + period);
            assert!(end - start <= COLUMNS);
            let whole = (end - start) / GROUP * GROUP;
            self.groups::<BY, BATCH>(simd, start..start + whole, coefs);
            if start + whole < end {
                self.few::<BY, BATCH>(simd, start + whole..end, (coefs, whole / GROUP));
            }
        }
    }
    /// Whole groups of values.
    #[inline(always)]
    fn groups<const BY: u8, const BATCH: bool>(
        &mut self,
        simd: Simd,
        at: Range<usize>,
        coefs: impl Coefs<E::Acc>,
    ) {
        let Self { from, r, passing, to: [(store_y, to_y), (store_x, to_x)], .. } = self;
        let (store_y, store_x) = (store_y.compiled_for(simd), store_x.compiled_for(simd));
        let (from, r) = (from.part(at.clone()), &r[at.clone()]);
        let (to_y, to_x) = (&mut to_y[at.clone()], &mut to_x[at]);
        let [x, grad_y, v] = from.groups();
        let (len, r) = (x.len(), r.as_chunks::<GROUP>().0);
        let (to_y, to_x) = (to_y.as_chunks_mut().0, to_x.as_chunks_mut().0);
        let (r, to_y, to_x) = (&r[..len], &mut to_y[..len], &mut to_x[..len]);
        for i in 0..len {
            let bits = from.bits::<BY>(i * GROUP);
            let of = [&x[i], &grad_y[i], &v[i]];
            let (u, x) = results::<E, BY, BATCH>(simd, (of, &r[i], bits), (coefs, i), passing);
            store_y.put(&u, &mut to_y[i], || ());
            store_x.put(&x, &mut to_x[i], || ());
        }
    }
    /// Some lanes of the group from the `at`th value on, of which the others may be written, too.
    #[inline(always)]
    fn lanes<const BY: u8, const BATCH: bool>(
        &mut self,
        simd: Simd,
        at: usize,
        coefs: impl Coefs<E::Acc>,
        lanes: Range<usize>,
    ) {
        let Self { from, r, passing, to: [(store_y, to_y), (store_x, to_x)], .. } = self;
        let (store_y, store_x) = (store_y.compiled_for(simd), store_x.compiled_for(simd));
        let of = (from.group(at), r[at..].first_chunk().unwrap(), from.bits::<BY>(at));
        let (u, x) = results::<E, BY, BATCH>(simd, of, (coefs, 0), passing);
        store_y.put_lanes(&u, to_y[at..].first_chunk_mut().unwrap(), lanes.clone());
        store_x.put_lanes(&x, to_x[at..].first_chunk_mut().unwrap(), lanes);
    }
    /// Fewer values than a group.
    #[inline(always)]
    fn few<const BY: u8, const BATCH: bool>(
        &mut self,
        simd: Simd,
        at: Range<usize>,
        coefs: (impl Coefs<E::Acc>, usize),
    ) {
        let Self { from, r, passing, to: [(_, to_y), (_, to_x)], .. } = self;
        let (from, r) = (from.part(at.clone()), padded(&r[at.clone()]));
        let of = [padded(from.x), padded(from.grad_y), padded(from.v)];
        let of = ([&of[0], &of[1], &of[2]], &r, from.bits::<BY>(0));
        let (u, x) = results::<E, BY, BATCH>(simd, of, coefs, passing);
        for (to, values) in [(to_y, u), (to_x, x)] {
            let values = simd.narrow::<E, GROUP>(&values);
            to[at.clone()].copy_from_slice(&values[..at.len()]);
        }
    }
}

/// `gg_grad_y` and `gg_x` of a group.
#[inline(always)]
fn results<E: Element, const BY: u8, const BATCH: bool>(
    simd: Simd,
    (of, r, bits): ([&[E; GROUP]; 3], &[E; GROUP], u32),
    coefs: (impl Coefs<E::Acc>, usize),
    passing: &Passing<E::Acc>,
) -> ([E::Acc; GROUP], [E::Acc; GROUP]) {
    let wide = wide::<E, BY>(simd, of, bits, coefs, passing);
    let (u, x) = wide.gradients::<BATCH>(simd.widen(r), coefs);
    (passing.group::<BY>(simd, &wide.z, bits, u), x)
}

impl<A: Real> Wide<A> {
    /// u, which is the gradient of y before the activation, and the gradient of x.
    #[inline(always)]
    fn gradients<const BATCH: bool>(
        &self,
        r: [A; GROUP],
        (coefs, i): (impl Coefs<A>, usize),
    ) -> ([A; GROUP], [A; GROUP]) {
        let Self { xhat, g, v, .. } = self;
        let (scale, u_xhat, u_one) = (coefs.field(3, i), coefs.field(5, i), coefs.field(6, i));
        let (x_v, x_g) = (coefs.field(7, i), coefs.field(8, i));
        let (x_xhat, x_one) = (coefs.field(9, i), coefs.field(10, i));
        let zeros = [A::default(); GROUP];
        let (mut u, mut x) = (zeros, zeros);
        for l in 0..GROUP {
            u[l] = scale[l] * v[l] + u_xhat[l] * xhat[l] + u_one[l] + r[l];
            x[l] = x_g[l] * g[l];
            if BATCH {
                x[l] = x[l] + x_v[l] * v[l] + x_xhat[l] * xhat[l] + x_one[l];
            }
        }
        (u, x)
    }
}
