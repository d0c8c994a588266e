//! Coefficients of channels, and how loops over elements get those of every position.
use super::lanes::{GROUP, ROOM};
use super::plan::Plan;
use super::store::{Store, prefetch};
use super::table::Table;
use crate::{Element, Real};
use std::ops::Range;

/// Runs from here on are worth to be brought to the start of a cache line.
const ALIGNED: usize = 128;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

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
    pub fn normalize(self, x: A) -> A {
        (x - self.mean) * self.scale + self.bias
    }
}

/// Coefficients by position.
pub(super) trait At<A>: Copy {
    /// Whether memory can be stored past the cache as it is computed, in whole lines and in quarters.
    #[inline(always)]
    fn lines<E>(self) -> bool {
        true
    }
    /// Whether every column has its own.
    const BY_COLUMN: bool;
    /// `out[i] = op(coefficients of i, x[i], other[i])`, rounded. Where it stores past the cache and
    /// every column has its own coefficients, it asks for the same columns of `ahead`.
    fn map<E: Element<Acc = A>>(
        self,
        store: Store,
        x: &[E],
        other: &[E],
        out: &mut [E],
        ahead: [&[E]; 2],
        op: impl Fn(Coef<A>, A, A) -> A + Copy,
    );
}

/// The same everywhere.
#[derive(Clone, Copy)]
pub(super) struct Same<A>(pub Coef<A>);
impl<A: Real> At<A> for Same<A> {
    const BY_COLUMN: bool = false;
    #[inline(always)]
    fn map<E: Element<Acc = A>>(
        self,
        store: Store,
        x: &[E],
        other: &[E],
        out: &mut [E],
        _: [&[E]; 2],
        op: impl Fn(Coef<A>, A, A) -> A + Copy,
    ) {
        run(
            store,
            x,
            other,
            out,
            #[inline(always)]
            |x, other| op(self.0, x, other),
        );
    }
}

/// In groups of fixed length down to single values: what is left over of a short run would otherwise
/// take as long as the run.
#[inline(always)]
fn run<E: Element>(
    store: Store,
    x: &[E],
    other: &[E],
    out: &mut [E],
    op: impl Fn(E::Acc, E::Acc) -> E::Acc + Copy,
) {
    let (x, other) = (&x[..out.len()], &other[..out.len()]);
    // Vectors that straddle cache lines cost up to a tenth of a long run.
    let head = if out.len() < ALIGNED { 0 } else { to_line(out) };
    let ((first, x), (first_other, other)) = (x.split_at(head), other.split_at(head));
    let (first_out, out) = out.split_at_mut(head);
    few(store, first, first_other, first_out, op);
    let (x, other, out) = groups::<_, GROUP>(store, x, other, out, op);
    few(store, x, other, out, op);
}

/// What is less than a group: by quarters of a line, which can be stored past the cache, too.
#[inline(always)]
fn few<E: Element>(
    store: Store,
    x: &[E],
    other: &[E],
    out: &mut [E],
    op: impl Fn(E::Acc, E::Acc) -> E::Acc + Copy,
) {
    let (x, other, out) = match size_of::<E>() {
        2 => groups::<_, 8>(store, x, other, out, op),
        4 => groups::<_, 4>(store, x, other, out, op),
        _ => groups::<_, 2>(store, x, other, out, op),
    };
    groups::<_, 1>(store, x, other, out, op);
}

/// Takes as many whole groups of `N` as there are; returns the rest.
#[inline(always)]
fn groups<'a, E: Element, const N: usize>(
    store: Store,
    x: &'a [E],
    other: &'a [E],
    out: &'a mut [E],
    op: impl Fn(E::Acc, E::Acc) -> E::Acc,
) -> (&'a [E], &'a [E], &'a mut [E]) {
    let ((xs, x), (others, other)) = (x.as_chunks::<N>(), other.as_chunks::<N>());
    let (outs, out) = out.as_chunks_mut::<N>();
    for ((x, other), out) in xs.iter().zip(others).zip(outs) {
        // All are read before one is written: the compiler need not ask whether they overlap.
        let (x, other) = (store.simd.widen(x), store.simd.widen(other));
        let mut values = [E::Acc::default(); N];
        for l in 0..N {
            values[l] = op(x[l], other[l]);
        }
        store.put(&values, out, || ());
    }
    (x, other, out)
}

/// Those of the runs of several channels, one after the other.
#[derive(Clone, Copy)]
pub(super) struct Runs<'a, A> {
    pub strip: &'a Strip<A>,
    /// Values of a run.
    pub inner: usize,
    /// Position of the first value, from the start of the strip's first run on.
    pub start: usize,
}
impl<A: Real> At<A> for Runs<'_, A> {
    const BY_COLUMN: bool = false;
    /// If runs end at quarters of a line.
    #[inline(always)]
    fn lines<E>(self) -> bool {
        (self.inner * size_of::<E>()).is_multiple_of(LINE / 4)
    }
    #[inline(always)]
    fn map<E: Element<Acc = A>>(
        self,
        store: Store,
        x: &[E],
        other: &[E],
        out: &mut [E],
        _: [&[E]; 2],
        op: impl Fn(Coef<A>, A, A) -> A + Copy,
    ) {
        let Self { strip, inner, start } = self;
        let (mut channel, mut len) = (start / inner, inner - start % inner);
        let (mut done, n) = (0, out.len());
        while done < n {
            let at = done..(done + len).min(n);
            let coef = strip.at(channel);
            run(
                store,
                &x[at.clone()],
                &other[at.clone()],
                &mut out[at.clone()],
                #[inline(always)]
                |x, other| op(coef, x, other),
            );
            (done, len, channel) = (at.end, inner, channel + 1);
        }
    }
}

/// Those of a strip of columns, an array for each field, so that loops over columns become
/// vectors.
#[repr(align(64))] // a cache line
pub(super) struct Strip<A> {
    mean: [A; PLACES],
    scale: [A; PLACES],
    bias: [A; PLACES],
    mean_g: [A; PLACES],
    slope: [A; PLACES],
    /// Place of the first.
    first: usize,
}
const PLACES: usize = ROOM + GROUP;

impl<A: Real> Strip<A> {
    #[inline(always)]
    pub fn new() -> Self {
        let zeros = [A::default(); PLACES];
        Self { mean: zeros, scale: zeros, bias: zeros, mean_g: zeros, slope: zeros, first: 0 }
    }
    /// Before it is filled: places the coefficients so that those of column `head` start a cache
    /// line, as the values there do. Vectors that straddle two lines take twice as long to load.
    #[inline(always)]
    pub fn align(&mut self, head: usize) {
        self.first = head.next_multiple_of(GROUP) - head;
    }
    /// Sets those of columns: all fields, or what the forward takes.
    #[inline(always)]
    pub fn load(&mut self, plan: &Plan, cols: &Range<usize>, table: &Table<'_, A>, gradient: bool) {
        self.set(
            table.fields(plan.channels_in(cols)),
            gradient,
            #[inline(always)]
            |field, to| plan.expand(cols, field, to),
        );
    }
    /// Sets those of channels: a strip on the stack is faster to look up than a table is.
    #[inline(always)]
    pub fn load_channels(&mut self, channels: Range<usize>, table: &Table<'_, A>, gradient: bool) {
        self.set(
            table.fields(channels),
            gradient,
            #[inline(always)]
            |field, to| to[..field.len()].copy_from_slice(field),
        );
    }
    #[inline(always)]
    fn set(&mut self, fields: [&[A]; 5], gradient: bool, copy: impl Fn(&[A], &mut [A])) {
        let Self { mean, scale, bias, mean_g, slope, first } = self;
        let to = [mean, scale, bias, mean_g, slope].into_iter();
        for (field, to) in fields.into_iter().zip(to).take(if gradient { 5 } else { 3 }) {
            copy(field, &mut to[*first..]);
        }
    }
    /// The coefficients of the `i`th.
    #[inline(always)]
    pub fn at(&self, i: usize) -> Coef<A> {
        let i = self.first + i;
        Coef {
            mean: self.mean[i],
            scale: self.scale[i],
            bias: self.bias[i],
            mean_g: self.mean_g[i],
            slope: self.slope[i],
        }
    }
    /// The forward's coefficients of the `i`th [`GROUP`], by position in it.
    #[inline(always)]
    pub fn group(&self, i: usize) -> impl Fn(usize) -> Coef<A> {
        let group = |field: &[A; PLACES]| field[self.first..].as_chunks::<GROUP>().0[i];
        let (mean, scale, bias) = (group(&self.mean), group(&self.scale), group(&self.bias));
        #[inline(always)]
        move |l| Coef { mean: mean[l], scale: scale[l], bias: bias[l], ..Coef::default() }
    }
    /// As [`few`].
    #[inline(always)]
    fn few<E: Element<Acc = A>>(
        &self,
        store: Store,
        cols: Range<usize>,
        from: [&[E]; 2],
        out: &mut [E],
        ahead: [&[E]; 2],
        op: impl Fn(Coef<A>, A, A) -> A + Copy,
    ) {
        let end = cols.end;
        let start = match size_of::<E>() {
            2 => self.groups::<E, 8>(store, cols, from, out, ahead, op),
            4 => self.groups::<E, 4>(store, cols, from, out, ahead, op),
            _ => self.groups::<E, 2>(store, cols, from, out, ahead, op),
        };
        self.groups::<E, 1>(store, start..end, from, out, ahead, op);
    }
    /// `out[i] = op(coefficients of i, x[i], other[i])` of whole groups of `cols`; returns the column
    /// behind them.
    #[inline(always)]
    fn groups<E: Element<Acc = A>, const N: usize>(
        &self,
        store: Store,
        cols: Range<usize>,
        from: [&[E]; 2],
        out: &mut [E],
        ahead: [&[E]; 2],
        op: impl Fn(Coef<A>, A, A) -> A,
    ) -> usize {
        let at = self.first + cols.start..self.first + cols.end;
        let fields = [&self.mean, &self.scale, &self.bias, &self.mean_g, &self.slope];
        let [mean, scale, bias, mean_g, slope] = fields.map(
            #[inline(always)]
            |field| field[at.clone()].as_chunks::<N>().0,
        );
        let [xs, others] = from.map(
            #[inline(always)]
            |values| values[cols.clone()].as_chunks::<N>().0,
        );
        let outs = out[cols.clone()].as_chunks_mut::<N>().0;
        for (i, out) in outs.iter_mut().enumerate() {
            let (mean, scale, bias) = (mean[i], scale[i], bias[i]);
            let (mean_g, slope) = (mean_g[i], slope[i]);
            let (x, other) = (store.simd.widen(&xs[i]), store.simd.widen(&others[i]));
            let mut values = [A::default(); N];
            for l in 0..N {
                let coef = Coef {
                    mean: mean[l],
                    scale: scale[l],
                    bias: bias[l],
                    mean_g: mean_g[l],
                    slope: slope[l],
                };
                values[l] = op(coef, x[l], other[l]);
            }
            store.put(
                &values,
                out,
                #[inline(always)]
                || {
                    prefetch(ahead[0], cols.start + i * N);
                    prefetch(ahead[1], cols.start + i * N);
                },
            );
        }
        cols.start + xs.len() * N
    }
}
impl<A: Real> At<A> for &Strip<A> {
    const BY_COLUMN: bool = true;
    #[inline(always)]
    fn map<E: Element<Acc = A>>(
        self,
        store: Store,
        x: &[E],
        other: &[E],
        out: &mut [E],
        ahead: [&[E]; 2],
        op: impl Fn(Coef<A>, A, A) -> A + Copy,
    ) {
        let n = out.len();
        assert!(n <= ROOM);
        let head = if n < ALIGNED { 0 } else { to_line(out) };
        let from = [x, other];
        self.few(store, 0..head, from, out, ahead, op);
        let end = self.groups::<E, GROUP>(store, head..n, from, out, ahead, op);
        self.few(store, end..n, from, out, ahead, op);
    }
}

/// Values until one starts a cache line, if there are so many.
#[inline(always)]
pub(super) fn to_line<T>(values: &[T]) -> usize {
    values.as_ptr().align_offset(LINE).min(values.len())
}
