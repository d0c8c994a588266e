//! Two ranks of which the second does not do what the first does: `mpirun -n 2 faults KIND`, with a KIND of `refuse`,
//! `differ`, `skip` or `panic`. The first two end well; the others end the job, once the first rank has its error.
use batchnorm::{BatchNorm, Config, Cpu, Error, Rank, Shape, Synced};
use batchnorm_mpi::Mpi;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(3);

fn main() -> std::process::ExitCode {
    let kind = std::env::args().nth(1).unwrap_or_default();
    batchnorm_mpi::run(LIMIT, |ranks| {
        faulty(&kind, ranks).map_err(|error| format!("{kind}: {error}"))
    })
}

/// One row of as many values as a layer's channels.
fn step(ranks: &Mpi, channels: usize, len: usize) -> batchnorm::Result<f32> {
    let engine = Synced::new(&Cpu::default(), ranks)?;
    let mut bn = BatchNorm::new(&engine, channels, Config::default())?;
    let x = vec![ranks.rank() as f32; len];
    let done = bn.forward(&Shape::new(&[1, channels], 1)?, &x);
    let mean = bn.running().map_or(f32::NAN, |running| running.mean[0]);
    let (y, saved) = done.inspect_err(|_| assert!(mean == 0.0, "running statistics have moved"))?;
    bn.backward(&saved, &x, &y)?;
    Ok(mean)
}

fn faulty(kind: &str, ranks: &Mpi) -> Result<(), String> {
    if ranks.size() != 2 {
        return Err(format!("expected 2 ranks, got {}", ranks.size()));
    }
    let (rank, begin) = (ranks.rank(), Instant::now());
    let bad = match (kind, rank) {
        ("refuse", 1) => step(ranks, 7, 6),
        ("differ", 1) => step(ranks, 8, 8),
        ("skip", 1) => {
            std::thread::sleep(4 * LIMIT);
            return Err("expected to be ended by the other rank".into());
        }
        ("panic", 1) => panic!("a panic of rank 1"),
        ("refuse" | "differ" | "skip" | "panic", _) => step(ranks, 7, 7),
        (other, _) => return Err(format!("expected refuse, differ, skip or panic, got {other:?}")),
    };
    let error =
        bad.map_or_else(Ok, |mean| Err(format!("expected an error, got a mean of {mean}")))?;
    let is_right = match (kind, rank) {
        ("refuse", 1) => matches!(error, Error::Length { what: "x", .. }),
        ("refuse" | "differ", _) => matches!(error, Error::Collective { rank: Some(1), .. }),
        _ => matches!(error, Error::Collective { .. }) && begin.elapsed() >= LIMIT,
    };
    if !is_right {
        return Err(format!("another error than expected: {error}"));
    }
    println!("rank {rank}, {kind}: {error}");
    if kind == "skip" {
        return Err("the other rank was lost".into());
    }
    // The ranks are still in step.
    let mean = step(ranks, 7, 7).map_err(|error| error.to_string())?;
    if (mean - 0.05).abs() > 1e-6 {
        return Err(format!("expected a running mean of 0.05, got {mean}"));
    }
    Ok(())
}
