//! Makes a table and a chart from the lines that `speed --json`, `scripts/bench_pytorch.py` and
//! other programs with the same fields write:
//!
//! ```text
//! cargo run --release -p examples --bin report -- cpu.jsonl pytorch.jsonl --out report
//! ```
//!
//! The table goes to the standard output, or with the charts (SVG and PNG) to the folder. Rows in
//! which this library is slower than the best peer come first. A time stands beside its multiple
//! of the floor, which is what the memory alone took in the same run: times of different runs say
//! little about each other, multiples of the floor do.
use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::path::PathBuf;

mod chart;
#[path = "../support/font.rs"]
mod font;
#[path = "../support/png.rs"]
mod picture;
mod read;
mod rows;
mod text;

/// Makes a table and charts of measured times.
#[derive(Parser)]
struct Arguments {
    /// Files with one JSON object per line.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Write report.md and the charts here, instead of the table to the standard output.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The peers whose names begin like this are ours.
    #[arg(long, default_value = "batchnorm")]
    ours: String,
}

fn main() -> Result<()> {
    let Arguments { files, out, ours } = Arguments::parse();
    let record = read::files(&files)?;
    let rows = rows::rows(&record);
    ensure!(!rows.is_empty(), "expected times of at least one peer, got none in {files:?}");
    let Some(out) = out else {
        print!("{}", text::markdown(&record, &rows, &ours, &[]));
        return Ok(());
    };
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let charts = chart::all(&rows, &ours, &out)?;
    let path = out.join("report.md");
    let table = text::markdown(&record, &rows, &ours, &charts);
    std::fs::write(&path, table).with_context(|| path.display().to_string())
}
