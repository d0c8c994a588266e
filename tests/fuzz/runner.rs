//! Runs a target on many inputs, the same in every run: see `tests/fuzz.rs` for what variables change.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The first failure as a message that says how to run it again.
pub fn fuzz(target: fn(&[u8]), seeds: Vec<Vec<u8>>, inputs: u64) {
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
