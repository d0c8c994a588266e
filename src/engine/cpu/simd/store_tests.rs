use super::super::tests::every_level;
use super::*;
use crate::Real;

/// From one address to the next; Miri is too slow for all of them.
const STEP: usize = if cfg!(miri) { 13 } else { 1 };

#[test]
fn streamed_copies_are_copies() {
    fn all<T: Element>(value: impl Fn(usize) -> T) {
        let from: Vec<T> = (0..200).map(value).collect();
        for start in (0..20).step_by(STEP) {
            for len in [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 64, 100, 179] {
                let mut to = [T::default(); 200];
                every_level(|simd| {
                    // SAFETY: fenced before `to` is read.
                    let past = unsafe { Store::past_cache(simd) };
                    past.copy(&from[7..7 + len], &mut to[start..start + len]);
                });
                fence();
                assert!(to[..start].iter().all(|v| *v == T::default()));
                assert_eq!(to[start..start + len], from[7..7 + len]);
                assert!(to[start + len..].iter().all(|v| *v == T::default()));
            }
        }
    }
    all(|i| i as f32 + 1.0);
    all(|i| i as f64 + 1.0);
    all(|i| half::bf16::from_f32(i as f32 + 1.0));
    all(|i| half::f16::from_f32(i as f32 + 1.0));
}

#[test]
fn groups_are_stored_at_any_address() {
    fn all<E: Element>() {
        let values = std::array::from_fn(|i| E::Acc::from_f64(i as f64 + 1.0));
        let some_lanes = [0..GROUP, 0..5, 3..GROUP, 7..8];
        for (start, lanes) in (0..70).step_by(STEP).flat_map(|s| some_lanes.clone().map(|l| (s, l)))
        {
            every_level(|simd| {
                let (mut usual, mut past) = ([E::default(); 100], [E::default(); 100]);
                let (mut asked, at) = (false, start..start + GROUP);
                // SAFETY: fenced before it is read.
                let store = unsafe { Store::past_cache(simd) };
                let to = past[at.clone()].first_chunk_mut().unwrap();
                let whole = lanes.len() == GROUP;
                match whole {
                    true => store.put(&values, to, || asked = true),
                    false => store.put_lanes(&values, to, lanes.clone()),
                }
                fence();
                let to = usual[at.clone()].first_chunk_mut().unwrap();
                let never = || panic!("not past the cache");
                Store::to_cache(simd).put(&values, to, never);
                for i in 0..usual.len() {
                    let [is_group, is_lane] =
                        [0..GROUP, lanes.clone()].map(|some| some.contains(&i.wrapping_sub(start)));
                    let expected =
                        |is_written| if is_written { (i - start + 1) as f64 } else { 0.0 };
                    assert_eq!(usual[i].widen().to_f64(), expected(is_group));
                    assert_eq!(past[i].widen().to_f64(), expected(is_lane));
                }
                let size = size_of::<[E; GROUP]>();
                let aligned = (&raw const past[start]).addr().is_multiple_of(size.min(LINE));
                assert_eq!(asked, aligned && whole, "{} at {start}", E::DTYPE);
            });
        }
    }
    all::<f32>();
    all::<f64>();
    all::<half::bf16>();
    all::<half::f16>();
}
