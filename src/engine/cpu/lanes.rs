//! Loops over slices of the accumulating type, written for the compiler to vectorise.
//!
//! Sums run in a fixed number of lanes, and no multiplication is fused with an addition: every
//! machine computes the same bits.
use crate::Real;

/// Values at a time that pass through scratch memory on the stack; f16 and bf16 are widened there.
pub(super) const BLOCK: usize = 512;
/// Independent partial sums.
const LANES: usize = 32;

/// Partial sums over many runs.
#[derive(Clone, Copy)]
pub(super) struct Lanes<A>([A; LANES]);

impl<A: Real> Lanes<A> {
    #[inline(always)]
    pub fn new() -> Self {
        Self([A::default(); LANES])
    }
    /// Their sum.
    #[inline(always)]
    pub fn total(&self) -> f64 {
        self.0.iter().map(|v| v.to_f64()).sum()
    }
}

/// Calls `add` with every pair of values and their lane: whole groups of lanes become vectors.
#[inline(always)]
fn each_lane<A: Copy>(x: &[A], g: &[A], mut add: impl FnMut(usize, A, A)) {
    let (groups, x) = x.as_chunks::<LANES>();
    let (groups_g, g) = g.as_chunks::<LANES>();
    for (x, g) in groups.iter().zip(groups_g) {
        for l in 0..LANES {
            add(l, x[l], g[l]);
        }
    }
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

/// Adds `x - shift` to the lanes.
#[inline(always)]
pub(super) fn sum_from<A: Real>(x: &[A], shift: A, sum: &mut Lanes<A>) {
    let mut lanes = sum.0;
    each_lane(
        x,
        x,
        #[inline(always)]
        |l, x, _| lanes[l] += x - shift,
    );
    sum.0 = lanes;
}

/// Adds `d = (x - shift) - delta` and its square to the lanes.
#[inline(always)]
pub(super) fn squares_from<A: Real>(
    x: &[A],
    shift: A,
    delta: A,
    rest: &mut Lanes<A>,
    squares: &mut Lanes<A>,
) {
    let (mut r, mut s) = (rest.0, squares.0);
    each_lane(
        x,
        x,
        #[inline(always)]
        |l, x, _| {
            let d = (x - shift) - delta;
            r[l] += d;
            s[l] += d * d;
        },
    );
    (rest.0, squares.0) = (r, s);
}

/// Adds `g` and `g * (x - mean)` to the lanes.
#[inline(always)]
pub(super) fn gradient_sums<A: Real>(
    x: &[A],
    g: &[A],
    mean: A,
    sum: &mut Lanes<A>,
    product: &mut Lanes<A>,
) {
    let (mut s, mut p) = (sum.0, product.0);
    each_lane(
        x,
        &g[..x.len()],
        #[inline(always)]
        |l, x, g| {
            s[l] += g;
            p[l] += g * (x - mean);
        },
    );
    (sum.0, product.0) = (s, p);
}

/// Adds `g` and `g * (x - mean)` to their columns.
#[inline(always)]
pub(super) fn add_columns<A: Real>(
    x: &[A],
    g: &[A],
    at: impl At<A>,
    sum: &mut [A; BLOCK],
    product: &mut [A; BLOCK],
) {
    let n = block_len(x.len());
    let (x, g) = (&x[..n], &g[..n]);
    for j in 0..n {
        sum[j] += g[j];
        product[j] += g[j] * (x[j] - at.at(j).mean);
    }
}

/// A channel's coefficients.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Coef<A> {
    pub mean: A,
    /// `weight * invstd`.
    pub scale: A,
    /// Less `scale` times what rounding left of the mean.
    pub bias: A,
    /// `sum(g) / m`, less `slope` times what rounding left of the mean.
    pub mean_g: A,
    /// `invstd^2 * sum(g * (x - mean)) / m`.
    pub slope: A,
}

impl<A: Real> Coef<A> {
    /// The one expression of forward, and of backward where it recomputes the ReLU: the same bits.
    #[inline(always)]
    fn normalize(self, x: A) -> A {
        (x - self.mean) * self.scale + self.bias
    }
}

/// Coefficients by position: one for a whole run, or one for each column.
pub(super) trait At<A>: Copy {
    fn at(&self, i: usize) -> Coef<A>;
}

/// The same everywhere.
#[derive(Clone, Copy)]
pub(super) struct Same<A>(pub Coef<A>);
impl<A: Real> At<A> for Same<A> {
    #[inline(always)]
    fn at(&self, _: usize) -> Coef<A> {
        self.0
    }
}

/// Those of a strip of columns, an array for each field, so that loops over columns become
/// vectors.
pub(super) struct Strip<A> {
    mean: [A; BLOCK],
    scale: [A; BLOCK],
    bias: [A; BLOCK],
    mean_g: [A; BLOCK],
    slope: [A; BLOCK],
}
impl<A: Real> Strip<A> {
    #[inline(always)]
    pub fn new() -> Self {
        let zeros = [A::default(); BLOCK];
        Self { mean: zeros, scale: zeros, bias: zeros, mean_g: zeros, slope: zeros }
    }
    #[inline(always)]
    pub fn set(&mut self, i: usize, coef: Coef<A>) {
        (self.mean[i], self.scale[i], self.bias[i]) = (coef.mean, coef.scale, coef.bias);
        (self.mean_g[i], self.slope[i]) = (coef.mean_g, coef.slope);
    }
}
impl<A: Real> At<A> for &Strip<A> {
    #[inline(always)]
    fn at(&self, i: usize) -> Coef<A> {
        Coef {
            mean: self.mean[i],
            scale: self.scale[i],
            bias: self.bias[i],
            mean_g: self.mean_g[i],
            slope: self.slope[i],
        }
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
    let n = block_len(y.len());
    let (x, y) = (&x[..n], &mut y[..n]);
    match residual {
        None => (0..n).for_each(|i| y[i] = relu::<A, RELU>(at.at(i).normalize(x[i]))),
        Some(r) => {
            let r = &r[..n];
            (0..n).for_each(|i| y[i] = relu::<A, RELU>(at.at(i).normalize(x[i]) + r[i]));
        }
    }
}

/// Tells the compiler that no index passes the end of a strip.
#[inline(always)]
fn block_len(n: usize) -> usize {
    assert!(n <= BLOCK);
    n
}

/// Compare and select: NaN stays, and there is no branch on data.
#[inline(always)]
fn relu<A: Real, const RELU: bool>(v: A) -> A {
    if RELU && v <= A::default() { A::default() } else { v }
}

/// `g = grad_y` where the forward's output rounds to more than zero or is NaN, else 0.
#[inline(always)]
pub(super) fn gate_recomputed<A: Real>(
    x: &[A],
    grad_y: &[A],
    at: impl At<A>,
    rounds_to_zero: A,
    g: &mut [A],
) {
    let n = block_len(g.len());
    let (x, grad_y, g) = (&x[..n], &grad_y[..n], &mut g[..n]);
    for i in 0..n {
        // Loaded in any case, so that there is something to select from.
        let (v, stopped) = (grad_y[i], at.at(i).normalize(x[i]) <= rounds_to_zero);
        g[i] = if stopped { A::default() } else { v };
    }
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

/// `grad_x = scale * (g - mean_g - (x - mean) * slope)`.
#[inline(always)]
pub(super) fn input_gradient<A: Real>(x: &[A], g: &[A], at: impl At<A>, grad_x: &mut [A]) {
    let n = block_len(grad_x.len());
    let (x, g, grad_x) = (&x[..n], &g[..n], &mut grad_x[..n]);
    for i in 0..n {
        let s = at.at(i);
        grad_x[i] = s.scale * (g[i] - s.mean_g - (x[i] - s.mean) * s.slope);
    }
}

/// `grad_x = scale * g`: what is left of it where the statistics are constants.
#[inline(always)]
pub(super) fn frozen_gradient<A: Real>(g: &[A], at: impl At<A>, grad_x: &mut [A]) {
    let n = block_len(grad_x.len());
    let (g, grad_x) = (&g[..n], &mut grad_x[..n]);
    for i in 0..n {
        grad_x[i] = at.at(i).scale * g[i];
    }
}
