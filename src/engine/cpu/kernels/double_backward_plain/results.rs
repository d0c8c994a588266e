//! The second pass: what the sums make of the elements.
use super::super::super::simd::{GROUP, Simd, Store, to_line};
use super::super::double_backward::{Coefs, One};
use super::{ABOVE, BITS, LEAKING, NOTHING, WITHIN};
use super::{By, COLUMNS, From, Many, Passing, Runs, Wide, padded, wide};
use crate::{Element, Real};
use std::ops::Range;

/// Runs from here on are worth to be brought to the start of a cache line.
const ALIGNED: usize = 128;

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
        let Runs { inner, bits, coefs } = runs;
        let first_bit = self.from.first_bit;
        for (k, coefs) in coefs.iter().enumerate() {
            self.from.first_bit = first_bit + k * (bits - inner);
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
