//! What batch normalization does for training: one network, with and without it.
//!
//! ```text
//! cargo run --release -p examples --bin train
//! ```
//!
//! `--help` shows what can be chosen. `network.rs` is the code to look at for how the layer is
//! used; `backend.rs` has the arithmetic beside it.
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use batchnorm::{Engine, Memory};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use backend::Backend;
use checkpoint::Saves;
use data::Data;
use device::Place;
use experiment::Experiment;
use options::{Options, Statistics};

// Not private: the tests take this file as a module.
pub(crate) mod backend;
pub(crate) mod checkpoint;
pub(crate) mod data;
pub(crate) mod device;
pub(crate) mod experiment;
pub(crate) mod files;
pub(crate) mod idx;
pub(crate) mod network;
pub(crate) mod options;
pub(crate) mod plot;
pub(crate) mod random;
pub(crate) mod report;
#[allow(unsafe_code)]
pub(crate) mod signals;
pub(crate) mod start;

/// Steps from one checkpoint to the next.
const CHECKPOINT_EVERY: u64 = 1000;
/// What a shell shows for a program that Ctrl-C ended; here whichever signal it was.
const INTERRUPTED: u8 = 130;
/// Signals up to so long after the first are the same request: `timeout` sends SIGTERM twice.
const ONE_REQUEST: Duration = Duration::from_secs(1);

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let stop = Arc::new(AtomicBool::new(false));
    let (asked, mut first) = (Arc::clone(&stop), None);
    signals::on_request(move || {
        asked.store(true, Ordering::Relaxed);
        if first.get_or_insert_with(Instant::now).elapsed() > ONE_REQUEST {
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    let (place, to) = (Place::new(options.device, options.verbose)?, &mut io::stdout());
    writeln!(to, "device: {}", place.name())?;
    let finished = match &place {
        Place::Cpu { engine, backend, .. } => train(engine, backend, &options, &stop, to)?,
        #[cfg(feature = "cuda")]
        Place::Cuda { engine, backend, .. } => train(engine, backend, &options, &stop, to)?,
    };
    Ok(if finished { ExitCode::SUCCESS } else { INTERRUPTED.into() })
}

/// A whole run, wherever `engine` and `backend` are; whether it came to its end before `stop` was
/// set.
pub(crate) fn train<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>>(
    engine: &G,
    backend: &B,
    options: &Options,
    stop: &AtomicBool,
    to: &mut impl Write,
) -> Result<bool> {
    let data = match &options.mnist {
        Some(dir) => Data::mnist(dir)?,
        None => Data::digits()?,
    };
    let (settings, steps) = (options.settings(), options.steps());
    let mut run = Experiment::new(engine, backend, settings, &data)?;
    // Before a checkpoint takes the place of the initial weights.
    let exported = match &options.export_start {
        Some(path) => Some((path, start::to_bytes(&mut run, steps)?)),
        None => None,
    };
    if let Some(path) = &options.resume {
        let context = || format!("{}: cannot be resumed", path.display());
        let bytes = fs::read(path).with_context(context)?;
        checkpoint::load(&bytes, &mut run).with_context(context)?;
        ensure!(
            run.step <= steps,
            "{}: is at step {}, which is beyond --steps {steps}",
            path.display(),
            run.step
        );
    }
    let out = &options.out;
    fs::create_dir_all(out).with_context(|| format!("{}: cannot be made", out.display()))?;
    let (png, svg) = (out.join("accuracy.png"), out.join("accuracy.svg"));
    for path in [&png, &svg].into_iter().chain(&options.checkpoint) {
        files::check_writable(path)?;
    }
    if let Some((path, bytes)) = exported {
        files::write(path, &bytes)?;
    }
    let mut saves = Saves::to(options.checkpoint.as_deref());

    writeln!(to, "{}\n", report::header(&settings, &data, engine.name()))?;
    let (bar, start, first) = (progress(steps, run.step)?, Instant::now(), run.step);
    loop {
        run.record()?;
        if let Some(point) = run.curve.last() {
            bar.set_message(report::line(point));
        }
        bar.set_position(run.step);
        if run.step == steps || stop.load(Ordering::Relaxed) {
            break;
        }
        run.step()?;
        if run.step.is_multiple_of(CHECKPOINT_EVERY) {
            // The test of this step belongs to it.
            run.record()?;
            saves.save(&run);
            if let Some(error) = &saves.error {
                bar.suspend(|| {
                    complain(format_args!("step {}: {error:#}; the run goes on", run.step))
                });
            }
        }
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    saves.save(&run);

    let mut points = run.curve.clone();
    if points.last().is_none_or(|point| point.step < run.step) {
        points.push(run.evaluate()?); // not on the curve: a longer run has no such point
    }
    let title = report::title(&settings, &data);
    let drawn = (|| {
        files::write(&png, &plot::png(&points, &title)?)?;
        files::write(&svg, plot::svg(&points, &title)?.as_bytes())
    })();
    let by_population = match options.statistics {
        Statistics::Moving => None,
        Statistics::Population => {
            run.use_population()?; // the checkpoint is written
            Some(run.evaluate()?.with)
        }
    };
    write!(to, "{}", report::table(&points, &settings, by_population))?;
    writeln!(to, "{} steps took {seconds:.1} s\n", run.step - first)?;
    if drawn.is_ok() {
        writeln!(to, "plots: {}, {}", png.display(), svg.display())?;
    }
    let (finished, now) = (run.step == steps, run.step);
    match (saves.path, &saves.error) {
        (Some(_), Some(_)) => match saves.step {
            Some(then) => writeln!(to, "ended at step {now}; the checkpoint is of step {then}")?,
            None => writeln!(to, "ended at step {now}; no checkpoint could be written")?,
        },
        (Some(path), _) if finished => writeln!(to, "checkpoint: {}", path.display())?,
        (Some(path), _) => {
            writeln!(to, "stopped at step {now}; --resume {} continues", path.display())?;
        }
        _ if finished => {}
        _ => writeln!(to, "stopped at step {now}, without a --checkpoint")?,
    }
    match (saves.error, drawn) {
        (Some(error), Err(other)) => {
            complain(format_args!("{other:#}"));
            Err(error)
        }
        (Some(error), Ok(())) | (None, Err(error)) => Err(error),
        (None, Ok(())) => Ok(finished),
    }
}

/// On stderr, which may be on the same full disk.
fn complain(what: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// On a terminal; elsewhere it shows nothing.
fn progress(steps: u64, first: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed} eta {eta}  {msg}")?;
    let bar = ProgressBar::new(steps).with_style(style).with_position(first);
    bar.reset_eta(); // what a resumed run did before says nothing about this one's speed
    Ok(bar)
}
