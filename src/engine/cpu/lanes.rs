//! Loops over slices of the accumulating type, written for the compiler to vectorise.
//!
//! Sums run in a fixed number of lanes, and no multiplication is fused with an addition: every
//! machine computes the same bits.
use super::coefs::{At, Coef, Strip, block_len};
use crate::Real;

/// Values at a time that pass through scratch memory on the stack; f16 and bf16 are widened there.
pub(super) const BLOCK: usize = 512;
/// Independent partial sums, in halves: loops over more than the widest vector are not unrolled, and
/// sums that are not stay in memory.
const LANES: usize = 32;
const HALF: usize = LANES / 2;

/// Columns that loops over several rows take at a time: the widest vector of f32, and a cache line.
pub(super) const GROUP: usize = 16;

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
fn each_lane<A: Real>(
    x: &[A],
    g: &[A],
    (a, b): (&mut Lanes<A>, &mut Lanes<A>),
    terms: impl Fn(A, A) -> (A, A),
) {
    let (groups, x) = x.as_chunks::<LANES>();
    let (groups_g, g) = g.as_chunks::<LANES>();
    let ([mut a0, mut a1], [mut b0, mut b1]) = (a.0, b.0);
    for (x, g) in groups.iter().zip(groups_g) {
        for l in 0..HALF {
            let terms = terms(x[l], g[l]);
            a0[l] += terms.0;
            b0[l] += terms.1;
        }
        for l in 0..HALF {
            let terms = terms(x[HALF + l], g[HALF + l]);
            a1[l] += terms.0;
            b1[l] += terms.1;
        }
    }
    (a.0, b.0) = ([a0, a1], [b0, b1]);
    let (a, b) = (a.0.as_flattened_mut(), b.0.as_flattened_mut());
    let mut add = |l: usize, x: A, g: A| {
        let terms = terms(x, g);
        a[l] += terms.0;
        b[l] += terms.1;
    };
    let (eights, x) = x.as_chunks::<8>();
    let (eights_g, g) = g.as_chunks::<8>();
    for ((x, g), first) in eights.iter().zip(eights_g).zip([0, 8, 16]) {
        for l in 0..8 {
            add(first + l, x[l], g[l]);
        }
    }
    for (l, (x, g)) in x.iter().zip(g).enumerate() {
        add(24 + l, *x, *g);
    }
}

/// Adds `d = x - pivot` and its square to the lanes.
#[inline(always)]
pub(super) fn distances<A: Real>(x: &[A], pivot: A, sum: &mut Lanes<A>, squares: &mut Lanes<A>) {
    each_lane(
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
pub(super) fn column_distances<A: Real, const ROWS: usize>(
    rows: [&[A]; ROWS],
    pivot: &[A; BLOCK],
    sum: &mut [A; BLOCK],
    squares: &mut [A; BLOCK],
    ahead: impl Fn(usize),
) {
    let n = block_len(rows[0].len());
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
        let (pivot, mut s, mut q) = (pivots[i], [A::default(); GROUP], [A::default(); GROUP]);
        for row in groups {
            let x = row[i];
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
        let (mut s, mut q) = (A::default(), A::default());
        for row in rows {
            let d = row[j] - pivot[j];
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
pub(super) fn gradient_sums<A: Real, const RELU: bool>(
    x: &[A],
    grad_y: &[A],
    coef: Coef<A>,
    zero: A,
    sum: &mut Lanes<A>,
    product: &mut Lanes<A>,
) {
    each_lane(
        x,
        &grad_y[..x.len()],
        (sum, product),
        #[inline(always)]
        |x, g| {
            let g = gate::<A, RELU>(coef, x, g, zero);
            (g, g * (x - coef.mean))
        },
    );
}

/// The same by columns, of several rows at a time: see [`column_distances`].
#[inline(always)]
pub(super) fn add_columns<A: Real, const RELU: bool, const ROWS: usize>(
    x: [&[A]; ROWS],
    grad_y: [&[A]; ROWS],
    at: &Strip<A>,
    zero: A,
    sum: &mut [A; BLOCK],
    product: &mut [A; BLOCK],
    ahead: impl Fn(usize),
) {
    let n = block_len(x[ROWS - 1].len());
    let (mut xs, mut gs) = (x, grad_y);
    for r in 0..ROWS {
        (xs[r], gs[r]) = (&x[r][..n], &grad_y[r][..n]);
    }
    let (sums, products) = (sum.as_chunks_mut().0, product.as_chunks_mut().0);
    for i in 0..n / GROUP {
        ahead(GROUP * i);
        let coef = at.group(i);
        let (mut s, mut p) = ([A::default(); GROUP], [A::default(); GROUP]);
        for r in 0..ROWS {
            let (x, g) = (xs[r].as_chunks::<GROUP>().0[i], gs[r].as_chunks::<GROUP>().0[i]);
            for l in 0..GROUP {
                let g = gate::<A, RELU>(coef(l), x[l], g[l], zero);
                s[l] += g;
                p[l] += g * (x[l] - coef(l).mean);
            }
        }
        add(&mut sums[i], s);
        add(&mut products[i], p);
    }
    for j in n - n % GROUP..n {
        let coef = at.at(j);
        let (mut s, mut p) = (A::default(), A::default());
        for r in 0..ROWS {
            let x = xs[r][j];
            let g = gate::<A, RELU>(coef, x, gs[r][j], zero);
            s += g;
            p += g * (x - coef.mean);
        }
        sum[j] += s;
        product[j] += p;
    }
}

/// Scratch memory of a task, one array for each tensor that may have to be widened.
pub(super) struct Scratch<A> {
    pub x: [A; BLOCK],
    pub other: [A; BLOCK],
    pub g: [A; BLOCK],
    pub out: [A; BLOCK],
}
impl<A: Real> Scratch<A> {
    #[inline(always)]
    pub fn new() -> Self {
        let zeros = [A::default(); BLOCK];
        Self { x: zeros, other: zeros, g: zeros, out: zeros }
    }
}

/// `y = [relu](normalize(x) [+ residual])`.
#[inline(always)]
pub(super) fn normalize<A: Real, const RELU: bool>(
    x: &[A],
    residual: Option<&[A]>,
    at: impl At<A>,
    y: &mut [A],
) {
    match residual {
        None => at.map(
            x,
            x,
            y,
            #[inline(always)]
            |coef, x, _| relu::<A, RELU>(coef.normalize(x)),
        ),
        Some(r) => at.map(
            x,
            r,
            y,
            #[inline(always)]
            |coef, x, r| relu::<A, RELU>(coef.normalize(x) + r),
        ),
    }
}

/// Compare and select: NaN stays, and there is no branch on data.
#[inline(always)]
fn relu<A: Real, const RELU: bool>(v: A) -> A {
    if RELU && v <= A::default() { A::default() } else { v }
}

/// `grad_y` where there is no ReLU or the forward's output rounds to more than `zero` or is NaN,
/// else 0.
#[inline(always)]
fn gate<A: Real, const RELU: bool>(coef: Coef<A>, x: A, grad_y: A, zero: A) -> A {
    if RELU && coef.normalize(x) <= zero { A::default() } else { grad_y }
}

/// `g = grad_y` where the mask has a 1, else 0.
#[inline(always)]
pub(super) fn gate_masked<A: Real>(mask: &[u8], grad_y: &[A], g: &mut [A]) {
    let gate = |bits: u8, k: usize, v: A| if bits >> k & 1 == 1 { v } else { A::default() };
    let (eights, rest) = g.as_chunks_mut::<8>();
    let (eights_y, rest_y) = grad_y.as_chunks::<8>();
    for ((g, grad_y), &bits) in eights.iter_mut().zip(eights_y).zip(mask) {
        for k in 0..8 {
            g[k] = gate(bits, k, grad_y[k]);
        }
    }
    for (k, (g, grad_y)) in rest.iter_mut().zip(rest_y).enumerate() {
        *g = gate(mask[eights_y.len()], k, *grad_y);
    }
}

/// One bit for each output: whether its gradient passes. NaN passes.
#[inline(always)]
pub(super) fn mask_of<A: Real>(y: &[A], rounds_to_zero: A, mask: &mut [u8]) {
    let stopped = |k: usize, y: A| u8::from(y <= rounds_to_zero) << k;
    let (eights, rest) = y.as_chunks::<8>();
    for (y, bits) in eights.iter().zip(&mut *mask) {
        *bits = !std::array::from_fn::<u8, 8, _>(|k| stopped(k, y[k])).iter().fold(0, |a, b| a | b);
    }
    if !rest.is_empty() {
        let each = rest.iter().enumerate().map(|(k, y)| stopped(k, *y));
        mask[eights.len()] = !each.fold(0, |all, bit| all | bit);
    }
}

/// `grad_x = scale * (g - mean_g - (x - mean) * slope)`, `g` being what passes the gate.
#[inline(always)]
pub(super) fn input_gradient<A: Real, const RELU: bool>(
    x: &[A],
    grad_y: &[A],
    at: impl At<A>,
    zero: A,
    grad_x: &mut [A],
) {
    at.map(
        x,
        grad_y,
        grad_x,
        #[inline(always)]
        |s, x, grad_y| {
            let g = gate::<A, RELU>(s, x, grad_y, zero);
            s.scale * (g - s.mean_g - (x - s.mean) * s.slope)
        },
    );
}

/// `grad_x = scale * g`: what is left of it where the statistics are constants.
#[inline(always)]
pub(super) fn frozen_gradient<A: Real, const RELU: bool>(
    x: &[A],
    grad_y: &[A],
    at: impl At<A>,
    zero: A,
    grad_x: &mut [A],
) {
    at.map(
        x,
        grad_y,
        grad_x,
        #[inline(always)]
        |s, x, grad_y| s.scale * gate::<A, RELU>(s, x, grad_y, zero),
    );
}
