//! Spans say what cells say: the same accesses, noted in both ways.

use super::*;

/// Numbers below `end`, one after the other (a linear congruential generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// An access of lanes of a warp.
#[derive(Clone, Copy, Debug)]
struct Made {
    warp: usize,
    offset: usize,
    width: usize,
    lane: u32,
    count: u32,
    together: bool,
    writes: bool,
    strength: Strength,
}

impl Made {
    /// Few enough shapes and places that some are the same, some lie side by side and some overlap, over two pages.
    fn any(numbers: &mut Numbers) -> Self {
        let width = numbers.of(&[1, 2, 4, 4, 4, 8, 16, 32]);
        let (lane, count) =
            numbers.of(&[(0, 32), (0, 32), (0, 32), (0, 16), (16, 16), (3, 1), (7, 9)]);
        let offset = 32 * numbers.below(24) as usize + numbers.of(&[0, 0, 512, 960]);
        Self {
            warp: numbers.below(6) as usize,
            offset,
            width,
            lane,
            count,
            together: numbers.below(8) == 0,
            writes: numbers.below(3) == 0,
            strength: numbers.of(&[
                Strength::Weak,
                Strength::Weak,
                Strength::Block,
                Strength::Device,
            ]),
        }
    }

    /// What noting it gives; none if its lanes do not know the same.
    fn note(&self, shadow: &mut Shadow, warp: &Knowledge) -> Option<Result<(), Conflict>> {
        let lanes = (!0 >> (32 - self.count)) << self.lane;
        let access = Access::new(warp, warp.shared_view(lanes)?, self.strength);
        Some(if self.writes {
            shadow.write(&access, self.offset, self.width, self.lane, self.count)
        } else if self.together && self.count > 1 {
            shadow.read_together(&access, self.offset, self.width, lanes)
        } else {
            shadow.read(&access, self.offset, self.width, self.lane, self.count)
        })
    }
}

#[test]
fn spans_and_cells_find_the_same_races() {
    let (mut noted, mut races, mut in_spans) = (0, 0, 0);
    for seed in 0..4000 {
        let mut numbers = Numbers(seed);
        let nothing: BlockTimes = vec![WarpTime::default(); 2].into();
        let warp = |i: u32| Knowledge::new(i / 2, i % 2, !0, &nothing);
        let mut warps: Vec<_> = (0..6).map(warp).collect();
        let (mut spans, mut cells) = (Shadow::default(), Shadow::default());
        spans.reset(4096);
        cells.reset(4096);
        // Most accesses of unordered warps race, and a race is the end: few warps take part, and often meet.
        let first = numbers.of(&[0, 0, 2]);
        let among = numbers.of(&[1, 2, 2, 4]);
        for step in 0..60 {
            match numbers.below(6) {
                0 => {
                    let block = numbers.below(3) as usize * 2;
                    let mut meeting = Meeting::default();
                    warps[block..block + 2].iter_mut().for_each(|warp| meeting.arrive(warp, !0));
                    let met = meeting.end();
                    warps[block..block + 2].iter_mut().for_each(|warp| met.leave(warp, !0));
                }
                1 => {
                    let lanes = numbers.of(&[!0, 0xffff, 0xff]);
                    warps[first].synchronise(lanes);
                }
                _ => {
                    let mut made = Made::any(&mut numbers);
                    made.warp = first + made.warp % among;
                    let warp = &warps[made.warp];
                    cells.spill();
                    let by_cells = made.note(&mut cells, warp);
                    assert_eq!(made.note(&mut spans, warp), by_cells, "{seed}, {step}: {made:?}");
                    noted += u64::from(by_cells.is_some());
                    in_spans += u64::from(spans.has_spans());
                    if by_cells.is_some_and(|result| result.is_err()) {
                        races += 1;
                        break;
                    }
                }
            }
        }
    }
    assert!(noted > 20_000 && races > 1_000 && in_spans > 10_000, "{noted}, {races}, {in_spans}");
}
