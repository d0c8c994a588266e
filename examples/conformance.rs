//! Runs engines over golden cases and compares them with what PyTorch computed in float64:
//!
//! ```text
//! cargo run --release -p conformance -- --engine all tests/golden
//! ```
//!
//! `tests/golden/README.md` describes the cases, `scripts/golden.py` makes more of them. A line
//! shows the element that is nearest to its tolerance, or furthest beyond it.
use anyhow::{Context, Result};
use clap::{Parser, builder::PossibleValuesParser};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use support::golden::{self, Case, Compute, ENGINES, Verdict};

#[path = "../tests/support/mod.rs"]
mod support;

/// Runs engines over golden cases; fails if any result is further off than its tolerance.
#[derive(Parser)]
struct Arguments {
    /// Which engine.
    #[arg(long, default_value = "all", value_parser = engine_names())]
    engine: String,
    /// Folders of *.safetensors files, or such files.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Write what was computed to this folder, as ENGINE-CASE.safetensors, without what an engine
    /// refused.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn engine_names() -> PossibleValuesParser {
    PossibleValuesParser::new(ENGINES.iter().map(|(name, _)| *name).chain(["all"]))
}

fn main() -> Result<ExitCode> {
    let Arguments { engine, paths, out } = Arguments::parse();
    let files: Result<Vec<_>> = paths.iter().map(|path| golden::files(path)).collect();
    let files = files?.concat();
    if let Some(out) = &out {
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    }
    let engines = ENGINES.iter().filter(|(name, _)| engine == "all" || engine == *name);
    let engines: Vec<_> = engines.collect();

    #[cfg(all(feature = "cuda", target_os = "linux"))]
    if engines.iter().any(|(name, _)| ["cuda", "cudnn", "gpu"].contains(name))
        && !support::cuda::is_real()
    {
        eprintln!(
            "cuda, cudnn and gpu run on the tests' software device, with a software cuDNN; \
             there is no other here"
        );
    }

    let mut report = Report::new(&files);
    report.header()?;
    for file in &files {
        match Case::read(file) {
            Ok(case) => {
                for (name, compute) in &engines {
                    let (verdicts, refused) = match run(&case, name, *compute, out.as_deref()) {
                        Ok((verdicts, refused)) => (Ok(verdicts), refused),
                        Err(error) => (Err(error), Vec::new()),
                    };
                    report.case(name, &case.name, verdicts)?;
                    report.refused(name, &case.name, &refused)?;
                }
            }
            Err(error) => report.case("-", &stem(file), Err(error))?,
        }
    }
    report.summary()
}

/// What is right and wrong with one engine on one case, and what it does not serve.
fn run(
    case: &Case,
    engine: &str,
    compute: Compute,
    out: Option<&Path>,
) -> Result<(Vec<Verdict>, Vec<String>)> {
    let ran = compute(case)?;
    if let Some(out) = out.filter(|_| !ran.tensors.is_empty()) {
        let path = out.join(format!("{engine}-{}.safetensors", case.name));
        let bytes = golden::serialize(case, &ran.tensors)?;
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    }
    Ok((ran.judge(case)?, ran.refused))
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The table, line by line, and its totals.
struct Report {
    /// Of the column of cases.
    width: usize,
    /// One per engine and case.
    runs: usize,
    failed_runs: usize,
    tensors: usize,
    failed_tensors: usize,
}

impl Report {
    fn new(files: &[PathBuf]) -> Self {
        let width = files.iter().map(|file| stem(file).len()).max().unwrap_or(0);
        Self { width, runs: 0, failed_runs: 0, tensors: 0, failed_tensors: 0 }
    }

    fn header(&self) -> io::Result<()> {
        let width = self.width;
        let [case, engine, tensor, error, bar] =
            ["case", "engine", "tensor", "max error", "tolerance"];
        let mut to = io::stdout().lock();
        writeln!(to, "{case:width$}  {engine:9}  {tensor:18}  {error:>9}  {bar:>9}")
    }

    fn case(&mut self, engine: &str, case: &str, verdicts: Result<Vec<Verdict>>) -> io::Result<()> {
        let (width, mut to) = (self.width, io::stdout().lock());
        self.runs += 1;
        let verdicts = match verdicts {
            Ok(verdicts) => verdicts,
            Err(error) => {
                self.failed_runs += 1;
                return writeln!(to, "{case:width$}  {engine:9}  FAIL: {error:#}");
            }
        };
        for v in &verdicts {
            let Verdict { tensor, error, tolerance, .. } = v;
            write!(to, "{case:width$}  {engine:9}  {tensor:18}  {error:9.2e}  {tolerance:9.2e}  ")?;
            match (v.pass, &v.note) {
                (true, _) => writeln!(to, "pass")?,
                (false, Some(note)) => writeln!(to, "FAIL at {}: {note}", place(v))?,
                (false, None) => writeln!(
                    to,
                    "FAIL at {}: expected {:e}, got {:e}",
                    place(v),
                    v.expected,
                    v.got
                )?,
            }
        }
        let failed = verdicts.iter().filter(|v| !v.pass).count();
        self.tensors += verdicts.len();
        self.failed_tensors += failed;
        self.failed_runs += usize::from(failed > 0);
        Ok(())
    }

    fn refused(&self, engine: &str, case: &str, refused: &[String]) -> io::Result<()> {
        let (width, mut to) = (self.width, io::stdout().lock());
        for reason in refused {
            writeln!(to, "{case:width$}  {engine:9}  refused: {reason}")?;
        }
        Ok(())
    }

    fn summary(&self) -> Result<ExitCode> {
        let Self { runs, failed_runs, tensors, failed_tensors, .. } = self;
        let verdict = if *failed_runs == 0 { "pass" } else { "FAIL" };
        let all = format!("{failed_runs} of {runs} runs failed");
        writeln!(io::stdout(), "{verdict}: {all}, {failed_tensors} of {tensors} tensors")?;
        Ok(if *failed_runs == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn place(verdict: &Verdict) -> String {
    format!("element {}, channel {}", verdict.index, verdict.channel)
}
