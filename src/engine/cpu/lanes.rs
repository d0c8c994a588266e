//! Loops over slices, written for the compiler to vectorise: a group of values is widened as it is
//! loaded, and rounded as it is stored.
//!
//! Sums run in a fixed number of lanes, and no multiplication is fused with an addition: every
//! machine computes the same bits.
use super::coefs::{At, Coef, Strip};
use super::simd::Simd;
use super::store::Store;
use crate::{Element, Real};

/// Values of a row that are taken at a time.
pub(super) const BLOCK: usize = 512;
/// Room for them, and for a last few that are not worth a time of their own.
pub(super) const ROOM: usize = BLOCK + GROUP;
/// Independent partial sums, in halves: loops over more than the widest vector are not unrolled, and
/// sums that are not stay in memory.
const LANES: usize = 32;
const HALF: usize = LANES / 2;

/// Columns that loops over several rows take at a time: the widest vector of f32, and a cache line.
pub(super) const GROUP: usize = 16;

/// Memory of a task for values of a row, if it turns out that it needs any.
pub(super) struct Scratch<E>(Option<[E; ROOM]>);

impl<E: Element> Scratch<E> {
    #[inline(always)]
    pub fn new() -> Self {
        Self(None)
    }
    /// Room for `len` values; what was there stays.
    #[inline(always)]
    pub fn values(&mut self, len: usize) -> &mut [E] {
        let all = self.0.get_or_insert_with(
            #[inline(always)]
            || [E::default(); ROOM],
        );
        &mut all[..len]
    }
    /// A copy.
    #[inline(always)]
    pub fn copy(&mut self, from: &[E]) -> &[E] {
        let values = self.values(from.len());
        values.copy_from_slice(from);
        values
    }
}

/// Partial sums over many runs.
#[derive(Clone, Copy)]
pub(super) struct Lanes<A>([[A; HALF]; 2]);

impl<A: Real> Lanes<A> {
    #[inline(always)]
    pub fn new() -> Self {
        Self([[A::default(); HALF]; 2])
    }
    /// Their sum.
    #[inline(always)]
    pub fn total(&self) -> f64 {
        self.0.as_flattened().iter().map(|v| v.to_f64()).sum()
    }
}

/// Adds both terms of every pair of values to the lanes: whole groups of lanes become vectors, and
/// the sums stay in registers.
#[inline(always)]
fn each_lane<E: Element>(
    simd: Simd,
    x: &[E],
    g: &[E],
    (a, b): (&mut Lanes<E::Acc>, &mut Lanes<E::Acc>),
    terms: impl Fn(E::Acc, E::Acc) -> (E::Acc, E::Acc),
) {
    let (groups, x) = x.as_chunks::<LANES>();
    let (groups_g, g) = g.as_chunks::<LANES>();
    let ([mut a0, mut a1], [mut b0, mut b1]) = (a.0, b.0);
    for (x, g) in groups.iter().zip(groups_g) {
        let ([x0, x1], [g0, g1]) = (halves(simd, x), halves(simd, g));
        for l in 0..HALF {
            let terms = terms(x0[l], g0[l]);
            a0[l] += terms.0;
            b0[l] += terms.1;
        }
        for l in 0..HALF {
            let terms = terms(x1[l], g1[l]);
            a1[l] += terms.0;
            b1[l] += terms.1;
        }
    }
    (a.0, b.0) = ([a0, a1], [b0, b1]);
    let (a, b) = (a.0.as_flattened_mut(), b.0.as_flattened_mut());
    let mut add = |l: usize, x: E::Acc, g: E::Acc| {
        let terms = terms(x, g);
        a[l] += terms.0;
        b[l] += terms.1;
    };
    let (eights, x) = x.as_chunks::<8>();
    let (eights_g, g) = g.as_chunks::<8>();
    for ((x, g), first) in eights.iter().zip(eights_g).zip([0, 8, 16]) {
        let (x, g) = (simd.widen(x), simd.widen(g));
        for l in 0..8 {
            add(first + l, x[l], g[l]);
        }
    }
    for (l, (x, g)) in x.iter().zip(g).enumerate() {
        add(24 + l, x.widen(), g.widen());
    }
}

#[inline(always)]
fn halves<E: Element>(simd: Simd, group: &[E; LANES]) -> [[E::Acc; HALF]; 2] {
    let halves = group.as_chunks::<HALF>().0;
    [simd.widen(&halves[0]), simd.widen(&halves[1])]
}

/// Adds `d = x - pivot` and its square to the lanes.
#[inline(always)]
pub(super) fn distances<E: Element>(
    simd: Simd,
    x: &[E],
    pivot: E::Acc,
    sum: &mut Lanes<E::Acc>,
    squares: &mut Lanes<E::Acc>,
) {
    each_lane(
        simd,
        x,
        x,
        (sum, squares),
        #[inline(always)]
        |x, _| {
            let d = x - pivot;
            (d, d * d)
        },
    );
}

/// Adds `d = x - pivot` and its square to their columns, of several rows at a time: sums in memory
/// cost as much as the arithmetic of one row. `ahead` is called with the column of every [`GROUP`].
#[inline(always)]
pub(super) fn column_distances<E: Element, const ROWS: usize>(
    simd: Simd,
    rows: [&[E]; ROWS],
    pivot: &[E::Acc; BLOCK],
    sum: &mut [E::Acc; BLOCK],
    squares: &mut [E::Acc; BLOCK],
    ahead: impl Fn(usize),
) {
    let n = rows[0].len();
    assert!(n <= BLOCK);
    let rows = rows.map(
        #[inline(always)]
        |row| &row[..n],
    );
    let groups = rows.map(
        #[inline(always)]
        |row| row.as_chunks::<GROUP>().0,
    );
    let pivots = pivot.as_chunks::<GROUP>().0;
    let (sums, squared) = (sum.as_chunks_mut().0, squares.as_chunks_mut().0);
    for i in 0..n / GROUP {
        ahead(GROUP * i);
        let zeros = [E::Acc::default(); GROUP];
        let (pivot, mut s, mut q) = (pivots[i], zeros, zeros);
        for row in groups {
            let x = simd.widen(&row[i]);
            for l in 0..GROUP {
                let d = x[l] - pivot[l];
                s[l] += d;
                q[l] += d * d;
            }
        }
        add(&mut sums[i], s);
        add(&mut squared[i], q);
    }
    for j in n - n % GROUP..n {
        let (mut s, mut q) = (E::Acc::default(), E::Acc::default());
        for row in rows {
            let d = row[j].widen() - pivot[j];
            s += d;
            q += d * d;
        }
        sum[j] += s;
        squares[j] += q;
    }
}

#[inline(always)]
fn add<A: Real>(sums: &mut [A; GROUP], more: [A; GROUP]) {
    let mut all = *sums;
    for l in 0..GROUP {
        all[l] += more[l];
    }
    *sums = all;
}

/// The sum of `term` over values, in eight lanes.
#[inline(always)]
pub(super) fn total(values: &[f64], term: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0.0; 8];
    let (groups, rest) = values.as_chunks::<8>();
    for group in groups {
        for l in 0..8 {
            lanes[l] += term(group[l]);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += term(*v);
    }
    lanes.iter().sum()
}

/// Adds `g` and `g * (x - mean)` to the lanes, `g` being what passes the gate.
#[inline(always)]
pub(super) fn gradient_sums<E: Element, const RELU: bool>(
    simd: Simd,
    x: &[E],
    grad_y: &[E],
    coef: Coef<E::Acc>,
    sum: &mut Lanes<E::Acc>,
    product: &mut Lanes<E::Acc>,
) {
    each_lane(
        simd,
        x,
        &grad_y[..x.len()],
        (sum, product),
        #[inline(always)]
        |x, g| {
            let g = gate::<E, RELU>(coef, x, g);
            (g, g * (x - coef.mean))
        },
    );
}

/// The same by columns, of several rows at a time: see [`column_distances`].
#[inline(always)]
#[allow(clippy::too_many_arguments)] // which belong together as little
pub(super) fn add_columns<E: Element, const RELU: bool, const ROWS: usize>(
    simd: Simd,
    x: [&[E]; ROWS],
    grad_y: [&[E]; ROWS],
    at: &Strip<E::Acc>,
    sum: &mut [E::Acc; BLOCK],
    product: &mut [E::Acc; BLOCK],
    ahead: impl Fn(usize),
) {
    let n = x[ROWS - 1].len();
    assert!(n <= BLOCK);
    let (mut xs, mut gs) = (x, grad_y);
    for r in 0..ROWS {
        (xs[r], gs[r]) = (&x[r][..n], &grad_y[r][..n]);
    }
    let (sums, products) = (sum.as_chunks_mut().0, product.as_chunks_mut().0);
    for i in 0..n / GROUP {
        ahead(GROUP * i);
        let zeros = [E::Acc::default(); GROUP];
        let (coef, mut s, mut p) = (at.group(i), zeros, zeros);
        for r in 0..ROWS {
            let x = simd.widen(&xs[r].as_chunks::<GROUP>().0[i]);
            let g = simd.widen(&gs[r].as_chunks::<GROUP>().0[i]);
            for l in 0..GROUP {
                let g = gate::<E, RELU>(coef(l), x[l], g[l]);
                s[l] += g;
                p[l] += g * (x[l] - coef(l).mean);
            }
        }
        add(&mut sums[i], s);
        add(&mut products[i], p);
    }
    for j in n - n % GROUP..n {
        let coef = at.at(j);
        let (mut s, mut p) = (E::Acc::default(), E::Acc::default());
        for r in 0..ROWS {
            let x = xs[r][j].widen();
            let g = gate::<E, RELU>(coef, x, gs[r][j].widen());
            s += g;
            p += g * (x - coef.mean);
        }
        sum[j] += s;
        product[j] += p;
    }
}

/// `y = [relu](normalize(x) [+ residual])`: see [`At::map`].
#[inline(always)]
pub(super) fn normalize<E: Element, const RELU: bool>(
    store: Store,
    x: &[E],
    residual: Option<&[E]>,
    at: impl At<E::Acc>,
    y: &mut [E],
    ahead: [&[E]; 2],
) {
    match residual {
        None => at.map(
            store,
            x,
            x,
            y,
            ahead,
            #[inline(always)]
            |coef, x, _| relu::<_, RELU>(coef.normalize(x)),
        ),
        Some(r) => at.map(
            store,
            x,
            r,
            y,
            ahead,
            #[inline(always)]
            |coef, x, r| relu::<_, RELU>(coef.normalize(x) + r),
        ),
    }
}

/// Compare and select: NaN stays, and there is no branch on data.
#[inline(always)]
fn relu<A: Real, const RELU: bool>(v: A) -> A {
    if RELU && v <= A::default() { A::default() } else { v }
}

/// `grad_y` where there is no ReLU or the forward's output rounds to more than zero or is NaN, else
/// 0.
#[inline(always)]
fn gate<E: Element, const RELU: bool>(coef: Coef<E::Acc>, x: E::Acc, grad_y: E::Acc) -> E::Acc {
    if RELU && coef.normalize(x) <= E::ROUNDS_TO_ZERO { E::Acc::default() } else { grad_y }
}

/// `g = grad_y` where the mask has a 1, else 0.
#[inline(always)]
pub(super) fn gate_masked<E: Element>(simd: Simd, mask: &[u8], grad_y: &[E], g: &mut [E]) {
    let (eights, rest) = g.as_chunks_mut::<8>();
    let (eights_y, rest_y) = grad_y.as_chunks::<8>();
    for ((g, grad_y), &bits) in eights.iter_mut().zip(eights_y).zip(mask) {
        *g = simd.keep(bits, grad_y);
    }
    for (k, (g, grad_y)) in rest.iter_mut().zip(rest_y).enumerate() {
        *g = if mask[eights_y.len()] >> k & 1 == 1 { *grad_y } else { E::default() };
    }
}

/// One bit for each output of a ReLU: whether its gradient passes. NaN passes.
#[inline(always)]
pub(super) fn mask_of<E: Element>(simd: Simd, y: &[E], mask: &mut [u8]) {
    let (eights, rest) = y.as_chunks::<8>();
    for (y, bits) in eights.iter().zip(&mut *mask) {
        *bits = simd.positive(&simd.widen(y));
    }
    if !rest.is_empty() {
        let mut last = [E::Acc::default(); 8];
        last.iter_mut().zip(rest).for_each(|(last, y)| *last = y.widen());
        mask[eights.len()] = simd.positive(&last);
    }
}

/// `grad_x = scale * (g - mean_g - (x - mean) * slope)`, `g` being what passes the gate.
#[inline(always)]
pub(super) fn input_gradient<E: Element, const RELU: bool>(
    store: Store,
    x: &[E],
    grad_y: &[E],
    at: impl At<E::Acc>,
    grad_x: &mut [E],
    ahead: [&[E]; 2],
) {
    at.map(
        store,
        x,
        grad_y,
        grad_x,
        ahead,
        #[inline(always)]
        |s, x, grad_y| {
            let g = gate::<E, RELU>(s, x, grad_y);
            s.scale * (g - s.mean_g - (x - s.mean) * s.slope)
        },
    );
}

/// `grad_x = scale * g`: what is left of it where the statistics are constants.
#[inline(always)]
pub(super) fn frozen_gradient<E: Element, const RELU: bool>(
    store: Store,
    x: &[E],
    grad_y: &[E],
    at: impl At<E::Acc>,
    grad_x: &mut [E],
    ahead: [&[E]; 2],
) {
    at.map(
        store,
        x,
        grad_y,
        grad_x,
        ahead,
        #[inline(always)]
        |s, x, grad_y| s.scale * gate::<E, RELU>(s, x, grad_y),
    );
}
