//! Runs the test kernels and records what they computed, or compares it with a record: a device that is real with one
//! that is not.
//!
//! ```text
//! compare_kernels --software --record FILE
//! compare_kernels --compare FILE
//! ```
//!
//! Exact arithmetic must agree bit for bit, sums within rounding. Only `--software` needs the software device. The exit
//! status is 1 where something differs, 3 where there is no device.
use anyhow::{Context, Result, ensure};
use clap::{ArgGroup, Parser};
use std::path::PathBuf;
use std::process::ExitCode;
use support::device::Device;
use support::output::{Agreement, Output};

mod kernels;
mod record;
#[path = "../../tests/support/mod.rs"]
mod support;

/// Runs the test kernels and records or compares what they computed; fails where that differs.
#[derive(Parser)]
#[command(group(ArgGroup::new("file").required(true).args(["record", "compare"])))]
struct Arguments {
    /// Write the results to this file.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Compare the results with those of this file.
    #[arg(long)]
    compare: Option<PathBuf>,
    /// Which device.
    #[arg(long, default_value_t = 0)]
    ordinal: usize,
    /// Use the software device, whatever other driver there is.
    #[arg(long)]
    software: bool,
    /// What orders blocks and warps of the software device.
    #[arg(long, requires = "software")]
    seed: Option<u64>,
}

fn main() -> Result<ExitCode> {
    let Arguments { record, compare, ordinal, software, seed } = Arguments::parse();
    if software {
        let softcuda = softcuda::install()?;
        if let Some(seed) = seed {
            softcuda.set_seed(seed);
        }
    }
    let count = support::device::count().unwrap_or(0);
    if ordinal >= count {
        println!("no device {ordinal}: there are {count}");
        return Ok(ExitCode::from(3));
    }
    let device = Device::new(ordinal)?;
    println!("{}, compute capability {}", device.context.name()?, device.capability);
    let outputs = kernels::run(&device)?;

    if let Some(path) = record {
        record::write(&path, &outputs).with_context(|| path.display().to_string())?;
        println!("{} results recorded", outputs.len());
        return Ok(ExitCode::SUCCESS);
    }
    let path = compare.expect("one of the two, says the parser");
    let recorded = record::read(&path).with_context(|| path.display().to_string())?;
    let mut failed = 0;
    for output in &outputs {
        failed += usize::from(!compared(output, &recorded)?);
    }
    let skipped: Vec<_> =
        recorded.keys().filter(|name| outputs.iter().all(|o| o.name != **name)).collect();
    for name in &skipped {
        println!("{name:44} not run: this device has no such instructions");
    }
    let verdict = if failed == 0 { "pass" } else { "FAIL" };
    println!("{verdict}: {failed} of {} results differ, {} not run", outputs.len(), skipped.len());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many differences of one result are shown.
const SHOWN: usize = 10;

/// Prints a line about that result, and a line for each difference; true if there is none.
fn compared(output: &Output, recorded: &record::Record) -> Result<bool> {
    let Output { name, kind, bits, agreement } = output;
    let expected = recorded.get(name).with_context(|| format!("the record has no {name}"))?;
    ensure!(
        (expected.0, expected.1.len()) == (*kind, bits.len()),
        "{name}: the record has {} of {:?}, here are {} of {kind:?}",
        expected.1.len(),
        expected.0,
        bits.len()
    );
    let places = output.differences(&expected.1);
    let how = match agreement {
        Agreement::Bits => "bit for bit".to_owned(),
        Agreement::Within(part) | Agreement::Relative(part) => {
            let same = bits.iter().zip(&expected.1).filter(|(a, b)| a == b).count();
            format!("within {part:.1e}; {same} bit for bit")
        }
    };
    let verdict = if places.is_empty() { "pass" } else { "FAIL" };
    println!("{name:44} {verdict} {:7} values {how}", bits.len());
    for &i in places.iter().take(SHOWN) {
        let (recorded, here) = (expected.1[i], bits[i]);
        let value = |bits| kind.real(bits).map_or(String::new(), |v| format!(" ({v:e})"));
        let (a, b) = (value(recorded), value(here));
        println!("    [{i}]: recorded {recorded:#x}{a}, here {here:#x}{b}");
    }
    if places.len() > SHOWN {
        println!("    and {} more", places.len() - SHOWN);
    }
    Ok(places.is_empty())
}
