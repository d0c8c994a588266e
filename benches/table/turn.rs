//! Measuring in turns: one warm-up, some timed runs, and whether something else took the processor.
use anyhow::Result;
use serde_json::{Value, json};
use std::time::Instant;

/// A turn in which threads waited longer than this part of it for a processor is disturbed.
const DISTURBED: f64 = 0.04;
/// How often a disturbed turn is tried again.
const RETRIES: usize = 4;

/// Times of one turn, in seconds.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// One per run.
    pub times: Vec<f64>,
    /// All runs together.
    pub wall: f64,
    /// What all threads of this process ran meanwhile.
    pub run: f64,
    /// What they waited for a processor.
    pub wait: f64,
}

impl Turn {
    /// `warm` untimed runs, then `n` timed ones.
    pub fn take(n: usize, warm: usize, mut time: impl FnMut() -> Result<f64>) -> Result<Self> {
        for _ in 0..warm {
            time()?;
        }
        let (before, start) = (scheduled(), Instant::now());
        let times = (0..n).map(|_| time()).collect::<Result<Vec<f64>>>()?;
        let (wall, after) = (start.elapsed().as_secs_f64(), scheduled());
        let seconds = |before: u64, after: u64| after.saturating_sub(before) as f64 * 1e-9;
        Ok(Self { times, wall, run: seconds(before.0, after.0), wait: seconds(before.1, after.1) })
    }
    fn disturbed(&self) -> bool {
        self.wait > DISTURBED * self.wall
    }
}

/// Nanoseconds that the threads of this process ran and waited for a processor; zeros where the
/// system does not tell as Linux does.
fn scheduled() -> (u64, u64) {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return (0, 0) };
    let one = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let mut fields = text.split_whitespace().map(str::parse::<u64>);
        Some((fields.next()?.ok()?, fields.next()?.ok()?))
    };
    let times = threads.flatten().filter_map(one);
    times.fold((0, 0), |sum, time| (sum.0 + time.0, sum.1 + time.1))
}

/// The turns of one peer.
#[derive(Debug, Clone, Default)]
pub struct Turns(pub Vec<Turn>);

impl Turns {
    /// One more; a disturbed one is tried again, and all of them are kept.
    pub fn add(&mut self, n: usize, mut time: impl FnMut() -> Result<f64>) -> Result<()> {
        for _ in 0..=RETRIES {
            let turn = Turn::take(n, 1, &mut time)?;
            let disturbed = turn.disturbed();
            self.0.push(turn);
            if !disturbed {
                break;
            }
        }
        Ok(())
    }
    /// What they say: the undisturbed ones, or the two least disturbed if there are none.
    pub fn summary(&self) -> Summary {
        let mut by_wait: Vec<&Turn> = self.0.iter().collect();
        by_wait.sort_by(|a, b| (a.wait / a.wall).total_cmp(&(b.wait / b.wall)));
        let clean = by_wait.iter().filter(|turn| !turn.disturbed()).count();
        let used = if clean > 0 { clean } else { 2 };
        let mut times: Vec<f64> =
            by_wait.iter().take(used).flat_map(|turn| turn.times.clone()).collect();
        times.sort_by(f64::total_cmp);
        Summary { times, turns: self.0.len(), clean }
    }
}

/// Sorted times, in seconds.
#[derive(Debug, Clone)]
pub struct Summary {
    times: Vec<f64>,
    turns: usize,
    clean: usize,
}

impl Summary {
    pub fn quantile(&self, part: f64) -> f64 {
        let last = self.times.len().saturating_sub(1);
        let at = ((part * self.times.len() as f64) as usize).min(last);
        self.times.get(at).copied().unwrap_or(f64::NAN)
    }
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }
    /// No turn was undisturbed.
    pub fn is_disturbed(&self) -> bool {
        self.clean == 0
    }
    /// The fields that every line of a record has.
    pub fn fields(&self) -> Value {
        json!({
            "n": self.times.len(),
            "median_s": self.median(),
            "min_s": self.quantile(0.0),
            "q25_s": self.quantile(0.25),
            "q75_s": self.quantile(0.75),
            "turns": self.turns,
            "clean_turns": self.clean,
        })
    }
}

/// How many runs fill about `seconds`, if one takes `one`.
pub fn repetitions(seconds: f64, one: f64) -> usize {
    ((seconds / one.max(1e-6)) as usize).clamp(1, 200)
}
