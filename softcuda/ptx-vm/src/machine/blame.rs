//! Says who did what where.

use std::{collections::BTreeMap, fmt::Write};

use super::{Block, Machine, Trouble, lanes, location::location};
use crate::fault::{Fault, FaultKind};

/// Places named in a message about threads that wait.
const NAMED: usize = 8;

impl Machine<'_> {
    /// The fault that trouble of a warp at an instruction is.
    pub(super) fn fault(&self, block: &Block, warp: usize, at: u32, trouble: Trouble) -> Fault {
        let Trouble { kind, lane, other, mut detail } = trouble;
        let launch = self.launch;
        if let Some(place) = location(&launch.kernel.source, self.line(at)) {
            write!(detail, " ({place})").expect("a string");
        }
        let warps = launch.threads().div_ceil(32);
        let other = other.map(|stamp| {
            let (block, warp) = (stamp.warp() / warps, stamp.warp() % warps);
            (launch.block_index(block), launch.thread(32 * warp + stamp.lane()))
        });
        Fault {
            kind,
            kernel: launch.kernel.name.as_str().into(),
            line: self.line(at),
            source: self.source(at).into(),
            block: launch.block_index(block.number),
            thread: launch.thread(32 * warp as u32 + lane),
            other,
            detail: detail.into(),
            seed: launch.seed,
        }
    }

    fn line(&self, at: u32) -> u32 {
        self.code[at as usize].line
    }

    fn source(&self, at: u32) -> &str {
        let line = self.line(at).saturating_sub(1) as usize;
        self.launch.kernel.source.get(line).map_or("", |line| line.trim())
    }

    /// No thread of a block can run, and not all have exited.
    pub(super) fn stuck(&self, block: &Block) -> Fault {
        let exited: u32 =
            block.warps.iter().map(|warp| (warp.existing & !warp.live).count_ones()).sum();
        let parked = block.warps.iter().any(|warp| warp.parked != 0);
        let places = places(std::iter::once(block));
        // All at barriers of the block, nobody gone: they wait for each other.
        let all_wait = exited == 0 && !parked;
        let kind = if all_wait && places.len() > 1 {
            FaultKind::Deadlock
        } else {
            FaultKind::DivergentBarrier
        };
        let (&at, &(_, _, warp, lane)) = places.first_key_value().expect("not all have exited");
        let mut detail = self.standing(&places);
        if exited != 0 {
            write!(detail, "; {exited} threads of the block have exited").expect("a string");
        }
        self.fault(block, warp, at, Trouble::new(kind, lane, detail))
    }

    /// The launch does not end.
    pub(super) fn hang(&self, resident: &[Block], idle: bool) -> Fault {
        let places = places(resident);
        let why = if idle {
            "threads poll, but no other thread runs that could answer".to_owned()
        } else {
            format!("the budget of {} thread instructions is used up", self.launch.budget)
        };
        let detail = format!("{why}: {}", self.standing(&places));
        // Blame who runs, not who waits.
        let running = resident.iter().flat_map(|block| {
            block.warps.iter().enumerate().map(move |(index, warp)| (block, index, warp))
        });
        let running = running.filter(|(.., warp)| warp.group != 0);
        match running.max_by_key(|(.., warp)| places[&warp.at].0) {
            Some((block, index, warp)) => {
                let trouble = Trouble::new(FaultKind::Hang, warp.group.trailing_zeros(), detail);
                self.fault(block, index, warp.at, trouble)
            }
            None => Fault {
                kind: FaultKind::Hang,
                kernel: self.launch.kernel.name.as_str().into(),
                line: 0,
                source: "".into(),
                block: [0; 3],
                thread: [0; 3],
                other: None,
                detail: detail.into(),
                seed: self.launch.seed,
            },
        }
    }

    /// Where threads stand, in words.
    fn standing(&self, places: &BTreeMap<u32, (u64, u32, usize, u32)>) -> String {
        let mut words = String::new();
        for (at, (count, number, warp, lane)) in places.iter().take(NAMED) {
            let block = self.launch.block_index(*number);
            let thread = self.launch.thread(32 * *warp as u32 + lane);
            let (line, source) = (self.line(*at), self.source(*at));
            let comma = if words.is_empty() { "" } else { ", " };
            write!(
                words,
                "{comma}{count} threads at line {line} `{source}` (one is block {block:?} thread {thread:?})"
            )
            .expect("a string");
        }
        if places.len() > NAMED {
            write!(words, " and {} more places", places.len() - NAMED).expect("a string");
        }
        words
    }
}

/// The instructions that live threads stand at: how many of them, and one (block, warp, lane).
fn places<'b>(
    blocks: impl IntoIterator<Item = &'b Block>,
) -> BTreeMap<u32, (u64, u32, usize, u32)> {
    let mut places = BTreeMap::new();
    for block in blocks {
        for (index, warp) in block.warps.iter().enumerate() {
            for lane in lanes(warp.live) {
                let one = (0, block.number, index, lane);
                places.entry(warp.pc(lane)).or_insert(one).0 += 1;
            }
        }
    }
    places
}
