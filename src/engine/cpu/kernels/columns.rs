//! Reductions: sums over columns, several rows at a time.
use super::super::simd::{BLOCK, GROUP, Simd, prefetch};
use super::super::table::{Coef, Lanes, Normal};
use super::elementwise::gate;
use super::sums::STRIP_ROWS;
use crate::{Element, Real};

/// Some rows of some columns, and where the rows start that a loop should ask for when it reads them.
pub struct Rows<'x, E, const TENSORS: usize> {
    rows: [[&'x [E]; TENSORS]; STRIP_ROWS],
    ahead: [[*const E; TENSORS]; STRIP_ROWS],
    len: usize,
}

impl<'x, E, const TENSORS: usize> Rows<'x, E, TENSORS> {
    pub fn new() -> Self {
        let none = [[&[][..]; TENSORS]; STRIP_ROWS];
        Self { rows: none, ahead: [[std::ptr::null(); TENSORS]; STRIP_ROWS], len: 0 }
    }
    /// Adds one; there may be [`STRIP_ROWS`] at most.
    #[inline(always)]
    pub fn push(&mut self, row: [&'x [E]; TENSORS], ahead: [*const E; TENSORS]) {
        (self.rows[self.len], self.ahead[self.len]) = (row, ahead);
        self.len += 1;
    }
    /// The same, if it is one; the place is there in any case.
    #[inline(always)]
    pub fn push_if(&mut self, is: bool, row: [&'x [E]; TENSORS], ahead: [*const E; TENSORS]) {
        (self.rows[self.len], self.ahead[self.len]) = (row, ahead);
        self.len += usize::from(is);
    }
    pub fn clear(&mut self) {
        self.len = 0;
    }
    /// The first one; there must be one.
    pub fn first(&self) -> [&'x [E]; TENSORS] {
        self.rows[0]
    }
    /// Columns of each.
    pub fn columns(&self) -> usize {
        self.rows[0][0].len()
    }
    pub fn len(&self) -> usize {
        self.len
    }
    /// `ROWS` at a time, with those to ask for, and the rows that are left.
    #[inline(always)]
    fn by<const ROWS: usize>(
        &self,
    ) -> (impl Iterator<Item = Several<'_, 'x, E, TENSORS, ROWS>>, &[[&'x [E]; TENSORS]]) {
        let (several, rest) = self.rows[..self.len].as_chunks::<ROWS>();
        (several.iter().zip(self.ahead[..self.len].as_chunks::<ROWS>().0), rest)
    }
}
/// Some rows, and those to ask for.
type Several<'s, 'x, E, const TENSORS: usize, const ROWS: usize> =
    (&'s [[&'x [E]; TENSORS]; ROWS], &'s [[*const E; TENSORS]; ROWS]);

/// Sums of `d = x - pivot` and of its square by columns, added to those before unless these are the first: of
/// several rows at a time, for sums in memory cost as much as the arithmetic of one row.
pub fn column_distances<E: Element>(
    simd: Simd,
    (rows, is_first): (&Rows<'_, E, 1>, bool),
    pivot: &[E::Acc; BLOCK],
    (sum, squares): (&mut [E::Acc; BLOCK], &mut [E::Acc; BLOCK]),
) {
    simd.vectorize(
        #[inline(always)]
        |simd| {
            let (mut several, rest) = rows.by::<4>();
            let mut rest = rest.iter().map(std::array::from_ref);
            // Instead of zeros that would be written before.
            if is_first {
                if let Some((rows, ahead)) = several.next() {
                    add_distances::<_, 4, true>(simd, rows, ahead, pivot, sum, squares);
                } else if let Some(row) = rest.next() {
                    add_distances::<_, 1, true>(simd, row, &[], pivot, sum, squares);
                }
            }
            for (rows, ahead) in several {
                add_distances::<_, 4, false>(simd, rows, ahead, pivot, sum, squares);
            }
            for row in rest {
                add_distances::<_, 1, false>(simd, row, &[], pivot, sum, squares);
            }
        },
    );
}

/// How many bytes later than where it reads a loop over some rows asks for what comes, for each tensor: what the first
/// of them says, as there are registers for those, but not for one of every row.
#[inline(always)]
fn distances_ahead<E, const TENSORS: usize>(
    rows: &[[&[E]; TENSORS]],
    ahead: &[[*const E; TENSORS]],
) -> Option<[isize; TENSORS]> {
    let (rows, ahead) = (rows.first()?, ahead.first()?);
    let mut distances = [0; TENSORS];
    for t in 0..TENSORS {
        distances[t] = ahead[t].addr().wrapping_sub(rows[t].as_ptr().addr()).cast_signed();
    }
    Some(distances)
}

#[inline(always)]
fn add_distances<E: Element, const ROWS: usize, const FIRST: bool>(
    simd: Simd,
    rows: &[[&[E]; 1]; ROWS],
    ahead: &[[*const E; 1]],
    pivot: &[E::Acc; BLOCK],
    sum: &mut [E::Acc; BLOCK],
    squares: &mut [E::Acc; BLOCK],
) {
    let n = rows[0][0].len();
    assert!(n <= BLOCK);
    let distance = distances_ahead(rows, ahead);
    let mut groups = [&[][..]; ROWS];
    for (groups, [row]) in groups.iter_mut().zip(rows) {
        *groups = &row.as_chunks::<GROUP>().0[..n / GROUP];
    }
    let pivots = pivot.as_chunks::<GROUP>().0;
    let (sums, squared) = (sum.as_chunks_mut().0, squares.as_chunks_mut().0);
    for i in 0..n / GROUP {
        let pivot = pivots[i];
        let (mut s, mut q) = ([E::Acc::default(); GROUP], [E::Acc::default(); GROUP]);
        for (k, row) in groups.iter().enumerate() {
            if let Some([distance]) = distance {
                prefetch(row[i].as_ptr().wrapping_byte_offset(distance));
            }
            let x = simd.widen(&row[i]);
            for l in 0..GROUP {
                let d = x[l] - pivot[l];
                // An addition less than from zero on.
                (s[l], q[l]) = if k == 0 { (d, d * d) } else { (s[l] + d, q[l] + d * d) };
            }
        }
        add::<_, FIRST>(&mut sums[i], s);
        add::<_, FIRST>(&mut squared[i], q);
    }
    for j in n - n % GROUP..n {
        let (mut s, mut q) = (E::Acc::default(), E::Acc::default());
        for [row] in rows {
            let d = row[j].widen() - pivot[j];
            s += d;
            q += d * d;
        }
        let before = if FIRST { [E::Acc::default(); 2] } else { [sum[j], squares[j]] };
        (sum[j], squares[j]) = (before[0] + s, before[1] + q);
    }
}

/// Adds to sums, or to zeros where these are the first.
#[inline(always)]
fn add<A: Real, const FIRST: bool>(sums: &mut [A; GROUP], more: [A; GROUP]) {
    let mut all = if FIRST { [A::default(); GROUP] } else { *sums };
    for l in 0..GROUP {
        all[l] += more[l];
    }
    *sums = all;
}

/// Sums of `g` and of `g * (x - mean)` of rows of `[x, grad_y]` by columns, added to those before unless these are the
/// first: see [`gradients`](super::sums::gradients) and [`column_distances`].
pub fn column_gradients<E: Element>(
    simd: Simd,
    rows: &Rows<'_, E, 2>,
    at: Normal<'_, E::Acc>,
    (relu, is_first): (bool, bool),
    (sum, product): (&mut [E::Acc], &mut [E::Acc]),
) {
    simd.vectorize(
        #[inline(always)]
        |simd| match relu {
            true => column_gradients_of::<E, true>(simd, rows, at, is_first, sum, product),
            false => column_gradients_of::<E, false>(simd, rows, at, is_first, sum, product),
        },
    );
}

#[inline(always)]
fn column_gradients_of<E: Element, const RELU: bool>(
    simd: Simd,
    rows: &Rows<'_, E, 2>,
    at: Normal<'_, E::Acc>,
    is_first: bool,
    sum: &mut [E::Acc],
    product: &mut [E::Acc],
) {
    let (mut several, rest) = rows.by::<2>();
    let mut rest = rest.iter().map(std::array::from_ref);
    if is_first {
        if let Some((rows, ahead)) = several.next() {
            add_gradients::<E, RELU, 2, true>(simd, rows, ahead, at, sum, product);
        } else if let Some(row) = rest.next() {
            add_gradients::<E, RELU, 1, true>(simd, row, &[], at, sum, product);
        }
    }
    for (rows, ahead) in several {
        add_gradients::<E, RELU, 2, false>(simd, rows, ahead, at, sum, product);
    }
    for row in rest {
        add_gradients::<E, RELU, 1, false>(simd, row, &[], at, sum, product);
    }
}

#[inline(always)]
fn add_gradients<E: Element, const RELU: bool, const ROWS: usize, const FIRST: bool>(
    simd: Simd,
    rows: &[[&[E]; 2]; ROWS],
    ahead: &[[*const E; 2]],
    at: Normal<'_, E::Acc>,
    sum: &mut [E::Acc],
    product: &mut [E::Acc],
) {
    let n = rows[0][0].len();
    let distance = distances_ahead(rows, ahead);
    // Not by `map`, behind which their lengths are not known to be the same, and each is compared in the loop.
    let mut groups = [[&[][..]; 2]; ROWS];
    for (groups, row) in groups.iter_mut().zip(rows) {
        for (groups, tensor) in groups.iter_mut().zip(row) {
            *groups = &tensor.as_chunks::<GROUP>().0[..n / GROUP];
        }
    }
    let [mean, scale, bias] = at;
    let means = &mean.as_chunks::<GROUP>().0[..n / GROUP];
    let scales = &scale.as_chunks::<GROUP>().0[..n / GROUP];
    let biases = &bias.as_chunks::<GROUP>().0[..n / GROUP];
    let sums = &mut sum.as_chunks_mut().0[..n / GROUP];
    let products = &mut product.as_chunks_mut().0[..n / GROUP];
    for i in 0..n / GROUP {
        let coef = [means[i], scales[i], biases[i]];
        let (mut s, mut p) = ([E::Acc::default(); GROUP], [E::Acc::default(); GROUP]);
        for (k, [x, g]) in groups.iter().enumerate() {
            if let Some([of_x, of_g]) = distance {
                prefetch(x[i].as_ptr().wrapping_byte_offset(of_x));
                prefetch(g[i].as_ptr().wrapping_byte_offset(of_g));
            }
            let (x, g) = (simd.widen(&x[i]), simd.widen(&g[i]));
            for l in 0..GROUP {
                let coef = Lanes::at(&coef, l);
                let g = gate::<E, RELU>(coef, x[l], g[l]);
                let term = g * (x[l] - coef.mean);
                (s[l], p[l]) = if k == 0 { (g, term) } else { (s[l] + g, p[l] + term) };
            }
        }
        add::<_, FIRST>(&mut sums[i], s);
        add::<_, FIRST>(&mut products[i], p);
    }
    for j in n - n % GROUP..n {
        let coef = Coef { mean: mean[j], scale: scale[j], bias: bias[j], ..Coef::default() };
        let (mut s, mut p) = (E::Acc::default(), E::Acc::default());
        for [x, g] in rows {
            let x = x[j].widen();
            let g = gate::<E, RELU>(coef, x, g[j].widen());
            s += g;
            p += g * (x - coef.mean);
        }
        let before = if FIRST { [E::Acc::default(); 2] } else { [sum[j], product[j]] };
        (sum[j], product[j]) = (before[0] + s, before[1] + p);
    }
}
