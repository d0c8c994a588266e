use super::*;
use rayon::ThreadPoolBuilder;
use std::time::Duration;

fn on_pool(threads: usize, test: impl FnOnce() + Send) {
    ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(test);
}

/// Rounds of all lengths, so that threads come late, wait, and go.
#[test]
fn every_thread_has_a_number_of_its_own_in_every_round() {
    const THREADS: usize = 4;
    let rounds = if cfg!(miri) { 20 } else { 3000 };
    on_pool(THREADS, || {
        for round in 0..rounds {
            let threads = 1 + round % THREADS;
            let calls = [const { AtomicUsize::new(0) }; THREADS];
            let at_work = AtomicUsize::new(0);
            run(threads, &|thread| {
                at_work.fetch_add(1, Ordering::Relaxed);
                calls[thread].fetch_add(1, Ordering::Relaxed);
                for _ in 0..round % 97 * 10 {
                    std::hint::spin_loop();
                }
                if round % 500 == 7 {
                    thread::sleep(Duration::from_millis(2));
                }
                at_work.fetch_sub(1, Ordering::Relaxed);
            });
            assert_eq!(at_work.into_inner(), 0, "round {round} has ended");
            let calls = calls.map(AtomicUsize::into_inner);
            assert_eq!(calls[0], 1, "who begins takes part: {calls:?}");
            assert!(calls.iter().all(|calls| *calls < 2), "{calls:?}");
            assert!(calls[threads..].iter().all(|calls| *calls == 0), "{calls:?}");
        }
    });
}

#[test]
fn others_take_part() {
    on_pool(2, || {
        let has_come = AtomicUsize::new(0);
        run(2, &|thread| {
            has_come.fetch_add(1, Ordering::SeqCst);
            while thread == 0 && has_come.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
        });
    });
}

/// The pool's only other thread is busy until the round is over: nobody waits for it.
#[test]
fn nobody_waits_for_who_does_not_come() {
    on_pool(2, || {
        let (is_held, is_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (held, over) = (Arc::clone(&is_held), Arc::clone(&is_over));
        rayon::spawn(move || {
            held.store(1, Ordering::SeqCst);
            while over.load(Ordering::SeqCst) == 0 {
                thread::yield_now();
            }
        });
        while is_held.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        let calls = AtomicUsize::new(0);
        run(2, &|_| {
            calls.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(calls.into_inner(), 1);
        is_over.store(1, Ordering::SeqCst);
    });
}

#[test]
fn a_round_within_a_round_has_one_thread() {
    on_pool(2, || {
        let calls = AtomicUsize::new(0);
        run(1, &|_| {
            run(2, &|thread| {
                calls.fetch_add(1 + thread, Ordering::SeqCst);
            });
        });
        assert_eq!(calls.into_inner(), 1);
    });
}

/// Of whichever thread, once all have ended; and the next round is as ever.
#[test]
fn a_panic_is_passed_on() {
    on_pool(2, || {
        for panicking in [0, 1] {
            let has_come = AtomicUsize::new(0);
            let ended = catch_unwind(AssertUnwindSafe(|| {
                run(2, &|thread| {
                    has_come.fetch_add(1, Ordering::SeqCst);
                    while has_come.load(Ordering::SeqCst) < 2 {
                        thread::yield_now();
                    }
                    assert_ne!(thread, panicking, "a fault of a task");
                });
            }));
            let panic = ended.unwrap_err();
            assert!(panic.downcast_ref::<String>().unwrap().contains("a fault of a task"));
            let calls = AtomicUsize::new(0);
            run(1, &|_| {
                calls.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(calls.into_inner(), 1);
        }
    });
}
