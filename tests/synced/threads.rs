//! Ranks that are threads: what they exchange, and who is missed.
use crate::world::LONG;
use batchnorm::{Collective, Error, Host, Memory, Rank, Result, Threads};
use std::time::{Duration, Instant};

/// What every rank makes of its turn, by rank.
fn each<T: Send>(size: usize, limit: Duration, turn: impl Fn(Threads) -> T + Sync) -> Vec<T> {
    let turn = &turn;
    std::thread::scope(|scope| {
        let ranks = Threads::new(size, limit).into_iter();
        let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || turn(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
fn gather(ranks: &Threads, mine: &[f64]) -> Result<Vec<f64>> {
    let mut all = vec![f64::NAN; ranks.size() * mine.len()];
    Collective::<Host>::all_gather(ranks, &Host, mine, &mut all)?;
    Ok(all)
}

#[test]
fn numbers_come_in_the_order_of_ranks_call_after_call() {
    let all = each(4, LONG, |ranks| {
        let rank = ranks.rank() as f64;
        for call in 0..100 {
            let all = gather(&ranks, &[rank, f64::from(call)]).unwrap();
            let right: Vec<f64> = (0..4).flat_map(|r| [f64::from(r), f64::from(call)]).collect();
            assert_eq!(all, right);
            let words = ranks.exchange([ranks.rank() as u64 + call as u64; 8]).unwrap();
            assert_eq!(words, (0..4).map(|r| [r + call as u64; 8]).collect::<Vec<_>>());
        }
        let mut sums = [1.0f32 / 3.0 + rank as f32, rank as f32];
        Collective::<Host>::all_reduce(&ranks, &Host, &mut sums).unwrap();
        sums
    });
    assert!((all[0][0] - (6.0 + 4.0 / 3.0)).abs() < 1e-6 && all[0][1] == 6.0);
    assert!(all.iter().all(|sums| sums.map(f32::to_bits) == all[0].map(f32::to_bits)));
}

#[test]
fn none_and_one_are_worlds_too() {
    assert!(Threads::new(0, LONG).is_empty());
    let [alone] = &Threads::new(1, LONG)[..] else { panic!("one rank") };
    assert_eq!(gather(alone, &[3.0]).unwrap(), [3.0]);
    assert_eq!((alone.rank(), alone.size()), (0, 1));
}

#[test]
fn a_split_makes_collectives_in_the_order_of_ranks() {
    let all = each(5, LONG, |ranks| {
        // Odd and even; then again, by another color.
        let parts = ranks.split(ranks.rank() % 2).unwrap();
        let of_parts = gather(&parts, &[ranks.rank() as f64]).unwrap();
        let again = ranks.split(usize::from(ranks.rank() == 0)).unwrap();
        let of_again = gather(&again, &[ranks.rank() as f64]).unwrap();
        (parts.rank(), of_parts, again.size(), of_again, gather(&ranks, &[1.0]).unwrap().len())
    });
    for (rank, (place, of_parts, size, of_again, whole)) in all.into_iter().enumerate() {
        assert_eq!(place, rank / 2);
        assert_eq!(of_parts, [&[0.0, 2.0, 4.0][..], &[1.0, 3.0]][rank % 2]);
        assert_eq!(size, [1, 4][usize::from(rank > 0)]);
        assert_eq!(of_again, [&[0.0][..], &[1.0, 2.0, 3.0, 4.0]][usize::from(rank > 0)]);
        assert_eq!(whole, 5);
    }
}

#[test]
fn other_lengths_and_other_calls_are_errors_of_all_and_the_next_call_comes_about() {
    let all = each(3, LONG, |ranks| {
        let mine = vec![0.0; if ranks.rank() == 2 { 5 } else { 4 }];
        let lengths = gather(&ranks, &mine).unwrap_err();
        let calls = match ranks.rank() {
            1 => ranks.exchange([0; 8]).map(drop),
            _ => gather(&ranks, &[0.0; 8]).map(drop),
        };
        (lengths, calls.unwrap_err(), gather(&ranks, &[1.0]))
    });
    for (lengths, calls, next) in all {
        let text =
            "rank 2: expected all_gather of 4 elements, as rank 0 has it, got all_gather of 5";
        assert_eq!(lengths.to_string(), text);
        assert!(matches!(calls, Error::Collective { rank: Some(1), .. }), "{calls}");
        assert_eq!(next.unwrap(), [1.0; 3]);
    }
}

#[test]
fn a_wrong_length_of_all_is_this_ranks_own_error() {
    let all = each(2, LONG, |ranks| {
        let mut all = vec![0.0; if ranks.rank() == 0 { 3 } else { 4 }];
        Collective::<Host>::all_gather(&ranks, &Host, &[1.0; 2], &mut all).map(|()| all)
    });
    assert_eq!(all[0], Err(Error::Length { what: "all", expected: 4, got: 3 }));
    assert_eq!(all[1], Ok(vec![1.0; 4]));
}

#[test]
fn who_does_not_come_is_named_at_the_limit_and_from_then_on() {
    let limit = Duration::from_millis(300);
    let late = std::sync::Barrier::new(3);
    let all = each(3, limit, |ranks| {
        if ranks.rank() == 1 {
            late.wait(); // skips a call
            return (Duration::ZERO, gather(&ranks, &[0.0]).unwrap_err());
        }
        let begin = Instant::now();
        let error = gather(&ranks, &[0.0]).unwrap_err();
        late.wait();
        assert_eq!(gather(&ranks, &[0.0]).unwrap_err(), error);
        (begin.elapsed(), error)
    });
    for (rank, (took, error)) in all.into_iter().enumerate() {
        assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{error}");
        assert!(error.to_string().contains("got none of [1]"), "{error}");
        assert!(rank == 1 || took >= limit, "{took:?}");
    }
}

#[test]
fn who_panics_or_leaves_is_missed_at_once() {
    let limit = Duration::from_secs(600);
    let begin = Instant::now();
    let ranks = Threads::new(3, limit);
    let errors: Vec<Option<Error>> = std::thread::scope(|scope| {
        let threads = ranks.into_iter().map(|ranks| {
            scope.spawn(move || {
                assert!(ranks.rank() != 2, "a panic of rank 2");
                gather(&ranks, &[0.0; 2]).unwrap_err()
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    });
    assert!(begin.elapsed() < limit / 2);
    assert!(errors[2].is_none());
    // The others leave when they have their error: whom the second one misses is either.
    for error in errors[..2].iter().flatten() {
        let text = error.to_string();
        assert!(text.ends_with("it has left, by a panic or at its end"), "{text}");
    }
    assert_eq!(errors.iter().flatten().count(), 2);
}

/// The trait is for others to implement: what it needs of a memory is public.
#[test]
fn a_collective_of_ones_own_is_a_page() {
    #[derive(Debug, Clone)]
    struct Alone;
    impl Rank for Alone {
        fn rank(&self) -> usize {
            0
        }
        fn size(&self) -> usize {
            1
        }
        fn exchange(&self, mine: batchnorm::Words) -> Result<Vec<batchnorm::Words>> {
            Ok(vec![mine])
        }
        fn split(&self, _: usize) -> Result<Self> {
            Ok(Alone)
        }
    }
    impl<M: Memory> Collective<M> for Alone {
        fn all_gather(
            &self,
            on: &M,
            part: M::View<'_, f64>,
            all: M::ViewMut<'_, f64>,
        ) -> Result<()> {
            on.copy(part, all)
        }
        fn all_reduce<P: batchnorm::Real>(&self, _: &M, _: M::ViewMut<'_, P>) -> Result<()> {
            Ok(())
        }
    }
    let mut all = [0.0; 2];
    Collective::<Host>::all_gather(&Alone, &Host, &[1.0, 2.0], &mut all).unwrap();
    assert_eq!(all, [1.0, 2.0]);
    let error = Error::collective(None, "no cable");
    assert_eq!(error.to_string(), "ranks: no cable");
}
