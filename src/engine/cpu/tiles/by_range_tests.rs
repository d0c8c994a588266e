//! Every range of channels writes its own part and no other, on several threads; `scripts/miri.sh` runs them too.
use super::super::for_each_tile;
use super::*;
use crate::Shape;

fn plan(dims: &[usize]) -> Plan {
    Plan::new(&Shape::new(dims, 1).unwrap(), 4, 2)
}
fn on_threads(test: impl FnOnce() + Send) {
    rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap().install(test);
}

#[test]
fn every_channel_has_one_range_and_every_range_its_own_part() {
    on_threads(|| {
        // One block, several, the last of them shorter, and blocks of one channel.
        for dims in [&[40_003, 24][..], &[600, 9000], &[3000, 2047], &[2, 3, 40_000]] {
            let plan = plan(dims);
            for values in [0, usize::MAX] {
                let ranges = ChannelRanges::new(&plan, values);
                let channels = plan.all_channels();
                let (mut ones, mut threes) = (vec![0; channels], vec![0; 3 * channels]);
                let (mut one, mut other) = (vec![0u8; channels], vec![0u8; channels]);
                let arrays = [&mut one, &mut other].map(|array| Channels::new(array));
                let several = Channels::several(&mut threes, 3);
                let mut parts =
                    (Channels::new(&mut ones), several, arrays, None::<Channels<'_, f64>>);
                assert_eq!(parts.each(), 6);
                for_each_range(&ranges, &mut parts, |i, (ones, threes, arrays, none)| {
                    assert!(none.is_none());
                    let here = ranges.channels(i);
                    assert!(plan.channels(ranges.block(i)).contains(&here.start), "{plan:?}, {i}");
                    assert_eq!((ones.len(), threes.len()), (here.len(), 3 * here.len()));
                    for (k, c) in here.enumerate() {
                        ones[k] += 1 + c;
                        threes[3 * k..3 * k + 3].iter_mut().for_each(|value| *value += 1 + c);
                        assert!(arrays.iter().all(|array| array[k] == 0), "{plan:?}, channel {c}");
                    }
                    arrays.into_iter().zip([1, 2]).for_each(|(array, number)| array.fill(number));
                });
                assert!(ones.iter().copied().eq(1..=channels), "{plan:?}");
                assert!(threes.iter().copied().eq((1..=channels).flat_map(|c| [c; 3])), "{plan:?}");
                assert!(one.iter().all(|v| *v == 1) && other.iter().all(|v| *v == 2), "{plan:?}");
            }
        }
    });
}

#[test]
#[should_panic(expected = "values for every channel")]
fn an_array_that_lacks_channels_is_not_handed_out() {
    let (plan, mut array) = (plan(&[3, 600]), vec![0f32; 599]);
    let mut arrays = Channels::new(&mut array);
    for_each_range(&ChannelRanges::new(&plan, 0), &mut arrays, |_, _| {});
}

#[test]
#[should_panic(expected = "tiles of whole channels")]
fn tiles_that_share_channels_get_no_arrays() {
    let plan = plan(&[40_003, 24]);
    let mut array = vec![0f32; 24];
    for_each_tile(&plan, false, &mut OfTiles(Channels::new(&mut array)), |_, _| {});
}
