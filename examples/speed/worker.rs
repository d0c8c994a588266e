//! The engine as one peer among others: a program that compares several gives each its turns.
//!
//! One JSON object per line on the standard input, one answer per line on the standard output,
//! nothing else there:
//!
//! ```text
//! {"cmd":"version"}              {"version":"batchnorm 0.1.0 cpu avx512"}
//! {"cmd":"prep","op":"bwd_relu","shape":[32,64,56,56],"layout":"nhwc","dtype":"f32"}
//!                                {"ok":true,"impl":"what runs","check":[..]}
//! {"cmd":"time","n":N,"warm":W}  {"t":[N times in seconds],"wall":s,"run":s,"wait":s}
//! {"cmd":"drop"}                 {"ok":true}
//! anything else                  {"ok":false,"why":".."}
//! ```
//!
//! The shape is in N, C, ... order whatever the layout. `check` holds the sums of absolute values
//! that every peer must agree in; W runs before the N are not timed; `run` and `wait` are what the
//! process's threads ran and waited for a processor meanwhile. Dropping frees the memory of the
//! case. The end of the input ends the worker; no request does.
use crate::table::Case;
use crate::table::job::{self, Job, Ready, Timed};
use crate::table::turn::Turn;
use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::any::Any;
use std::io::{self, BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// The most runs of one request.
const MOST: usize = 1_000_000;

#[derive(Deserialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
enum Request {
    Version,
    Prep {
        op: String,
        shape: Vec<usize>,
        layout: String,
        dtype: String,
    },
    Time {
        n: usize,
        #[serde(default = "one")]
        warm: usize,
    },
    Drop,
}

fn one() -> usize {
    1
}

pub fn serve<G: Timed>(engine: &G) -> Result<ExitCode> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let (mut line, mut job) = (Vec::new(), None);
    while input.read_until(b'\n', &mut line).context("standard input")? > 0 {
        // A fault of an engine must not end the comparison that this worker takes part in.
        let answered = catch_unwind(AssertUnwindSafe(|| answer(engine, &mut job, &line)));
        let answered = answered.unwrap_or_else(|panic| {
            job = None;
            Err(anyhow!("panicked: {}", message(&*panic)))
        });
        let answer = answered.unwrap_or_else(|e| json!({"ok": false, "why": format!("{e:#}")}));
        writeln!(output, "{answer}")?;
        output.flush()?;
        line.clear();
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(engine: &impl Timed, job: &mut Option<Box<dyn Job>>, line: &[u8]) -> Result<Value> {
    match serde_json::from_slice(line).context("request")? {
        Request::Version => Ok(json!({"version": job::version(engine)})),
        Request::Prep { op, shape, layout, dtype } => {
            *job = None; // before memory for the next is asked for
            let case = Case::parse(&op, &shape, &layout, &dtype)?;
            let Ready { job: ready, what, sums } = job::prepare(engine, &case)?;
            *job = Some(ready);
            Ok(json!({"ok": true, "impl": what, "check": sums}))
        }
        Request::Time { n, warm } => {
            let job = job.as_mut().context("time: expected a case that prep made, got none")?;
            ensure!((1..=MOST).contains(&n), "n: expected 1 to {MOST}, got {n}");
            ensure!(warm <= MOST, "warm: expected 0 to {MOST}, got {warm}");
            let Turn { times, wall, run, wait } = Turn::take(n, warm, || job.time())?;
            Ok(json!({"t": times, "wall": wall, "run": run, "wait": wait}))
        }
        Request::Drop => {
            *job = None;
            Ok(json!({"ok": true}))
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("?")
}
