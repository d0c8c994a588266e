//! The normalized network of `examples/train` on several processes, each with a part of every batch: parts of unequal
//! size, and a last batch of an epoch with what is left. At its end the first process trains the same network on the
//! whole batches, by itself, and compares.
//!
//! ```sh
//! cargo build --release -p batchnorm-mpi --example distributed
//! mpirun -n 2 target/release/examples/distributed
//! cargo build --release -p batchnorm-mpi --example distributed --features cuda
//! mpirun -n 2 target/release/examples/distributed --device cuda    # on two devices, by NCCL; MPI carries its id
//! ```
use anyhow::{Context, Result, ensure};
use batchnorm::{Collective, Cpu, Engine, Memory, Rank, StateDict, Synced};
use batchnorm_mpi::Mpi;
use clap::Parser;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[path = "../../../examples/train/backend/mod.rs"]
#[allow(dead_code)]
mod backend;
#[path = "../../../examples/train/data.rs"]
#[allow(dead_code)]
mod data;
#[path = "../../../examples/train/idx.rs"]
#[allow(dead_code)]
mod idx;
#[path = "../../../examples/train/network.rs"]
#[allow(dead_code)]
mod network;
mod parallel;
mod place;
#[path = "../../../examples/train/random.rs"]
#[allow(dead_code)]
mod random;

use backend::{Backend, HostBackend, Nonlinearity};
use data::{CLASSES, Data};
use network::{Architecture, Network, Score};
use parallel::{Parallel, Shrinks};
use place::Device;
use random::Random;

/// Trains a network on parts of batches, as many as there are processes.
#[derive(Debug, Parser)]
struct Options {
    /// Walks over the training images.
    #[arg(long, default_value_t = 3)]
    epochs: u64,
    /// Images of a batch, of all processes together.
    #[arg(long, default_value_t = 100)]
    batch: usize,
    #[arg(long, default_value_t = 0.3)]
    learning_rate: f32,
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
    /// Seconds that a process waits for the others.
    #[arg(long, default_value_t = 60)]
    limit: u64,
    /// Leaves every process its own statistics: what comes of it is not what one process makes, and is refused.
    #[arg(long)]
    unsynced: bool,
}

fn main() -> std::process::ExitCode {
    let options = Options::parse();
    batchnorm_mpi::run(Duration::from_secs(options.limit), |ranks| {
        distributed(&options, ranks).map_err(|error| format!("{error:#}"))
    })
}

/// Rank `r` has a share of `r + 1`, and one image at least.
fn share(batch: usize, rank: usize, ranks: usize) -> Range<usize> {
    let end = |parts: usize| parts + (batch - ranks) * parts * (parts + 1) / (ranks * (ranks + 1));
    end(rank)..end(rank + 1)
}

fn distributed(options: &Options, ranks: &Mpi) -> Result<()> {
    place::check(ranks)?;
    match options.device {
        Device::Cpu => on(options, ranks, ranks, (&Cpu::default(), &HostBackend), || Ok(())),
        #[cfg(feature = "cuda")]
        Device::Cuda => {
            use batchnorm::{Cuda, Nccl};
            let limit = Duration::from_secs(options.limit);
            let own = Cuda::new(place::local_rank(ranks))?;
            let backend = backend::cuda::CudaBackend::new(own.memory())?;
            let devices = Nccl::new(own.stream(), ranks, limit)?;
            on(options, ranks, &devices, (&own, &backend), || Ok(devices.wait(limit)?))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda => anyhow::bail!("this program was built without the feature `cuda`"),
    }
}

/// Trains on ranks that have an engine and a backend each; `wait` ends where all that is queued is done.
fn on<M: Memory, G: Engine<Memory = M>, B: Shrinks<Memory = M>, C: Collective<M>>(
    options: &Options,
    hosts: &Mpi,
    ranks: &C,
    (own, backend): (&G, &B),
    wait: impl Fn() -> Result<()>,
) -> Result<()> {
    let data = Data::digits()?;
    let (batch, images, size) = (options.batch, data.train.len(), ranks.size());
    let last = (images - 1) % batch.max(1) + 1;
    ensure!(
        batch.min(last) > size,
        "--batch: expected more images than processes in every batch, got batches of {batch} and at last of {last}"
    );
    if ranks.rank() == 0 {
        println!("{data}, on {size} processes, {}", own.name());
        println!(
            "of {batch} images: {:?}",
            (0..size).map(|r| share(batch, r, size).len()).collect::<Vec<_>>()
        );
    }
    let total = Arc::new(AtomicUsize::new(0));
    let parallel = Parallel::new(backend, own.memory(), ranks, total.clone());
    let (score, dict) = match options.unsynced {
        true => train(options, &data, (own, &parallel), (ranks, &total))?,
        false => {
            let engine = Synced::new(own, ranks)?;
            if ranks.rank() == 0 {
                println!("{}", engine.explain());
            }
            train(options, &data, (&engine, &parallel), (ranks, &total))?
        }
    };
    wait()?;
    // What every process has become, in numbers that all of them have.
    let (names, mine) = numbers(&dict)?;
    let all = Synced::new(&Cpu::default(), hosts)?.gather(&mine)?;
    let alike = all.chunks_exact(mine.len()).all(|other| other == mine);
    if ranks.rank() > 0 {
        return Ok(());
    }
    ensure!(
        alike || options.unsynced,
        "expected the same parameters and statistics on all processes"
    );
    println!("one process on whole batches:");
    let (right, expected) = steps(options, &data, (own, backend), |_, n| 0..n, |_| {}, true)?;
    compare((score, &names, &mine), (right, &numbers(&expected)?.1))
}

/// The values of a state, and whose they are.
fn numbers(dict: &StateDict) -> Result<(Vec<String>, Vec<f64>)> {
    let (mut names, mut numbers) = (vec![], vec![]);
    for name in dict.names() {
        if name.ends_with("num_batches_tracked") {
            continue;
        }
        let (_, values): (_, Vec<f32>) = dict.get(name)?.with_context(|| name.to_string())?;
        names.extend(values.iter().map(|_| name.to_string()));
        numbers.extend(values.into_iter().map(f64::from));
    }
    Ok((names, numbers))
}

fn train<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>>(
    options: &Options,
    data: &Data,
    place: (&G, &B),
    (ranks, total): (&impl Rank, &AtomicUsize),
) -> Result<(Score, StateDict)> {
    let part = |_: u64, images: usize| share(images, ranks.rank(), ranks.size());
    let begins = |images| total.store(images, Ordering::Relaxed);
    steps(options, data, place, part, begins, ranks.rank() == 0)
}

/// Trains on a part of every batch; `begins` is told how many images the whole has.
fn steps<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>>(
    options: &Options,
    data: &Data,
    (engine, backend): (&G, &B),
    part: impl Fn(u64, usize) -> Range<usize>,
    begins: impl Fn(usize),
    prints: bool,
) -> Result<(Score, StateDict)> {
    let units = vec![data.train.inputs, 100, 100, CLASSES];
    let architecture = Architecture { units, nonlinearity: Nonlinearity::Relu, normalize: true };
    // By number of images: memory of a step is of one size.
    let mut networks: HashMap<usize, Network<G, B>> = HashMap::new();
    let mut state: Option<(usize, StateDict)> = None;
    let memory = engine.memory();
    let test: Vec<f32> = (0..data.test.len()).flat_map(|i| data.test.image(i)).collect();
    let (test, tests) = (memory.upload(&test)?, memory.upload(data.test.labels())?);
    let mut score = Score { loss: f64::NAN, accuracy: 0.0 };
    for epoch in 0..options.epochs {
        let mut order: Vec<usize> = (0..data.train.len()).collect();
        Random::new(7, epoch + 1).shuffle(&mut order);
        for batch in order.chunks(options.batch) {
            let mine = &batch[part(epoch, batch.len())];
            let network = match networks.remove(&mine.len()) {
                Some(network) => network,
                None => {
                    let rows = [mine.len(), data.test.len()];
                    Network::new(engine, backend, &architecture, rows, &mut Random::new(7, 0))?
                }
            };
            let network = networks.entry(mine.len()).or_insert(network);
            if let Some((_, dict)) = state.as_ref().filter(|(rows, _)| *rows != mine.len()) {
                network.load_state_dict(dict, "")?;
            }
            begins(batch.len());
            let x: Vec<f32> = mine.iter().flat_map(|&i| data.train.image(i)).collect();
            let labels: Vec<u8> = mine.iter().map(|&i| data.train.labels()[i]).collect();
            let (x, labels) = (memory.upload(&x)?, memory.upload(&labels)?);
            network.step(&x, &labels, options.learning_rate)?;
            state = Some((mine.len(), network.state_dict("")?));
        }
        // Whoever evaluates does it alone.
        let last = state.as_ref().and_then(|(rows, _)| networks.get_mut(rows));
        if let Some(network) = last {
            score = network.evaluate(&test, &tests)?;
        }
        if prints {
            let Score { loss, accuracy } = score;
            println!("epoch {}: loss {loss:.4}, {:.1} % right", epoch + 1, 100.0 * accuracy);
        }
    }
    let (_, dict) = state.context("--epochs: expected at least 1, got 0")?;
    Ok((score, dict))
}

/// How far several processes may be from one: roundings of f32, which training makes larger. With statistics of their own
/// they are 1e-1 apart after two epochs.
const TOLERANCE: f64 = 2e-5;

fn compare(got: (Score, &[String], &[f64]), right: (Score, &[f64])) -> Result<()> {
    let (loss, expected) = (got.0.loss, right.0.loss);
    ensure!(
        got.2.len() == right.1.len(),
        "expected {} numbers, got {}",
        right.1.len(),
        got.2.len()
    );
    let off = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs().max(1.0);
    let apart = got.2.iter().zip(right.1).map(off).enumerate();
    let (at, apart) = apart
        .fold((0, 0.0), |most, next| if next.1 > most.1 || next.1.is_nan() { next } else { most });
    let name = got.1.get(at).map_or("", |name| name);
    println!(
        "losses are {:.1e} apart; parameters and running statistics {apart:.1e}, in {name}",
        (loss - expected).abs()
    );
    ensure!(
        (loss - expected).abs() <= TOLERANCE,
        "loss: expected {expected}, as one process has, got {loss}"
    );
    ensure!(apart <= TOLERANCE, "{name}: expected that of one process, got another by {apart:.1e}");
    println!("several processes have made what one does");
    Ok(())
}
