//! Ranks that NCCL loses, or that lose NCCL: an error on every rank within the limit, and never a hang.
use crate::faults::{Step, unmoved};
use crate::nccl::{Ranks, nccl, of_rank, on_devices, on_ranks};
use crate::world::LONG;
use batchnorm::cudarc::driver::{CudaView, CudaViewMut};
use batchnorm::{
    Activation, Collective, Device, Engine, Error, Memory, Nccl, Rank, Real, Result, Synced,
    Threads, Words,
};
use std::time::{Duration, Instant};

/// What a lost rank is waited for.
const LIMIT: Duration = Duration::from_millis(600);

fn is_of_ranks(error: &Error) -> bool {
    matches!(error, Error::Collective { .. })
}

#[test]
fn calls_that_differ_are_errors_of_all_before_anything_is_queued() {
    let Some(_) = nccl() else { return };
    let step = Step::of(7);
    let cases = [
        Step { x_len: 27, ..step.clone() },
        Step::of(8),
        Step { f64: true, ..step.clone() },
        Step { eps: 1e-3, ..step.clone() },
        Step { activation: Activation::Relu, ..step.clone() },
        Step { factor: None, ..step.clone() },
    ];
    on_devices(2, 16, LONG, |rank, engine| {
        for other in &cases {
            let mine = if rank == 1 { other } else { &step };
            let (running, done) = mine.run(&engine, rank).unwrap();
            assert!(unmoved(&running));
            let error = done.unwrap_err();
            let own = matches!(error, Error::Length { what: "x", .. }) && rank == 1;
            assert!(own || matches!(error, Error::Collective { rank: Some(1), .. }), "{error}");
            let (running, again) = step.run(&engine, rank).unwrap();
            again.unwrap();
            assert!(!unmoved(&running));
        }
        engine.collective().wait(LONG).unwrap();
    });
}

/// Ranks of which the second does not make one of its collectives, once all have agreed on the step.
#[derive(Debug, Clone)]
struct Lost {
    ranks: Ranks,
    call: &'static str,
}

impl Lost {
    fn is_lost(&self, call: &str) -> Result<()> {
        match self.rank() == 1 && self.call == call {
            true => Err(Error::collective(Some(1), "a power supply")),
            false => Ok(()),
        }
    }
}
impl Rank for Lost {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }
    fn size(&self) -> usize {
        self.ranks.size()
    }
    fn exchange(&self, mine: Words) -> Result<Vec<Words>> {
        self.ranks.exchange(mine)
    }
    fn split(&self, color: usize) -> Result<Self> {
        Ok(Self { ranks: self.ranks.split(color)?, call: self.call })
    }
}
impl Collective<Device> for Lost {
    fn all_gather(
        &self,
        on: &Device,
        part: CudaView<'_, f64>,
        all: CudaViewMut<'_, f64>,
    ) -> Result<()> {
        self.is_lost("all_gather")?;
        self.ranks.all_gather(on, part, all)
    }
    fn all_reduce<P: Real>(&self, on: &Device, sums: CudaViewMut<'_, P>) -> Result<()> {
        self.is_lost("all_reduce")?;
        self.ranks.all_reduce(on, sums)
    }
}

/// Its peer's device waits for it, until the limit; whoever waits for that device comes back.
#[test]
fn a_rank_that_is_lost_after_all_agreed_is_an_error_at_the_limit() {
    let Some(_) = nccl() else { return };
    for call in ["all_gather", "all_reduce"] {
        let begin = Instant::now();
        on_ranks(2, LIMIT, |rank, own, ranks| {
            let engine = Synced::new(&own, &Lost { ranks: ranks.clone(), call }).unwrap();
            // It downloads the running statistics, and so waits for the device.
            let (_, done) = Step::of(7).run(&engine, rank).unwrap();
            if rank == 1 {
                assert!(done.unwrap_err().to_string().contains("a power supply"));
                return;
            }
            let error = match call {
                "all_gather" => done.unwrap_err(), // the backward finds the ranks lost
                _ => {
                    done.unwrap(); // it is queued
                    own.stream().synchronize().unwrap();
                    ranks.wait(LONG).unwrap_err()
                }
            };
            assert!(is_of_ranks(&error) && error.to_string().contains(call), "{error}");
            let (_, done) = Step::of(7).run(&engine, rank).unwrap();
            assert_eq!(done.unwrap_err(), error);
            assert_eq!(ranks.split(0).unwrap_err(), error);
        });
        assert!(begin.elapsed() >= LIMIT && begin.elapsed() < LONG / 2);
    }
}

/// Two ranks that make two calls of the collective without saying so before.
fn two(
    limit: Duration,
    first: impl Fn(&Device, &Ranks) -> Result<()> + Sync,
    second: impl Fn(&Device, &Ranks) -> Result<()> + Sync,
) -> Vec<(Result<()>, Vec<String>)> {
    on_ranks(2, limit, |rank, own, ranks| {
        let done =
            if rank == 0 { first(own.memory(), &ranks) } else { second(own.memory(), &ranks) };
        drop(ranks);
        (done, nccl().expect("no real device").faults())
    })
}
fn gather(on: &Device, ranks: &Ranks, len: usize) -> Result<()> {
    let (part, mut all) = (on.zeros::<f64>(len)?, on.zeros::<f64>(2 * len)?);
    ranks.all_gather(on, part.as_view(), all.as_view_mut())?;
    ranks.wait(LONG)
}
fn reduce(on: &Device, ranks: &Ranks, len: usize) -> Result<()> {
    let mut sums = on.zeros::<f32>(len)?;
    ranks.all_reduce(on, sums.as_view_mut())?;
    ranks.wait(LONG)
}

#[test]
fn collectives_that_differ_are_errors_at_the_limit() {
    let Some(_) = nccl() else { return };
    let sizes = two(LIMIT, |on, r| gather(on, r, 3), |on, r| gather(on, r, 4));
    let kinds = two(LIMIT, |on, r| gather(on, r, 3), |on, r| reduce(on, r, 3));
    for (done, faults) in sizes.into_iter().chain(kinds) {
        let error = done.unwrap_err();
        assert!(is_of_ranks(&error), "{error}");
        assert!(faults[0].contains("rank 1 to"), "{faults:?}"); // what NCCL may not notice
    }
}

#[test]
fn a_wait_ends_at_its_own_limit() {
    let Some(_) = nccl() else { return };
    let begin = Instant::now();
    let first = |on: &Device, ranks: &Ranks| {
        let mut sums = on.zeros::<f32>(3)?;
        ranks.all_reduce(on, sums.as_view_mut())?;
        ranks.wait(LIMIT)
    };
    let results = two(LONG, first, |_, ranks| {
        std::thread::sleep(2 * LIMIT);
        ranks.check_lost()
    });
    assert!(begin.elapsed() >= LIMIT && begin.elapsed() < LONG / 2);
    let error = results[0].0.clone().unwrap_err();
    assert!(is_of_ranks(&error) && error.to_string().contains("at work"), "{error}");
}

trait CheckLost {
    /// Ends the communicator without waiting for the other rank, as a rank that is lost.
    fn check_lost(&self) -> Result<()>;
}
impl CheckLost for Ranks {
    fn check_lost(&self) -> Result<()> {
        nccl().expect("no real device").fail("ncclCommGetAsyncError", 0, 6);
        self.wait(LONG)
    }
}

/// What NCCL finds out by itself is an error of the next call, of every one after it, and of whoever waits.
#[test]
fn an_asynchronous_error_is_an_error_of_every_call() {
    let Some(_) = nccl() else { return };
    on_ranks(2, LIMIT, |rank, own, ranks| {
        reduce(own.memory(), &ranks, 3).unwrap();
        if rank == 1 {
            return; // its end waits for the other one's, and gives up at the limit
        }
        nccl().expect("no real device").fail("ncclCommGetAsyncError", 0, 6);
        let error = ranks.exchange([0; 8]).unwrap_err();
        assert!(is_of_ranks(&error) && error.to_string().contains("remote process"), "{error}");
        assert_eq!(reduce(own.memory(), &ranks, 3).unwrap_err(), error);
        assert_eq!(ranks.wait(LONG).unwrap_err(), error);
        assert_eq!(ranks.clone().split(0).unwrap_err(), error);
    });
}

#[test]
fn a_call_that_nccl_refuses_is_an_error_with_its_words() {
    let Some(_) = nccl() else { return };
    let refused = |on: &Device, ranks: &Ranks| {
        nccl().expect("no real device").fail("ncclAllReduce", 0, 3);
        reduce(on, ranks, 3)
    };
    let results = two(LIMIT, refused, |on, ranks| reduce(on, ranks, 3));
    let said = results[0].0.clone().unwrap_err().to_string();
    assert!(said.contains("ncclAllReduce answered 3, internal error"), "{said}");
    let said = results[1].0.clone().unwrap_err().to_string();
    assert!(said.contains("all_reduce within"), "{said}");
}

/// Whatever fails at the beginning, no rank waits beyond the limit for the others to come.
#[test]
fn ranks_that_do_not_come_together_are_errors_of_all() {
    let Some(nccl) = nccl() else { return };
    // The call of rank 1 that fails, or of rank 0, which makes the id; whether both are on one device.
    for (call, by, one_device) in
        [("ncclCommInitRankConfig", 1, false), ("ncclGetUniqueId", 0, false), ("none", 0, true)]
    {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for (rank, hosts) in Threads::new(2, LONG).into_iter().enumerate() {
                scope.spawn(move || {
                    nccl.reset();
                    let own = of_rank(if one_device { 0 } else { rank });
                    if rank == by {
                        nccl.fail(call, 0, 2);
                    }
                    let error = Nccl::new(own.stream(), &hosts, LIMIT).unwrap_err();
                    assert!(is_of_ranks(&error), "{call}, rank {rank}: {error}");
                    if rank == by && call != "none" {
                        assert!(error.to_string().contains("unhandled system error"), "{error}");
                    }
                    assert_eq!(nccl.live(), [""; 0]);
                });
            }
        });
        assert!(begin.elapsed() < LONG / 2);
    }
}

#[test]
fn a_rank_that_panics_is_an_error_of_the_other_at_once() {
    let Some(nccl) = nccl() else { return };
    let begin = Instant::now();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads = Threads::new(2, LONG).into_iter().enumerate().map(|(rank, hosts)| {
            scope.spawn(move || {
                nccl.reset();
                let own = of_rank(rank);
                let engine = Synced::new(&own, &Nccl::new(own.stream(), &hosts, LIMIT).unwrap());
                let engine = engine.unwrap();
                drop(hosts);
                Step::of(7).run(&engine, rank).unwrap().1.unwrap();
                assert!(rank != 1, "a panic between two steps");
                let (running, done) = Step::of(7).run(&engine, rank).unwrap();
                assert!(unmoved(&running));
                done.unwrap_err()
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    });
    assert!(results[1].is_none());
    let error = results[0].clone().unwrap();
    assert!(is_of_ranks(&error), "{error}");
    assert!(begin.elapsed() < LONG / 2);
}

#[test]
fn memory_that_does_not_fit_is_refused_before_a_call() {
    let Some(nccl) = nccl() else { return };
    on_ranks(2, LONG, |rank, own, ranks| {
        let (on, other) = (own.memory(), of_rank(1 - rank));
        let part = on.zeros::<f64>(3).unwrap();
        let mut short = on.zeros::<f64>(5).unwrap();
        let mut theirs = other.memory().zeros::<f64>(6).unwrap();
        let calls = nccl.calls().len();
        let error = ranks.all_gather(on, part.as_view(), short.as_view_mut()).unwrap_err();
        assert_eq!(error, Error::Length { what: "all", expected: 6, got: 5 });
        let error = ranks.all_gather(on, part.as_view(), theirs.as_view_mut()).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "all", .. }), "{error}");
        let error = ranks.all_reduce(other.memory(), theirs.as_view_mut()).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "on", .. }), "{error}");
        assert_eq!(nccl.calls().len(), calls);
        // What waits for a whole device would wait for what its rank has queued there for this one.
        drop((theirs, other));
        ranks.exchange([0; 8]).unwrap();
        reduce(on, &ranks, 3).unwrap();
    });
}
