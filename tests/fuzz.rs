//! The fuzz targets on stable Rust: the same inputs in every run, of every target as many as take about 5 seconds.
//!
//! | variable | |
//! |---|---|
//! | `BATCHNORM_FUZZ_SECONDS` | runs every target for so long instead |
//! | `BATCHNORM_FUZZ_SEED` | other inputs than those of seed 1 |
//! | `BATCHNORM_FUZZ_INPUT` | one input instead, as hex: `cargo test --test fuzz shapes` runs it again |
//! | `BATCHNORM_FUZZ_TRACE` | shows every input before it runs, for one that ends the process |
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

#[allow(dead_code)] // main
#[path = "../examples/train/main.rs"]
mod example;
#[path = "support/mod.rs"]
mod support;
#[path = "fuzz/mod.rs"]
mod targets;

#[test]
fn states() {
    let files = (0..10).map(|file| vec![file]);
    fuzz(targets::states, files.collect(), 500_000);
}
#[test]
fn shapes() {
    fuzz(
        targets::shapes,
        vec![vec![0, 2, 1, 2, 1], vec![2, 3, 2, 3, 4, 1], vec![0; 40]],
        2_000_000,
    );
}
#[test]
fn arguments() {
    let right = (0..20).map(|k| [&[k % 4, k / 4][..], &[1; 20]].concat());
    fuzz(targets::arguments, right.collect(), 500_000);
}
#[test]
fn plans() {
    let dtypes = (0..4).map(|dtype| vec![dtype, 0, 3, 0, 3, 0, 4, 0]);
    fuzz(targets::plans, dtypes.collect(), 500);
}
#[test]
fn checkpoints() {
    fuzz(targets::checkpoints, vec![vec![5], vec![1, 1, 1], vec![0; 20]], 20_000);
}

/// The first failure as a message that says how to run it again.
fn fuzz(target: fn(&[u8]), seeds: Vec<Vec<u8>>, inputs: u64) {
    if let Some(hex) = variable("BATCHNORM_FUZZ_INPUT") {
        return target(&from_hex(&hex));
    }
    let seconds = variable("BATCHNORM_FUZZ_SECONDS").map(|text| text.parse().expect("seconds"));
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let is_over = |runs| until.map_or(runs >= inputs, |until| Instant::now() > until);
    let seed = variable("BATCHNORM_FUZZ_SEED").map_or(1, |text| text.parse().expect("a number"));
    match search(target, seeds, seed, is_over) {
        Ok(runs) => println!("{runs} inputs of seed {seed}"),
        Err(input) => panic!("fails again with BATCHNORM_FUZZ_INPUT={}", to_hex(&input)),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The seeds, then random inputs and changed ones until `is_over`: how many, or the one that fails.
fn search(
    target: fn(&[u8]),
    seeds: Vec<Vec<u8>>,
    seed: u64,
    is_over: impl Fn(u64) -> bool,
) -> Result<u64, Vec<u8>> {
    let trace = variable("BATCHNORM_FUZZ_TRACE").is_some();
    let (mut random, mut kept, mut runs) = (Random(seed), seeds.clone(), 0);
    let mut seeds = seeds.into_iter();
    loop {
        let input = match seeds.next() {
            Some(input) => input,
            None if is_over(runs) => return Ok(runs),
            None => random.input(&kept),
        };
        if trace {
            eprintln!("{}", to_hex(&input));
        }
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            return Err(input);
        }
        runs += 1;
        // Later ones are changes of changes.
        let place = random.below(256);
        match kept.get_mut(place) {
            Some(old) => *old = input,
            None => kept.push(input),
        }
    }
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn input(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
        if kept.is_empty() || self.below(3) == 0 {
            return (0..self.below(300)).map(|_| self.next() as u8).collect();
        }
        let mut input = kept[self.below(kept.len())].clone();
        for _ in 0..1 + self.below(5) {
            let (len, at) = (input.len(), self.below(input.len()));
            match self.below(6) {
                0 if len > 0 => input[at] ^= 1 << self.below(8),
                1 if len > 0 => input[at] = [0, 1, 255, 127, 128, 16][self.below(6)],
                2 if len > 0 => input[at] = self.next() as u8,
                3 if len > 1 => drop(input.remove(at)),
                4 if len > 400 => input.truncate(at),
                _ => {
                    let more = 1 + self.below(8);
                    input.splice(at..at, (0..more).map(|_| self.next() as u8));
                }
            }
        }
        input
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
fn from_hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).expect("ASCII"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

#[test]
fn a_failure_is_found_and_shown() {
    let target = |input: &[u8]| assert!(!input.starts_with(b"x"));
    let input = search(target, vec![], 1, |runs| runs == 1_000_000).unwrap_err();
    assert!(input.starts_with(b"x"));
    assert_eq!(from_hex(&to_hex(&input)), input);
    assert!(search(|_| (), vec![vec![1]; 9], 1, |_| true).unwrap() >= 9);
}
