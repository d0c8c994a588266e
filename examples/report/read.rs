//! Lines of measured times, as they stand in files.
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All files.
#[derive(Default)]
pub struct Record {
    /// Files, and within them what follows a line of versions, up to the next.
    pub runs: Vec<Run>,
    /// Peers and what they could not do: reasons, and how many cases each.
    pub refused: BTreeMap<(String, String), usize>,
}

/// What was measured together: only times of one run compare.
#[derive(Default)]
pub struct Run {
    pub versions: BTreeMap<String, String>,
    pub lines: Vec<Line>,
}

/// What is measured: rows are sorted by this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Key {
    pub threads: usize,
    pub dtype: String,
    pub layout: String,
    pub shape: Vec<usize>,
    pub op: String,
}

/// One peer's time. Lines have more fields than these; they do not matter here.
#[derive(Deserialize)]
pub struct Line {
    pub peer: String,
    #[serde(flatten)]
    pub key: Key,
    pub median_s: f64,
    /// Of the turns that were measured, those that no other process disturbed.
    pub clean_turns: Option<usize>,
}

/// # Errors
/// A file that cannot be read, or the first line that is not understood: file and line.
pub fn files(paths: &[PathBuf]) -> Result<Record> {
    let mut record = Record::default();
    for path in paths {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        record.runs.push(Run::default());
        for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            record.line(line).with_context(|| place(path, i))?;
        }
    }
    Ok(record)
}

fn place(path: &Path, i: usize) -> String {
    format!("{}, line {}", path.display(), i + 1)
}

impl Record {
    fn line(&mut self, line: &str) -> Result<()> {
        let value: Value = serde_json::from_str(line)?;
        if let Some(versions) = value.get("versions") {
            let versions = Deserialize::deserialize(versions).context("versions")?;
            self.runs.push(Run { versions, lines: Vec::new() });
            return Ok(());
        }
        let text = |name| value.get(name).and_then(Value::as_str).map(str::to_string);
        if let (Some(peer), Some(error)) = (text("peer"), text("error")) {
            *self.refused.entry((peer, error)).or_default() += 1;
            return Ok(());
        }
        let line: Line = serde_json::from_value(value)?;
        let median = line.median_s;
        ensure!(median.is_finite() && median > 0.0, "median_s: expected above 0, got {median}");
        if let Some(run) = self.runs.last_mut() {
            run.lines.push(line);
        }
        Ok(())
    }
}
