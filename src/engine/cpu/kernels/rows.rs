//! Loops over a row of features, in f64: its statistics, its values and its gradients.
//!
//! Whatever the elements are, f64 holds all their sums and squares but its own, which are counted in units of
//! a power of two. Sums are made in [`GROUP`] lanes.
use super::super::simd::{GROUP, Simd};
use crate::engine::EpsRule;
use crate::{DType, Element, Real};

type Lanes = [f64; GROUP];

/// The group at `at`; zeros beyond the end.
#[inline(always)]
fn load<E: Element>(simd: Simd, values: &[E], at: usize) -> Lanes {
    let values = &values[at..];
    let wide = match values.first_chunk::<GROUP>() {
        Some(group) => simd.widen(group),
        None => {
            let mut group = [E::default(); GROUP];
            group[..values.len()].copy_from_slice(values);
            simd.widen(&group)
        }
    };
    let mut lanes = [0.0; GROUP];
    for l in 0..GROUP {
        lanes[l] = wide[l].to_f64();
    }
    lanes
}

/// The same of what may be absent.
#[inline(always)]
fn load_or<P: Real>(simd: Simd, values: Option<&[P]>, at: usize, absent: f64) -> Lanes {
    match values {
        Some(values) => load(simd, values, at),
        None => [absent; GROUP],
    }
}

#[inline(always)]
fn store<E: Element>(simd: Simd, lanes: &Lanes, to: &mut [E], at: usize) {
    let mut acc = [E::Acc::default(); GROUP];
    for l in 0..GROUP {
        acc[l] = E::Acc::from_f64(lanes[l]);
    }
    let narrow = simd.narrow::<E, GROUP>(&acc);
    let to = &mut to[at..];
    match to.first_chunk_mut::<GROUP>() {
        Some(group) => *group = narrow,
        None => to.copy_from_slice(&narrow[..to.len()]),
    }
}

/// Sums over `len` values of what `terms` gives for the group at an index.
#[inline(always)]
fn add_up<const K: usize>(len: usize, terms: impl Fn(usize) -> [Lanes; K]) -> [f64; K] {
    let mut sums = [[0.0; GROUP]; K];
    let whole = len - len % GROUP;
    for at in (0..whole).step_by(GROUP) {
        let terms = terms(at);
        for k in 0..K {
            for l in 0..GROUP {
                sums[k][l] += terms[k][l];
            }
        }
    }
    if whole < len {
        let terms = terms(whole);
        for k in 0..K {
            for l in 0..len - whole {
                sums[k][l] += terms[k][l];
            }
        }
    }
    let mut all = [0.0; K];
    for k in 0..K {
        let mut width = GROUP / 2;
        while width > 0 {
            for l in 0..width {
                sums[k][l] += sums[k][l + width];
            }
            width /= 2;
        }
        all[k] = sums[k][0];
    }
    all
}

/// Mean of a row, in two numbers, and its deviation.
#[derive(Debug, Clone, Copy)]
pub struct Statistics {
    pub mean: f64,
    pub rest: f64,
    pub std: f64,
}

impl Statistics {
    /// Of a row with values: by distances from the first, then once more from the mean that those gave, whose
    /// own rounding the second pass tells.
    #[inline(always)]
    pub fn of<E: Element>(simd: Simd, x: &[E]) -> Self {
        if E::DTYPE != DType::F64 {
            return Self::in_units(simd, x, 1.0);
        }
        let plain = Self::in_units(simd, x, 1.0);
        // Within these bounds no square has left the range, and 0 is that of a constant row.
        let of_range = plain.std > 1e-140 && plain.std < 1e140 && plain.mean.is_finite();
        if of_range { plain } else { Self::in_units(simd, x, unit(x)) }
    }
    #[inline(always)]
    fn in_units<E: Element>(simd: Simd, x: &[E], unit: f64) -> Self {
        let (scale, count) = (unit.recip(), x.len() as f64);
        let first = x[0].widen().to_f64() * scale;
        let first = if first.is_finite() { first } else { 0.0 };
        let [sum] = add_up(
            x.len(),
            #[inline(always)]
            |at| {
                let mut x = load(simd, x, at);
                for x in &mut x {
                    *x = *x * scale - first;
                }
                [x]
            },
        );
        let offset = sum / count;
        let [distances, squares] = add_up(
            x.len(),
            #[inline(always)]
            |at| {
                let (mut x, mut squares) = (load(simd, x, at), [0.0; GROUP]);
                for l in 0..GROUP {
                    x[l] = x[l] * scale - first - offset;
                    squares[l] = x[l] * x[l];
                }
                [x, squares]
            },
        );
        let left = distances / count;
        let var = squares / count - left * left;
        // A NaN stays one.
        let var = if var < 0.0 { 0.0 } else { var };
        let offset = offset + or_zero(left);
        let mean = first + offset;
        let rest = or_zero(first - mean + offset);
        Self { mean: mean * unit, rest: rest * unit, std: var.sqrt() * unit }
    }
}

/// The power of two that the largest number of a row is 1 to 2 times.
#[inline(never)]
fn unit<E: Element>(x: &[E]) -> f64 {
    let sizes = x.iter().map(|x| x.widen().to_f64().abs()).filter(|x| x.is_finite());
    power_below(sizes.fold(0.0, f64::max))
}

/// 1 for what is no normal number.
#[inline(always)]
fn power_below(value: f64) -> f64 {
    const EXPONENT: u64 = 0x7ff << 52;
    if value.is_normal() { f64::from_bits(value.to_bits() & EXPONENT) } else { 1.0 }
}

#[inline(always)]
fn or_zero(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

/// What normalizes a row: `xhat = (x * power - mean - rest) * factor`. The power of two keeps distances in
/// range.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    power: f64,
    mean: f64,
    rest: f64,
    factor: f64,
    /// [`EpsRule::through`].
    through: f64,
}

/// The gradients of the parameters, summed over rows: one per feature each.
pub struct Sums<'a> {
    pub g: &'a mut [f64],
    pub g_xhat: &'a mut [f64],
}

impl Row {
    #[inline(always)]
    pub fn new(rule: EpsRule, eps: f64, mean: f64, rest: f64, root: f64) -> Self {
        let inverse = 1.0 / (root + rule.outside(eps));
        let is_least = inverse > 0.0 && inverse < f64::MIN_POSITIVE;
        let power = if is_least { f64::MIN_POSITIVE } else { power_below(inverse).min(1.0) };
        let (mean, rest, factor) = (mean * power, rest * power, inverse / power);
        Self { power, mean, rest, factor, through: rule.through(root, eps) }
    }
    #[inline(always)]
    fn xhat(&self, mut x: Lanes) -> Lanes {
        for x in &mut x {
            *x = (*x * self.power - self.mean - self.rest) * self.factor;
        }
        x
    }

    /// `xhat * weight + bias`.
    #[inline(always)]
    pub fn normalize<E: Element>(
        &self,
        simd: Simd,
        x: &[E],
        weight: Option<&[E::Acc]>,
        bias: Option<&[E::Acc]>,
        y: &mut [E],
    ) {
        for at in (0..x.len()).step_by(GROUP) {
            let mut z = self.xhat(load(simd, x, at));
            let (weight, bias) = (load_or(simd, weight, at, 1.0), load_or(simd, bias, at, 0.0));
            for l in 0..GROUP {
                z[l] = z[l] * weight[l] + bias[l];
            }
            store(simd, &z, y, at);
        }
    }

    /// `weight * grad_y` and xhat of the group at an index.
    #[inline(always)]
    fn weighted<E: Element>(
        &self,
        simd: Simd,
        weight: &[E::Acc],
        x: &[E],
        grad_y: &[E],
        at: usize,
    ) -> [Lanes; 2] {
        let (mut g, weight) = (load(simd, grad_y, at), load(simd, weight, at));
        for l in 0..GROUP {
            g[l] *= weight[l];
        }
        [g, self.xhat(load(simd, x, at))]
    }
    /// The gradient of x.
    #[inline(always)]
    pub fn gradient<E: Element>(
        &self,
        simd: Simd,
        weight: &[E::Acc],
        x: &[E],
        grad_y: &[E],
        grad_x: &mut [E],
    ) {
        let (count, scale) = (x.len() as f64, self.factor * self.power);
        let [sum, dot] = add_up(
            x.len(),
            #[inline(always)]
            |at| {
                let [g, mut xhat] = self.weighted(simd, weight, x, grad_y, at);
                for l in 0..GROUP {
                    xhat[l] *= g[l];
                }
                [g, xhat]
            },
        );
        let (mean, slope) = (sum / count, dot / count * self.through);
        for at in (0..x.len()).step_by(GROUP) {
            let [mut g, xhat] = self.weighted(simd, weight, x, grad_y, at);
            for l in 0..GROUP {
                g[l] = (g[l] - mean - xhat[l] * slope) * scale;
            }
            store(simd, &g, grad_x, at);
        }
    }

    /// Adds this row to the gradients of the parameters.
    #[inline(always)]
    pub fn add_to<E: Element>(&self, simd: Simd, x: &[E], grad_y: &[E], sums: &mut Sums) {
        for at in (0..x.len()).step_by(GROUP) {
            let (g, xhat) = (load(simd, grad_y, at), self.xhat(load(simd, x, at)));
            let (mut sum, mut dot) = (load(simd, sums.g, at), load(simd, sums.g_xhat, at));
            for l in 0..GROUP {
                sum[l] += g[l];
                dot[l] += g[l] * xhat[l];
            }
            store(simd, &sum, sums.g, at);
            store(simd, &dot, sums.g_xhat, at);
        }
    }
}
