//! Groups of values without instructions of a level, for architectures whose compilers need no help.
use crate::{Element, Real};

/// To the accumulating type, exactly.
#[inline(always)]
pub fn widen<E: Element, const N: usize>(values: &[E; N]) -> [E::Acc; N] {
    let mut wide = [E::Acc::default(); N];
    if calls_conversions::<E>() {
        widen_group(values, &mut wide);
        return wide;
    }
    for l in 0..N {
        wide[l] = values[l].widen();
    }
    wide
}

/// From the accumulating type, to nearest, ties to even.
#[inline(always)]
pub fn narrow<E: Element, const N: usize>(values: &[E::Acc; N]) -> [E; N] {
    let mut narrow = [E::default(); N];
    if calls_conversions::<E>() {
        narrow_group(values, &mut narrow);
        return narrow;
    }
    for l in 0..N {
        narrow[l] = E::narrow(values[l]);
    }
    narrow
}

/// Whether conversions are calls: by the instructions that every x86-64 has they are most of a loop, and of
/// what compiling it takes.
#[inline(always)]
fn calls_conversions<E: Element>() -> bool {
    cfg!(target_arch = "x86_64") && size_of::<E>() == 2
}
#[inline(never)]
fn widen_group<E: Element>(values: &[E], wide: &mut [E::Acc]) {
    wide.iter_mut().zip(values).for_each(|(wide, value)| *wide = value.widen());
}
#[inline(never)]
fn narrow_group<E: Element>(values: &[E::Acc], narrow: &mut [E]) {
    narrow.iter_mut().zip(values).for_each(|(narrow, value)| *narrow = E::narrow(*value));
}

/// A bit for each value: 0 where it is zero or negative.
#[inline(always)]
pub fn positive<A: Real>(values: &[A; 8]) -> u8 {
    let stopped = |k: usize| u8::from(values[k] <= A::default()) << k;
    !(0..8).map(stopped).fold(0, |all, bit| all | bit)
}

/// `values` where `bits` have a 1, zeros elsewhere.
#[inline(always)]
pub fn keep<E: Element>(bits: u8, values: &[E; 8]) -> [E; 8] {
    let mut kept = *values;
    let all = kept.as_mut_ptr();
    macro_rules! keep {
        ($bits:ty) => {
            for k in 0..8 {
                // SAFETY: the elements are 8 numbers of that size, as are their bits.
                unsafe {
                    *all.cast::<$bits>().add(k) &= <$bits>::from(bits >> k & 1).wrapping_neg();
                }
            }
        };
    }
    match size_of::<E>() {
        2 => keep!(u16),
        4 => keep!(u32),
        _ => keep!(u64),
    }
    kept
}
