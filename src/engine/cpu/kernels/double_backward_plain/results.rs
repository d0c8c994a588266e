//! The second pass: what the sums make of the elements.
use super::super::super::simd::{GROUP, Simd, Store, to_line};
use super::super::double_backward::{Coefs, One};
use super::{ABOVE, ALL, BITS, LEAKING, NOTHING, WITHIN};
use super::{By, COLUMNS, From, Group, Many, Passing, Runs, Wide, padded, wide};
use crate::{Element, Real};
use std::ops::Range;

/// Runs from here on are worth to be brought to the start of a cache line.
const ALIGNED: usize = 128;

/// Through what gradients flow beside the elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// Nothing: the statistics are constants.
    Constants,
    /// Statistics of all values.
    All,
    /// Statistics of those that count, by the bytes.
    Counted,
}
const CONSTANTS: u8 = 0;
const OF_ALL: u8 = 1;
const COUNTED: u8 = 2;

/// What a call writes: `gg_grad_y` and `gg_x` of some values.
pub struct Results<'a, E: Element> {
    pub from: From<'a, E>,
    /// What is given for the residual's gradient.
    pub r: &'a [E],
    pub passing: &'a Passing<E::Acc>,
    pub through: Through,
    pub to: [(Store, &'a mut [E]); 2],
}

impl<E: Element> Results<'_, E> {
    /// Those of runs.
    pub fn write_runs(self, simd: Simd, runs: Runs<'_, E::Acc>) {
        match self.through {
            Through::Constants => self.runs_through::<CONSTANTS>(simd, runs),
            Through::All => self.runs_through::<OF_ALL>(simd, runs),
            Through::Counted => self.runs_through::<COUNTED>(simd, runs),
        }
    }
    fn runs_through<const THROUGH: u8>(self, simd: Simd, runs: Runs<'_, E::Acc>) {
        match self.passing.by {
            By::Nothing => self.runs_by::<NOTHING, THROUGH>(simd, runs),
            By::Above => self.runs_by::<ABOVE, THROUGH>(simd, runs),
            By::Within => self.runs_by::<WITHIN, THROUGH>(simd, runs),
            By::Leaking => self.runs_by::<LEAKING, THROUGH>(simd, runs),
            By::Bits => self.runs_by::<BITS, THROUGH>(simd, runs),
        }
    }
    /// A function of its own for each [`By`], as for the columns and the sums: the compiler takes longer for one
    /// with the loops of all five.
    fn runs_by<const BY: u8, const THROUGH: u8>(self, simd: Simd, runs: Runs<'_, E::Acc>) {
        simd.vectorize(
            #[inline(always)]
            |simd| self.runs::<BY, THROUGH>(simd, runs),
        );
    }
    /// Those of columns, whose coefficients repeat after a period.
    pub fn write_columns(self, simd: Simd, coefs: Many<'_, E::Acc>, period: usize) {
        match self.through {
            Through::Constants => self.columns_through::<CONSTANTS>(simd, coefs, period),
            Through::All => self.columns_through::<OF_ALL>(simd, coefs, period),
            Through::Counted => self.columns_through::<COUNTED>(simd, coefs, period),
        }
    }
    fn columns_through<const THROUGH: u8>(
        self,
        simd: Simd,
        coefs: Many<'_, E::Acc>,
        period: usize,
    ) {
        match self.passing.by {
            By::Nothing => self.columns_by::<NOTHING, THROUGH>(simd, coefs, period),
            By::Above => self.columns_by::<ABOVE, THROUGH>(simd, coefs, period),
            By::Within => self.columns_by::<WITHIN, THROUGH>(simd, coefs, period),
            By::Leaking => self.columns_by::<LEAKING, THROUGH>(simd, coefs, period),
            By::Bits => self.columns_by::<BITS, THROUGH>(simd, coefs, period),
        }
    }
    fn columns_by<const BY: u8, const THROUGH: u8>(
        self,
        simd: Simd,
        coefs: Many<'_, E::Acc>,
        period: usize,
    ) {
        simd.vectorize(
            #[inline(always)]
            |simd| self.columns::<BY, THROUGH>(simd, coefs, period),
        );
    }

    /// Of each run a group of which some values lie before `gg_grad_y` starts a line, whole groups from there on, and
    /// one that ends with the run. They overlap, which is harmless, as nothing that is read is written.
    #[inline(always)]
    fn runs<const BY: u8, const THROUGH: u8>(mut self, simd: Simd, runs: Runs<'_, E::Acc>) {
        let (all, inner) = (self.from, runs.inner);
        for (k, coefs) in runs.coefs.iter().enumerate() {
            let mut run = self.run(all.run(k, &runs), k * inner..(k + 1) * inner);
            let coefs = One(*coefs);
            if inner < GROUP {
                run.few::<BY, THROUGH>(simd, 0..inner, (coefs, 0));
                continue;
            }
            let head = match inner >= ALIGNED {
                true => to_line(&run.to[0].1[..inner]) % GROUP,
                false => 0,
            };
            let rest = (inner - head) % GROUP;
            if head > 0 {
                run.lanes::<BY, THROUGH>(simd, 0, coefs, 0..head);
            }
            run.groups::<BY, THROUGH>(simd, head..inner - rest, coefs);
            if rest > 0 {
                run.lanes::<BY, THROUGH>(simd, inner - GROUP, coefs, GROUP - rest..GROUP);
            }
        }
    }
    /// The values `at` of it, of which this is read.
    #[inline(always)]
    fn run<'s>(&'s mut self, from: From<'s, E>, at: Range<usize>) -> Results<'s, E> {
        let Self { r, passing, through, to: [(store_y, to_y), (store_x, to_x)], .. } = self;
        let (to_y, to_x) = (&mut to_y[at.clone()], &mut to_x[at.clone()]);
        let to = [(*store_y, to_y), (*store_x, to_x)];
        Results { from, r: &r[at], passing: *passing, through: *through, to }
    }
    #[inline(always)]
    fn columns<const BY: u8, const THROUGH: u8>(
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
            self.groups::<BY, THROUGH>(simd, start..start + whole, coefs);
            if start + whole < end {
                self.few::<BY, THROUGH>(simd, start + whole..end, (coefs, whole / GROUP));
            }
        }
    }
    /// Whole groups of values.
    #[inline(always)]
    fn groups<const BY: u8, const THROUGH: u8>(
        &mut self,
        simd: Simd,
        at: Range<usize>,
        coefs: impl Coefs<E::Acc>,
    ) {
        let Self { from, r, passing, to: [(store_y, to_y), (store_x, to_x)], .. } = self;
        let (store_y, store_x) = (store_y.compiled_for(simd), store_x.compiled_for(simd));
        let (from, r) = (from.part(at.clone()), &r[at.clone()]);
        let (to_y, to_x) = (&mut to_y[at.clone()], &mut to_x[at]);
        let ([x, grad_y, v], counts) = from.groups(THROUGH == COUNTED);
        let (len, r) = (x.len(), r.as_chunks::<GROUP>().0);
        let (to_y, to_x) = (to_y.as_chunks_mut().0, to_x.as_chunks_mut().0);
        let (r, to_y, to_x) = (&r[..len], &mut to_y[..len], &mut to_x[..len]);
        for i in 0..len {
            let bits = from.bits::<BY>(i * GROUP);
            let counts = if THROUGH == COUNTED { &counts[i] } else { ALL };
            let of = Group { values: [&x[i], &grad_y[i], &v[i]], bits, counts };
            let (u, x) = results::<E, BY, THROUGH>(simd, (of, &r[i]), (coefs, i), passing);
            store_y.put(&u, &mut to_y[i], || ());
            store_x.put(&x, &mut to_x[i], || ());
        }
    }
    /// Some lanes of the group from the `at`th value on, of which the others may be written, too.
    #[inline(always)]
    fn lanes<const BY: u8, const THROUGH: u8>(
        &mut self,
        simd: Simd,
        at: usize,
        coefs: impl Coefs<E::Acc>,
        lanes: Range<usize>,
    ) {
        let Self { from, r, passing, to: [(store_y, to_y), (store_x, to_x)], .. } = self;
        let (store_y, store_x) = (store_y.compiled_for(simd), store_x.compiled_for(simd));
        let group = from.group::<BY>(at, THROUGH == COUNTED);
        let of = (group, r[at..].first_chunk().unwrap());
        let (u, x) = results::<E, BY, THROUGH>(simd, of, (coefs, 0), passing);
        store_y.put_lanes(&u, to_y[at..].first_chunk_mut().unwrap(), lanes.clone());
        store_x.put_lanes(&x, to_x[at..].first_chunk_mut().unwrap(), lanes);
    }
    /// Fewer values than a group.
    #[inline(always)]
    fn few<const BY: u8, const THROUGH: u8>(
        &mut self,
        simd: Simd,
        at: Range<usize>,
        coefs: (impl Coefs<E::Acc>, usize),
    ) {
        let Self { from, r, passing, to: [(_, to_y), (_, to_x)], .. } = self;
        let (from, r) = (from.part(at.clone()), padded(&r[at.clone()]));
        from.padded::<BY>(
            THROUGH == COUNTED,
            #[inline(always)]
            |group| {
                let (u, x) = results::<E, BY, THROUGH>(simd, (group, &r), coefs, passing);
                for (to, values) in [(to_y, u), (to_x, x)] {
                    let values = simd.narrow::<E, GROUP>(&values);
                    to[at.clone()].copy_from_slice(&values[..at.len()]);
                }
            },
        );
    }
}

/// `gg_grad_y` and `gg_x` of a group.
#[inline(always)]
fn results<E: Element, const BY: u8, const THROUGH: u8>(
    simd: Simd,
    (of, r): (Group<'_, E>, &[E; GROUP]),
    coefs: (impl Coefs<E::Acc>, usize),
    passing: &Passing<E::Acc>,
) -> ([E::Acc; GROUP], [E::Acc; GROUP]) {
    let wide = wide::<E, BY>(simd, of, coefs, passing);
    let (u, x) = wide.gradients::<THROUGH>(simd, of.counts, simd.widen(r), coefs);
    (passing.group::<BY>(simd, &wide.z, of.bits, u), x)
}

impl<A: Real> Wide<A> {
    /// u, which is the gradient of y before the activation, and the gradient of x.
    #[inline(always)]
    fn gradients<const THROUGH: u8>(
        &self,
        simd: Simd,
        counts: &[u8; GROUP],
        r: [A; GROUP],
        (coefs, i): (impl Coefs<A>, usize),
    ) -> ([A; GROUP], [A; GROUP]) {
        let Self { xhat, g, v, .. } = self;
        let (scale, u_xhat, u_one) = (coefs.field(3, i), coefs.field(5, i), coefs.field(6, i));
        let (x_v, x_g) = (coefs.field(7, i), coefs.field(8, i));
        let (x_xhat, x_one) = (coefs.field(9, i), coefs.field(10, i));
        let zeros = [A::default(); GROUP];
        let (mut u, mut x, mut through) = (zeros, zeros, zeros);
        if THROUGH == COUNTED {
            for l in 0..GROUP {
                through[l] = x_v[l] * v[l] + x_xhat[l] * xhat[l] + x_one[l];
            }
            through = simd.counted(counts, &through);
        }
        for l in 0..GROUP {
            u[l] = scale[l] * v[l] + u_xhat[l] * xhat[l] + u_one[l] + r[l];
            x[l] = x_g[l] * g[l];
            match THROUGH {
                OF_ALL => x[l] = x[l] + x_v[l] * v[l] + x_xhat[l] * xhat[l] + x_one[l],
                COUNTED => x[l] += through[l],
                _ => (),
            }
        }
        (u, x)
    }
}
