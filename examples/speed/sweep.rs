//! All cases on one engine, in turns with their floors.
use crate::table::floor::{Floor, Kind};
use crate::table::job::{self, Ready, Timed};
use crate::table::turn::{Summary, Turns, repetitions};
use crate::table::{Case, turn};
use anyhow::Result;
use batchnorm::Error;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

/// Seconds of timed work in a turn.
const TURN: f64 = 0.06;

pub struct Sweep {
    pub rounds: usize,
    pub json: bool,
    /// What stands behind the engine's name.
    pub variant: String,
}

/// What is known about a case in the end.
struct Measured {
    what: String,
    sums: Vec<f64>,
    floor: Box<dyn Floor>,
    engine_times: Summary,
    floor_times: Summary,
}

impl Sweep {
    pub fn run<G: Timed>(&self, engine: &G, cases: &[Case]) -> Result<ExitCode> {
        let peer = format!("batchnorm-{}{}", engine.name(), self.variant);
        let threads = engine.threads();
        let version = job::version(engine);
        if self.json {
            line(&json!({"versions": {&peer: version}, "threads": threads}))?;
        } else {
            writeln!(io::stdout(), "{version}, {threads} threads")?;
            writeln!(
                io::stdout(),
                "{:18} {:16} {:6} {:5} {:>10} {:>8} {:>8}",
                "op",
                "shape",
                "layout",
                "dtype",
                "median ms",
                "GB/s",
                "x floor"
            )?;
        }
        let (mut failed, mut multiples) = (0, BTreeMap::<_, Vec<f64>>::new());
        for case in cases {
            match self.measure(engine, case) {
                Ok(m) => {
                    let multiple = m.engine_times.median() / m.floor_times.median();
                    let group = (case.op.name(), case.layout_name(), case.dtype.to_string());
                    multiples.entry(group).or_default().push(multiple);
                    if self.json { records(case, &peer, threads, &m)? } else { row(case, &m)? }
                }
                Err(error) => {
                    // What an engine refuses is not wrong.
                    let refused = matches!(error.downcast_ref(), Some(Error::Unsupported { .. }));
                    failed += usize::from(!refused);
                    let text = format!("{error:#}");
                    if self.json {
                        let mut record = about(case, &peer, threads);
                        record["error"] = text.into();
                        line(&record)?;
                    } else {
                        let (place, how) = (place(case), if refused { "refused" } else { "FAIL" });
                        writeln!(io::stdout(), "{place} {how}: {text}")?;
                    }
                }
            }
        }
        if !self.json {
            writeln!(io::stdout(), "\nGeometric mean of the multiples of the floor:")?;
            for ((op, layout, dtype), multiples) in multiples {
                let logs: f64 = multiples.iter().map(|m| m.ln()).sum();
                let (mean, n) = ((logs / multiples.len() as f64).exp(), multiples.len());
                writeln!(io::stdout(), "{op:18} {layout:6} {dtype:5} {mean:8.2}  of {n}")?;
            }
        }
        if failed > 0 {
            eprintln!("{failed} of {} cases failed", cases.len());
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn measure<G: Timed>(&self, engine: &G, case: &Case) -> Result<Measured> {
        let Ready { mut job, what, sums } = job::prepare(engine, case)?;
        let mut floor = engine.floor(case)?;
        let n = repetitions(TURN, job.time()?);
        let floor_n = repetitions(TURN, floor.time()?);
        let (mut engine_turns, mut floor_turns) = (Turns::default(), turn::Turns::default());
        for _ in 0..self.rounds {
            floor_turns.add(floor_n, || floor.time())?;
            engine_turns.add(n, || job.time())?;
        }
        let (engine_times, floor_times) = (engine_turns.summary(), floor_turns.summary());
        Ok(Measured { what, sums, floor, engine_times, floor_times })
    }
}

fn place(case: &Case) -> String {
    let (op, dims, layout) = (case.op.name(), case.dims_name(), case.layout_name());
    format!("{op:18} {dims:16} {layout:6} {:5}", case.dtype.to_string())
}

fn row(case: &Case, m: &Measured) -> io::Result<()> {
    let (place, median) = (place(case), m.engine_times.median());
    let rate = case.least_traffic() as f64 / median * 1e-9;
    let multiple = median / m.floor_times.median();
    let disturbed = m.engine_times.is_disturbed() || m.floor_times.is_disturbed();
    let note = if disturbed { "  disturbed by other processes" } else { "" };
    let ms = median * 1e3;
    writeln!(io::stdout(), "{place} {ms:10.4} {rate:8.2} {multiple:8.2}{note}")
}

/// The lines of a case: the engine's and its floor's.
fn records(case: &Case, peer: &str, threads: usize, m: &Measured) -> io::Result<()> {
    let mut engine = merged(about(case, peer, threads), m.engine_times.fields());
    (engine["impl"], engine["check"]) = (m.what.as_str().into(), m.sums.clone().into());
    let floor = about(case, Kind::of(case.op).name(), threads);
    let mut floor = merged(floor, m.floor_times.fields());
    floor["impl"] = m.floor.what().into();
    line(&floor)?;
    line(&engine)
}

fn about(case: &Case, peer: &str, threads: usize) -> Value {
    json!({
        "peer": peer,
        "op": case.op.name(),
        "shape": case.dims,
        "layout": case.layout_name(),
        "dtype": case.dtype.to_string(),
        "threads": threads,
    })
}

fn merged(mut record: Value, mut fields: Value) -> Value {
    if let (Some(record), Some(fields)) = (record.as_object_mut(), fields.as_object_mut()) {
        record.append(fields);
    }
    record
}

fn line(record: &Value) -> io::Result<()> {
    writeln!(io::stdout(), "{record}")
}
