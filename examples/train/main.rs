//! What batch normalization does for training: one network, with and without it.
//!
//! ```text
//! cargo run --release --example train
//! ```
//!
//! `--help` shows what can be chosen. `network.rs` is the code to look at for how the layer is
//! used; `backend.rs` has the arithmetic beside it.
use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use batchnorm::Cpu;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use backend::HostBackend;
use data::Data;
use experiment::Experiment;
use options::Options;

mod backend;
mod checkpoint;
mod data;
mod experiment;
mod idx;
mod network;
mod options;
mod plot;
mod random;
mod report;

/// Steps from one checkpoint to the next.
const CHECKPOINT_EVERY: u64 = 1000;
/// What a shell shows for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let stop = Arc::new(AtomicBool::new(false));
    let pressed = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if pressed.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    let finished = train(&options, &stop, &mut io::stdout())?;
    Ok(if finished { ExitCode::SUCCESS } else { INTERRUPTED.into() })
}

/// A whole run; whether it came to its end before `stop` was set.
fn train(options: &Options, stop: &AtomicBool, to: &mut impl Write) -> Result<bool> {
    let data = match &options.mnist {
        Some(dir) => Data::mnist(dir)?,
        None => Data::digits()?,
    };
    let (settings, steps) = (options.settings(), options.steps());
    let mut run = Experiment::new(&Cpu::default(), &HostBackend, settings, &data)?;
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
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    if let Some(path) = &options.checkpoint {
        checkpoint::check_writable(path)?;
    }
    let save = |run: &_| match &options.checkpoint {
        Some(path) => checkpoint::write(path, &checkpoint::to_bytes(run)?),
        None => Ok(()),
    };

    let title = report::header(&settings, &data);
    writeln!(to, "{title}\n")?;
    let (bar, start, first) = (progress(steps)?, Instant::now(), run.step);
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
            save(&run)?;
        }
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    save(&run)?;

    let mut points = run.curve.clone();
    if points.last().is_none_or(|point| point.step < run.step) {
        points.push(run.evaluate()?); // not on the curve: a longer run has no such point
    }
    write!(to, "{}", report::table(&points, &settings))?;
    writeln!(to, "{} steps took {seconds:.1} s\n", run.step - first)?;
    let title = report::title(&settings, &data);
    let (png, svg) = (out.join("accuracy.png"), out.join("accuracy.svg"));
    checkpoint::write(&png, &plot::png(&points, &title)?)?;
    checkpoint::write(&svg, plot::svg(&points, &title)?.as_bytes())?;
    writeln!(to, "plots: {}, {}", png.display(), svg.display())?;
    let finished = run.step == steps;
    match &options.checkpoint {
        Some(path) if finished => writeln!(to, "checkpoint: {}", path.display())?,
        Some(path) => {
            let path = path.display();
            writeln!(to, "stopped at step {}; --resume {path} continues", run.step)?;
        }
        None if finished => {}
        None => writeln!(to, "stopped at step {}, without a --checkpoint", run.step)?,
    }
    Ok(finished)
}

/// On a terminal; elsewhere it shows nothing.
fn progress(steps: u64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed} eta {eta}  {msg}")?;
    Ok(ProgressBar::new(steps).with_style(style))
}
