//! Runs engines over golden cases and compares them with what PyTorch computed in float64:
//!
//! ```text
//! cargo run --release -p conformance -- --engine all tests/golden
//! ```
//!
//! Exit status: 0 where everything that was compared is right, 1 where something is not, 3 where nothing was
//! compared, as by `--engine cudnn` without cuDNN.
//!
//! `tests/golden/README.md` describes the cases, `scripts/golden.py` makes more of them. A line
//! shows the element that is nearest to its tolerance, or furthest beyond it.
use anyhow::{Context, Result};
use clap::{Parser, builder::PossibleValuesParser};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use support::golden::{self, ENGINES, Golden, Subject, Verdict, kinds};

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
    PossibleValuesParser::new(ENGINES.iter().map(|subject| subject.name).chain(["all"]))
}

fn main() -> Result<ExitCode> {
    let Arguments { engine, paths, out } = Arguments::parse();
    let files: Result<Vec<_>> = paths.iter().map(|path| golden::files(path)).collect();
    let files = files?.concat();
    if let Some(out) = &out {
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    }
    let engines = ENGINES.iter().filter(|subject| engine == "all" || engine == subject.name);
    let engines: Vec<_> = engines.collect();

    #[cfg(all(feature = "cuda", target_os = "linux"))]
    if engines.iter().any(|subject| ["cuda", "cudnn", "gpu"].contains(&subject.name))
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
        match Golden::read(file) {
            Ok(Golden::Layer(document)) if !kinds::is_known(&document.kind) => {
                report.unknown(&document.name, &document.kind)?;
            }
            Ok(golden) => {
                for engine in &engines {
                    let (verdicts, refused) = match run(&golden, engine, out.as_deref()) {
                        Ok((verdicts, refused)) => (Ok(verdicts), refused),
                        Err(error) => (Err(error), Vec::new()),
                    };
                    report.case(engine.name, &stem(file), verdicts)?;
                    report.refused(engine.name, &stem(file), &refused)?;
                }
            }
            Err(error) => report.case("-", &stem(file), Err(error))?,
        }
    }
    report.summary()
}

/// What is right and wrong with one engine on one file, and what it does not serve.
fn run(
    golden: &Golden,
    engine: &Subject,
    out: Option<&Path>,
) -> Result<(Vec<Verdict<String>>, Vec<String>)> {
    let (name, verdicts, refused, bytes) = match golden {
        Golden::Step(case) => {
            let ran = (engine.step)(case)?;
            let verdicts = ran.judge(case)?.into_iter();
            let verdicts = verdicts.map(|verdict| {
                let tensor = verdict.tensor.to_owned();
                verdict.named(tensor)
            });
            let bytes = (!ran.tensors.is_empty()).then(|| golden::serialize(case, &ran.tensors));
            (&case.name, verdicts.collect(), ran.refused, bytes)
        }
        Golden::Layer(document) => {
            let outcome = (engine.layer)(document)?;
            let bytes =
                (!outcome.computed.is_empty()).then(|| document.serialize(&outcome.computed));
            (&document.name, outcome.verdicts, outcome.refused, bytes)
        }
    };
    if let (Some(out), Some(bytes)) = (out, bytes.transpose()?) {
        let path = out.join(format!("{}-{name}.safetensors", engine.name));
        std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    }
    Ok((verdicts, refused))
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The table, line by line, and its totals.
struct Report {
    /// Of the column of cases.
    width: usize,
    /// Why the last engine that refused something did.
    refusal: Option<String>,
    /// One per engine and case.
    runs: usize,
    failed_runs: usize,
    tensors: usize,
    failed_tensors: usize,
    /// Files of kinds that have no runner, by kind.
    unknown: BTreeMap<String, usize>,
}

impl Report {
    fn new(files: &[PathBuf]) -> Self {
        let width = files.iter().map(|file| stem(file).len()).max().unwrap_or(0);
        Self {
            width,
            refusal: None,
            runs: 0,
            failed_runs: 0,
            tensors: 0,
            failed_tensors: 0,
            unknown: BTreeMap::new(),
        }
    }

    fn header(&self) -> io::Result<()> {
        let width = self.width;
        let [case, engine, tensor, error, bar] =
            ["case", "engine", "tensor", "max error", "tolerance"];
        let mut to = io::stdout().lock();
        writeln!(to, "{case:width$}  {engine:9}  {tensor:18}  {error:>9}  {bar:>9}")
    }

    fn case(
        &mut self,
        engine: &str,
        case: &str,
        verdicts: Result<Vec<Verdict<String>>>,
    ) -> io::Result<()> {
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

    fn refused(&mut self, engine: &str, case: &str, refused: &[String]) -> io::Result<()> {
        self.refusal = refused.last().cloned().or(self.refusal.take());
        let (width, mut to) = (self.width, io::stdout().lock());
        for reason in refused {
            writeln!(to, "{case:width$}  {engine:9}  refused: {reason}")?;
        }
        Ok(())
    }

    fn unknown(&mut self, case: &str, kind: &str) -> io::Result<()> {
        let width = self.width;
        *self.unknown.entry(kind.to_owned()).or_default() += 1;
        writeln!(io::stdout(), "{case:width$}  {:9}  unsupported: kind {kind:?} is not known", "-")
    }

    fn summary(&self) -> Result<ExitCode> {
        let Self { runs, failed_runs, tensors, failed_tensors, .. } = self;
        let (code, verdict) = match (*failed_runs, *tensors) {
            (0, 0) => (ExitCode::from(3), "NOTHING COMPARED"),
            (0, _) => (ExitCode::SUCCESS, "pass"),
            _ => (ExitCode::FAILURE, "FAIL"),
        };
        let all = format!("{failed_runs} of {runs} runs failed");
        write!(io::stdout(), "{verdict}: {all}, {failed_tensors} of {tensors} tensors")?;
        match &self.refusal {
            Some(why) if *tensors == 0 => writeln!(io::stdout(), "; refused: {why}")?,
            _ => writeln!(io::stdout())?,
        }
        for (kind, files) in &self.unknown {
            writeln!(io::stdout(), "not run: {files} of kind {kind:?}, which is not known")?;
        }
        Ok(code)
    }
}

fn place(verdict: &Verdict<String>) -> String {
    format!("element {}, channel {}", verdict.index, verdict.channel)
}
