//! Ranks that do not do the same, or are lost: an error on every rank, and running statistics as they were.
use crate::world::{LONG, OfRanks, on_engines, on_ranks, on_ranks_in_steps};
use batchnorm::{
    Activation, Backward, BatchNorm, Collective, Config, Cpu, Element, Engine, Error, ForwardTrain,
    Host, Memory, Rank, Real, Reference, Result, Saved, Shape, Synced, Threads, Words,
};
use std::time::{Duration, Instant};

on_engines! {
    what_a_rank_refuses_is_an_error_of_all,
    calls_that_differ_are_errors_of_all,
    a_backward_that_a_rank_refuses_is_an_error_of_all,
    what_a_layer_refuses_is_an_error_of_all,
    a_layer_that_a_rank_skips_is_an_error_at_the_limit,
}

pub type Running = [Vec<f32>; 2];

/// A step by the engine's own operations, f32 unless it says otherwise.
#[derive(Clone)]
pub struct Step {
    pub channels: usize,
    pub x_len: usize,
    pub eps: f64,
    pub activation: Activation,
    pub residual: bool,
    pub weight: bool,
    pub factor: Option<f64>,
    pub grad_y_len: usize,
    pub grad_x: bool,
    pub f64: bool,
}

const ROWS: usize = 4;

impl Step {
    pub fn of(channels: usize) -> Self {
        let len = ROWS * channels;
        Self {
            channels,
            x_len: len,
            eps: 1e-5,
            activation: Activation::Identity,
            residual: false,
            weight: false,
            factor: Some(0.1),
            grad_y_len: len,
            grad_x: true,
            f64: false,
        }
    }
    /// Forward and backward of this rank; the running statistics afterwards, which start as 0 and 1.
    pub fn run<G: Engine>(&self, engine: &G, rank: usize) -> Result<(Running, Result<()>)> {
        if self.f64 {
            self.of_type::<f64, G>(engine, rank)
        } else {
            self.of_type::<f32, G>(engine, rank)
        }
    }
    fn of_type<E: Element, G: Engine>(
        &self,
        engine: &G,
        rank: usize,
    ) -> Result<(Running, Result<()>)> {
        let (on, c) = (engine.memory(), self.channels);
        let shape = Shape::new(&[ROWS, c], 1)?;
        let value = |i: usize| E::narrow(E::Acc::from_f64((i * (7 + rank) % 11) as f64 - 3.0));
        let values = |n: usize| (0..n).map(value).collect::<Vec<E>>();
        let (x, residual) = (on.upload(&values(self.x_len))?, on.upload(&values(ROWS * c))?);
        let weight = on.upload(&vec![E::Acc::from_f64(1.0); c])?;
        let (mut mean, mut var) =
            (on.zeros::<E::Acc>(c)?, on.upload(&vec![E::Acc::from_f64(1.0); c])?);
        let (mut y, mut saved) = (on.zeros::<E>(ROWS * c)?, Saved::new());
        let mut args =
            ForwardTrain::<G::Memory, E>::new(G::Memory::view(&x), G::Memory::view_mut(&mut y))
                .eps(self.eps)
                .activation(self.activation)
                .saved(&mut saved);
        args.residual = self.residual.then(|| G::Memory::view(&residual));
        args.weight = self.weight.then(|| G::Memory::view(&weight));
        if let Some(factor) = self.factor {
            let (mean, var) = (G::Memory::view_mut(&mut mean), G::Memory::view_mut(&mut var));
            args = args.running(mean, var, factor);
        }
        let forward = engine.forward_train(&shape, args);
        let narrow = |v: Vec<E::Acc>| v.iter().map(|v| v.to_f64() as f32).collect::<Vec<f32>>();
        let running = [
            narrow(on.download(G::Memory::view(&mean))?),
            narrow(on.download(G::Memory::view(&var))?),
        ];
        if forward.is_err() {
            return Ok((running, forward));
        }
        let grad_y = on.upload(&values(self.grad_y_len))?;
        let mut grad_x = on.zeros::<E>(ROWS * c)?;
        let (x, grad_y) = (G::Memory::view(&x), G::Memory::view(&grad_y));
        let mut args = Backward::<G::Memory, E>::new(&saved, x, grad_y);
        args.grad_x = self.grad_x.then(|| G::Memory::view_mut(&mut grad_x));
        let backward = engine.backward(&shape, args);
        Ok((running, backward))
    }
}

pub fn unmoved(running: &Running) -> bool {
    running[0].iter().all(|v| *v == 0.0) && running[1].iter().all(|v| *v == 1.0)
}

/// A step that rank 1 makes differently, then one that all make alike: the errors of the first one.
fn differing<G: OfRanks>(other: &Step) -> Vec<Error> {
    on_ranks::<G, _>(3, |rank, engine| {
        let step = if rank == 1 { other.clone() } else { Step::of(7) };
        let (running, done) = step.run(&engine, rank).unwrap();
        assert!(unmoved(&running), "rank {rank}: {running:?} after {done:?}");
        let (running, again) = Step::of(7).run(&engine, rank).unwrap();
        again.unwrap();
        assert!(!unmoved(&running));
        done.unwrap_err()
    })
}

fn what_a_rank_refuses_is_an_error_of_all<G: OfRanks>() {
    let wrong_length = Step { x_len: 27, ..Step::of(7) };
    let wrong_eps = Step { eps: -1.0, ..Step::of(7) };
    let wrong_factor = Step { factor: Some(1.5), ..Step::of(7) };
    for other in [wrong_length, wrong_eps, wrong_factor] {
        let errors = differing::<G>(&other);
        assert!(matches!(errors[1], Error::Length { what: "x", .. } | Error::Invalid { .. }));
        for rank in [0, 2] {
            let text = errors[rank].to_string();
            assert_eq!(text, "rank 1: it has refused its part of the call");
        }
    }
}

fn calls_that_differ_are_errors_of_all<G: OfRanks>() {
    let step = Step::of(7);
    let cases = [
        (Step::of(8), "8 channels"),
        (Step { f64: true, ..step.clone() }, "f64"),
        (Step { eps: 1e-3, ..step.clone() }, "1e-3"),
        (Step { activation: Activation::Relu, ..step.clone() }, "relu"),
        (Step { residual: true, ..step.clone() }, "a residual"),
        (Step { weight: true, ..step.clone() }, "a weight"),
        (Step { factor: Some(0.2), ..step.clone() }, "0.2"),
        (Step { factor: None, ..step.clone() }, "none of running statistics"),
    ];
    for (other, got) in cases {
        for error in differing::<G>(&other) {
            let text = error.to_string();
            assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{text}");
            assert!(text.contains("as rank 0 has it, got") && text.contains(got), "{text}");
        }
    }
}

/// After a forward that all make: running statistics have moved, then the backward fails on all.
fn a_backward_that_a_rank_refuses_is_an_error_of_all<G: OfRanks>() {
    let wrong = Step { grad_y_len: 3, ..Step::of(7) };
    let none = Step { grad_x: false, ..Step::of(7) };
    for (other, own) in [(wrong, "grad_y: expected 28 elements, got 3"), (none, "none of grad_x")] {
        let errors = on_ranks::<G, _>(2, |rank, engine| {
            let step = if rank == 1 { &other } else { &Step::of(7) };
            let (running, done) = step.run(&engine, rank).unwrap();
            assert!(!unmoved(&running));
            Step::of(7).run(&engine, rank).unwrap().1.unwrap();
            done.unwrap_err()
        });
        assert!(matches!(errors[0], Error::Collective { rank: Some(1), .. }), "{}", errors[0]);
        assert!(errors[1].to_string().contains(own), "{}", errors[1]);
    }
}

/// What a layer finds before it calls its engine, the other ranks learn at once too.
fn what_a_layer_refuses_is_an_error_of_all<G: OfRanks>() {
    let begin = Instant::now();
    on_ranks::<G, _>(2, |rank, engine| {
        let (on, shape) = (engine.memory().clone(), Shape::new(&[3, 2], 1).unwrap());
        let mut bn = BatchNorm::<f32, _>::new(&engine, 2, Config::default()).unwrap();
        let (x, short) = (on.upload(&[1f32, 2., 3., 4., 6., 5.]).unwrap(), on.zeros(4).unwrap());
        let other = Shape::new(&[2, 3], 1).unwrap();
        let of_two = |error: Error, own: fn(&Error) -> bool| match rank {
            1 => assert!(own(&error), "{error}"),
            _ => assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{error}"),
        };
        let given = G::Memory::view(if rank == 1 { &short } else { &x });
        let error = bn.forward(&shape, given).map(drop).unwrap_err();
        of_two(error, |e| matches!(e, Error::Length { what: "x", .. }));
        let which = if rank == 1 { &other } else { &shape };
        let error = bn.forward(which, G::Memory::view(&x)).map(drop).unwrap_err();
        of_two(error, |e| matches!(e, Error::Length { what: "channels", .. }));
        assert_eq!(bn.running().unwrap().num_batches_tracked, 0);

        let (_, saved) = bn.forward(&shape, G::Memory::view(&x)).unwrap();
        let given = G::Memory::view(if rank == 1 { &short } else { &x });
        let error = bn.backward(&saved, G::Memory::view(&x), given).map(drop).unwrap_err();
        of_two(error, |e| matches!(e, Error::Length { what: "grad_y", .. }));
        assert!(bn.named_parameters().all(|(_, param)| param.grad().is_none()));
        bn.backward(&saved, G::Memory::view(&x), G::Memory::view(&x)).unwrap();
    });
    assert!(begin.elapsed() < LONG);
}

fn a_layer_that_a_rank_skips_is_an_error_at_the_limit<G: OfRanks>() {
    let limit = Duration::from_millis(700);
    let late = std::sync::Barrier::new(2);
    let errors = on_ranks_in_steps::<G, _>(2, 16, limit, |rank, engine| {
        if rank == 0 {
            let (running, done) = Step::of(7).run(&engine, rank).unwrap();
            assert!(unmoved(&running));
            late.wait();
            return done.unwrap_err();
        }
        late.wait();
        let (running, done) = Step::of(7).run(&engine, rank).unwrap(); // the next layer
        assert!(unmoved(&running));
        done.unwrap_err()
    });
    for error in errors {
        assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{error}");
    }
}

#[test]
fn a_rank_that_panics_is_an_error_of_the_others_at_once() {
    let begin = Instant::now();
    let ranks = Threads::new(3, LONG);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads = ranks.into_iter().enumerate().map(|(rank, threads)| {
            scope.spawn(move || {
                let engine = Synced::new(&Cpu::default(), &threads).unwrap();
                drop(threads);
                let first = Step::of(7).run(&engine, rank).unwrap();
                first.1.unwrap();
                assert!(rank != 1, "a panic between two steps");
                let (running, done) = Step::of(7).run(&engine, rank).unwrap();
                assert!(unmoved(&running));
                done.unwrap_err()
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    });
    assert!(begin.elapsed() < LONG);
    assert!(results[1].is_none());
    for rank in [0, 2] {
        let error = results[rank].clone().unwrap();
        assert!(matches!(error, Error::Collective { rank: Some(_), .. }), "{error}");
    }
}

/// Ranks of which one fails at the given operation, once they have agreed on the call.
#[derive(Debug, Clone)]
struct Failing {
    threads: Threads,
    fails: Fails,
}
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fails {
    Gather,
    Reduce,
    /// As a rank that cannot compute its sums.
    Sums,
}

impl Rank for Failing {
    fn rank(&self) -> usize {
        self.threads.rank()
    }
    fn size(&self) -> usize {
        self.threads.size()
    }
    fn exchange(&self, mine: Words) -> Result<Vec<Words>> {
        self.threads.exchange(mine)
    }
    fn split(&self, color: usize) -> Result<Self> {
        Ok(Self { threads: self.threads.split(color)?, ..self.clone() })
    }
}
impl Collective<Host> for Failing {
    fn all_gather(&self, on: &Host, part: &[f64], all: &mut [f64]) -> Result<()> {
        if self.fails == Fails::Gather && self.rank() == 1 {
            return Err(Error::collective(Some(1), "a cable"));
        }
        self.threads.all_gather(on, part, all)
    }
    fn all_reduce<P: Real>(&self, on: &Host, sums: &mut [P]) -> Result<()> {
        if self.rank() == 1 && self.fails == Fails::Reduce {
            return Err(Error::collective(Some(1), "a cable"));
        }
        if self.rank() == 1 && self.fails == Fails::Sums {
            sums.fill(P::from_f64(f64::NAN));
        }
        self.threads.all_reduce(on, sums)
    }
}

#[test]
fn a_rank_that_is_lost_after_all_agreed_is_an_error_of_the_others() {
    for fails in [Fails::Gather, Fails::Reduce, Fails::Sums] {
        let ranks = Threads::new(2, Duration::from_millis(500)).into_iter();
        std::thread::scope(|scope| {
            for threads in ranks {
                scope.spawn(move || {
                    let rank = threads.rank();
                    let engine = Synced::new(&Reference, &Failing { threads, fails }).unwrap();
                    let (running, done) = Step::of(7).run(&engine, rank).unwrap();
                    let error = done.unwrap_err();
                    assert!(matches!(error, Error::Collective { .. }), "{error}");
                    assert_eq!(unmoved(&running), fails == Fails::Gather, "{fails:?}, rank {rank}");
                    if fails == Fails::Sums {
                        assert!(error.to_string().contains("got none of one"), "{error}");
                    }
                });
            }
        });
    }
}
