//! Real kernels, with one thing wrong at a time: each is reported, or named here with the reason why it changes nothing.

mod subjects;

use subjects::{Arg, Subject, subjects};

/// Seeds of the untouched kernels.
const SEEDS: u64 = 24;
/// Seeds of each mutant.
const TRIES: u64 = 4;
const TARGETS: [u32; 3] = [75, 80, 90];

/// What nothing reports when it is missing, in kernels whose name begins so, and why.
const NEEDLESS: [(&str, &str, &str); 1] = [(
    "split_stats",
    "membar.gl;",
    "the second fence, behind the ticket: the barrier of the block that follows counts as one, since CUDA's own sample \
     of the ticket has none",
)];

/// Judges mutants of one kernel, and keeps those that nobody notices.
struct Judge<'a> {
    subject: &'a Subject,
    text: Vec<String>,
    right: Vec<u8>,
    mutants: usize,
    unnoticed: Vec<String>,
}

impl<'a> Judge<'a> {
    fn new(subject: &'a Subject, target: u32) -> Self {
        let text = subject.text(target);
        let right = subject.run(&text, 0, None).unwrap_or_else(|report| panic!("{report}"));
        Self { subject, text, right, mutants: 0, unnoticed: Vec::new() }
    }

    /// Whether a line is executed.
    fn is_executed(&self, at: usize) -> bool {
        let mut mutant = self.text.clone();
        mutant[at] = "trap;".to_owned();
        self.subject.run(&mutant, 0, None).is_err()
    }

    /// Runs the kernel with another line in place of one, unless it is never executed. `results_count`: whether a wrong
    /// result is notice enough; otherwise every seed must end in a report.
    fn replace(&mut self, at: usize, line: String, results_count: bool) {
        let mut mutant = self.text.clone();
        mutant[at] = line;
        self.mutants += 1;
        let tries = if results_count { 1 } else { TRIES };
        let noticed = |seed| match self.subject.run(&mutant, seed, None) {
            Err(_) => true,
            Ok(result) => results_count && result != self.right,
        };
        if !(0..tries).all(noticed) && self.is_executed(at) {
            let (kernel, was) = (self.subject.kernel, self.text[at].trim());
            self.unnoticed.push(format!("{kernel}, line {}: `{was}`", at + 1));
        }
    }

    fn lines(&self) -> Vec<usize> {
        self.subject.lines(&self.text).collect()
    }
}

fn synchronises(line: &str) -> bool {
    let starts = ["bar.sync", "barrier.sync", "bar.warp.sync", "membar.", "fence."];
    starts.iter().any(|start| line.trim().starts_with(start))
}

#[test]
fn untouched_kernels_are_silent_and_give_the_same_whatever_the_order() {
    for subject in subjects() {
        for target in TARGETS {
            let text = subject.text(target);
            let run =
                |seed| subject.run(&text, seed, None).unwrap_or_else(|report| panic!("{report}"));
            let first = run(0);
            for seed in 1..SEEDS {
                assert!(first == run(seed), "{}: seed {seed} makes a difference", subject.kernel);
            }
        }
    }
}

#[test]
fn a_missing_barrier_or_fence_is_reported() {
    let mut mutants = 0;
    for subject in subjects() {
        for target in TARGETS {
            let mut judge = Judge::new(&subject, target);
            for at in judge.lines() {
                if synchronises(&judge.text[at]) {
                    judge.replace(at, String::new(), false);
                }
            }
            let needless =
                NEEDLESS.iter().filter(|(kernel, ..)| subject.kernel.starts_with(kernel));
            let needless: Vec<_> = needless.collect();
            assert_eq!(judge.unnoticed.len(), needless.len(), "{:?}", judge.unnoticed);
            for (line, (_, source, reason)) in judge.unnoticed.iter().zip(needless) {
                assert!(
                    line.contains(source),
                    "{line} is not reported, and not because of {reason}"
                );
            }
            mutants += judge.mutants;
        }
    }
    assert!(mutants > 90, "{mutants}");
}

#[test]
fn a_release_or_acquire_made_relaxed_is_reported() {
    let mut mutants = 0;
    for subject in subjects() {
        let mut judge = Judge::new(&subject, 80);
        for at in judge.lines() {
            for order in [".release", ".acquire"] {
                let line = &judge.text[at];
                if line.contains(order) {
                    judge.replace(at, line.replace(order, ".relaxed"), false);
                }
            }
            // Nor may it be of the block only.
            let line = &judge.text[at];
            if line.contains(".release.gpu") || line.contains(".acquire.gpu") {
                judge.replace(at, line.replace(".gpu", ".cta"), false);
            }
            let line = &judge.text[at];
            if line.contains("membar.gl") {
                judge.replace(at, line.replace(".gl", ".cta"), false);
            }
        }
        judge.unnoticed.retain(|line| {
            !NEEDLESS
                .iter()
                .any(|(kernel, source, _)| line.starts_with(kernel) && line.contains(source))
        });
        assert!(judge.unnoticed.is_empty(), "{:#?}", judge.unnoticed);
        mutants += judge.mutants;
    }
    assert!(mutants >= 20, "{mutants}");
}

#[test]
fn a_buffer_that_is_too_small_is_reported() {
    for subject in subjects() {
        let text = subject.text(80);
        for (i, arg) in subject.args.iter().enumerate() {
            if matches!(arg, Arg::Number(_)) {
                continue;
            }
            for seed in 0..TRIES {
                let report = subject.run(&text, seed, Some(i)).expect_err("4 bytes are missing");
                assert!(report.starts_with("out of bounds in kernel"), "{report}");
            }
        }
    }
}

/// The line with the address of its access moved on by the size of an element.
fn shifted(line: &str) -> Option<String> {
    let op = line.trim().trim_start_matches(|c| c != ' ').trim_start();
    let op = if line.trim().starts_with('@') { op } else { line.trim() };
    let access = [
        "ld.global",
        "ld.shared",
        "st.global",
        "st.shared",
        "ld.acquire",
        "ld.relaxed",
        "red.",
        "atom.",
    ];
    if !access.iter().any(|start| op.starts_with(start)) {
        return None;
    }
    let (open, close) = (line.find('[')?, line.find(']')?);
    let (base, offset) = match line[open + 1..close].split_once('+') {
        Some((base, offset)) => (base, offset.parse::<i64>().ok()?),
        None => (&line[open + 1..close], 0),
    };
    let name = op.split_whitespace().next()?;
    let vector = if name.contains(".v4") {
        4
    } else if name.contains(".v2") {
        2
    } else {
        1
    };
    let bits: i64 = name.rsplit('.').next()?[1..].parse().ok()?;
    let offset = offset + vector * bits / 8;
    Some(format!("{}[{base}+{offset}]{}", &line[..open], &line[close + 1..]))
}

#[test]
fn a_shifted_offset_is_noticed() {
    let mut mutants = 0;
    for subject in subjects() {
        let mut judge = Judge::new(&subject, 80);
        for at in judge.lines() {
            if let Some(line) = shifted(&judge.text[at]) {
                judge.replace(at, line, true);
            }
        }
        assert!(judge.unnoticed.is_empty(), "{:#?}", judge.unnoticed);
        mutants += judge.mutants;
    }
    assert!(mutants > 350, "{mutants}");
}
