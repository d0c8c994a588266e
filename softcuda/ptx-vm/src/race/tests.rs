use super::*;
use crate::instr::{Order, Scope};

/// Blocks of two warps that share a piece of memory.
struct World {
    warps: Vec<Knowledge>,
    shadow: Shadow,
    places: Places,
}

impl World {
    fn new() -> Self {
        let nothing: BlockTimes = vec![WarpTime::default(); 2].into();
        let warp = |i: u32| Knowledge::new(i / 2, i % 2, !0, &nothing);
        let mut shadow = Shadow::default();
        shadow.reset(4096);
        Self { warps: (0..6).map(warp).collect(), shadow, places: Places::default() }
    }

    fn access(&mut self, warp: usize, lane: u32, write: bool, at: usize, width: usize) -> bool {
        self.strong(warp, lane, write, at, width, Strength::Weak)
    }

    fn strong(
        &mut self,
        w: usize,
        lane: u32,
        write: bool,
        at: usize,
        n: usize,
        s: Strength,
    ) -> bool {
        let warp = &self.warps[w];
        let access = Access::new(warp, warp.view(lane), s);
        let result = if write {
            self.shadow.write(&access, at, n, lane, 1)
        } else {
            self.shadow.read(&access, at, n, lane, 1)
        };
        result.is_ok()
    }

    fn store(&mut self, warp: usize, lane: u32) -> bool {
        self.access(warp, lane, true, 0, 4)
    }

    fn load(&mut self, warp: usize, lane: u32) -> bool {
        self.access(warp, lane, false, 0, 4)
    }

    fn barrier(&mut self, block: usize) {
        let mut meeting = Meeting::default();
        let warps = &mut self.warps[block * 2..block * 2 + 2];
        warps.iter_mut().for_each(|warp| meeting.arrive(warp, !0));
        let met = meeting.end();
        warps.iter_mut().for_each(|warp| met.leave(warp, !0));
    }

    fn flag_write(&mut self, warp: usize, lane: u32, order: Order, update: bool) {
        self.places.write(64, order, &self.warps[warp], lane, update);
        self.warps[warp].advance();
    }

    fn flag_read(&mut self, warp: usize, lanes: u32, order: Order) {
        self.places.read(64, order, &mut self.warps[warp], lanes, false);
    }
}

const RELAXED: Order = Order::Relaxed(Scope::Device);
const ACQUIRE: Order = Order::Acquire(Scope::Device);
const RELEASE: Order = Order::Release(Scope::Device);

#[test]
fn threads_that_nothing_orders_race() {
    let mut world = World::new();
    assert!(world.store(0, 0));
    assert!(world.load(0, 0));
    assert!(!world.load(0, 1), "another lane");
    assert!(!world.load(1, 0), "another warp");
    assert!(!world.load(2, 0), "another block");
    assert!(!world.store(1, 0));
}

#[test]
fn reads_do_not_race_but_a_write_after_any_of_them_does() {
    for reader in 0..4 {
        let mut world = World::new();
        (0..4).for_each(|warp| assert!(world.load(warp, 3)));
        for other in (0..4).filter(|other| *other != reader) {
            // All but one have told the writer.
            world.flag_write(other, 3, RELEASE, false);
            world.flag_read(4, 1, ACQUIRE);
        }
        assert!(!world.store(4, 0), "warp {reader} reads");
        world.flag_write(reader, 3, RELEASE, false);
        world.flag_read(4, 1, ACQUIRE);
        assert!(world.store(4, 0));
    }
}

#[test]
fn a_barrier_orders_the_warps_of_its_block_only() {
    let mut world = World::new();
    assert!(world.store(0, 5));
    world.barrier(0);
    assert!(world.load(0, 6) && world.load(1, 5));
    assert!(!world.load(2, 5));
    assert!(!world.store(0, 5), "warp 1 has read since");
    world.barrier(0);
    assert!(world.store(0, 5));
    assert!(!world.load(1, 5), "written after the barrier");
}

#[test]
fn a_warp_barrier_orders_its_members_only() {
    let mut world = World::new();
    assert!(world.store(0, 0));
    world.warps[0].synchronise(0b11);
    assert!(world.load(0, 1));
    assert!(!world.load(0, 2));
    world.warps[0].synchronise(0b110);
    assert!(world.load(0, 2), "through lane 1");
    assert!(!world.load(0, 3));
}

#[test]
fn a_release_teaches_those_that_acquire_it() {
    let mut world = World::new();
    assert!(world.store(0, 0));
    world.flag_write(0, 0, RELEASE, false);
    assert!(!world.load(2, 0), "has not read the flag");
    world.flag_read(2, 1, RELAXED);
    assert!(!world.load(2, 0), "a relaxed read acquires nothing");
    world.flag_read(2, 1, ACQUIRE);
    assert!(world.load(2, 0));
    assert!(!world.load(2, 1), "another lane has acquired nothing");
    assert!(!world.load(3, 0));
    world.barrier(1);
    assert!(world.load(2, 1) && world.load(3, 7), "the barrier passes it on");
    assert!(!world.load(4, 0));
}

#[test]
fn a_release_covers_what_came_before_it_only() {
    let mut world = World::new();
    world.flag_write(0, 0, RELEASE, false);
    assert!(world.store(0, 0));
    world.flag_read(2, 1, ACQUIRE);
    assert!(!world.load(2, 0));
}

#[test]
fn a_release_covers_its_own_lane_and_what_that_lane_knows() {
    let mut world = World::new();
    assert!(world.store(0, 7));
    world.flag_write(0, 0, RELEASE, false);
    world.flag_read(2, 1, ACQUIRE);
    assert!(!world.load(2, 0), "lane 7 has not told lane 0");
    let mut world = World::new();
    assert!(world.store(1, 7));
    world.barrier(0);
    world.flag_write(0, 0, RELEASE, false);
    world.flag_read(2, 1, ACQUIRE);
    assert!(world.load(2, 0), "the barrier has");
}

#[test]
fn fences_make_relaxed_accesses_patterns() {
    for (before, after) in [(true, true), (true, false), (false, true)] {
        let mut world = World::new();
        assert!(world.store(0, 0));
        if before {
            world.warps[0].fence(1, Scope::Device);
        }
        world.flag_write(0, 0, RELAXED, true);
        world.flag_read(2, 1, RELAXED);
        if after {
            world.warps[2].fence(1, Scope::Device);
        }
        assert_eq!(world.load(2, 0), before && after, "{before} {after}");
    }
}

#[test]
fn a_fence_covers_what_came_before_it_only() {
    let mut world = World::new();
    world.warps[0].fence(!0, Scope::Device);
    assert!(world.store(0, 0));
    world.flag_write(0, 0, RELAXED, true);
    world.flag_read(2, 1, ACQUIRE);
    assert!(!world.load(2, 0));
}

#[test]
fn a_fence_of_another_lane_does_not_count() {
    let mut world = World::new();
    assert!(world.store(0, 0));
    world.warps[0].fence(0b10, Scope::Device);
    world.flag_write(0, 0, RELAXED, true);
    world.flag_read(2, 1, ACQUIRE);
    assert!(!world.load(2, 0));
}

#[test]
fn scopes_must_include_each_other() {
    use Scope::{Block, Device};
    for (release, acquire) in [(Device, Block), (Block, Device), (Block, Block)] {
        for same in [true, false] {
            let mut world = World::new();
            assert!(world.store(0, 0));
            world.flag_write(0, 0, Order::Release(release), false);
            let reader = if same { 1 } else { 2 };
            world.flag_read(reader, 1, Order::Acquire(acquire));
            assert_eq!(world.load(reader, 0), same, "{release:?} {acquire:?}");
            // The same with fences around relaxed accesses of the device.
            let mut world = World::new();
            assert!(world.store(0, 0));
            world.warps[0].fence(1, release);
            world.flag_write(0, 0, RELAXED, false);
            world.flag_read(reader, 1, RELAXED);
            world.warps[reader].fence(1, acquire);
            assert_eq!(world.load(reader, 0), same, "{release:?} {acquire:?}");
        }
    }
}

/// The ticket of CUDA's samples: fence, atomic; the last block goes on behind a barrier.
#[test]
fn a_barrier_after_an_update_acquires() {
    for (fence, update) in [(true, true), (true, false), (false, true)] {
        let mut world = World::new();
        assert!(world.store(0, 0));
        if fence {
            world.warps[0].fence(1, Scope::Device);
        }
        world.flag_write(0, 0, RELAXED, true);
        world.places.read(64, RELAXED, &mut world.warps[2], 1, update);
        assert!(!world.load(2, 0));
        world.barrier(1);
        assert_eq!(world.load(3, 0), fence && update);
    }
}

/// The read or write itself must reach the other block, too, not only the fence next to it.
#[test]
fn narrow_accesses_between_wide_fences_order_a_block_only() {
    const NARROW: Order = Order::Relaxed(Scope::Block);
    for (write, read) in [(NARROW, RELAXED), (RELAXED, NARROW), (NARROW, NARROW)] {
        for (reader, passes) in [(1, true), (2, false)] {
            let mut world = World::new();
            assert!(world.store(0, 0));
            world.warps[0].fence(1, Scope::Device);
            world.flag_write(0, 0, write, false);
            world.flag_read(reader, 1, read);
            world.warps[reader].fence(1, Scope::Device);
            assert_eq!(world.load(reader, 0), passes, "{write:?} {read:?}");
        }
    }
}

#[test]
fn updates_carry_on_what_stores_end() {
    for update in [true, false] {
        let mut world = World::new();
        assert!(world.store(0, 0));
        world.flag_write(0, 0, RELEASE, true);
        world.flag_write(2, 0, RELAXED, update);
        world.flag_read(4, 1, ACQUIRE);
        assert_eq!(world.load(4, 0), update);
    }
}

#[test]
fn knowledge_passes_through_a_third() {
    let mut world = World::new();
    assert!(world.store(0, 0));
    world.flag_write(0, 0, RELEASE, false);
    world.flag_read(2, 1, ACQUIRE);
    world.flag_write(2, 0, RELEASE, false);
    world.flag_read(4, 1, ACQUIRE);
    assert!(world.load(4, 0));
}

#[test]
fn strong_accesses_within_their_scopes_do_not_race() {
    let mut world = World::new();
    let mut go = |warp, strength| world.strong(warp, 0, true, 0, 4, strength);
    assert!(go(0, Strength::Device) && go(2, Strength::Device));
    assert!(go(3, Strength::Block), "of the same block");
    assert!(!go(0, Strength::Block), "of another block");
    assert!(!go(0, Strength::Weak));
    assert!(!go(0, Strength::Device), "the last write reaches block 1 only");
}

#[test]
fn neighbours_of_any_width_are_apart() {
    for (width, narrow) in [(16, 1), (8, 2), (4, 2), (2, 1)] {
        let mut world = World::new();
        assert!(world.access(0, 0, true, 0, width));
        assert!(world.access(1, 0, true, width, narrow));
        assert!(world.access(0, 1, true, width + narrow, narrow));
        assert!(world.access(2, 0, false, width + 2 * narrow, narrow));
        assert!(!world.access(1, 0, false, width - narrow, narrow), "the end of the wide one");
        assert!(!world.access(1, 0, false, width + narrow, narrow));
        assert!(world.access(1, 0, false, width, narrow));
        assert!(!world.access(0, 0, true, width & !(16 - 1) | (width % 16), width.min(narrow)));
    }
}

#[test]
fn runs_of_lanes_are_as_lanes_one_by_one() {
    let mut world = World::new();
    // 32 lanes of 16 bytes across two pages.
    let (start, warp) = (768, &world.warps[0]);
    let access = Access::new(warp, warp.view(0), Strength::Weak);
    world.shadow.write(&access, start, 16, 0, 32).unwrap();
    for lane in 0..32 {
        let at = start + 16 * lane;
        assert!(world.access(0, lane as u32, false, at + 12, 4), "lane {lane}");
        assert!(!world.access(0, (lane as u32 + 1) % 32, false, at, 4), "lane {lane}");
    }
    assert!(world.access(1, 0, true, start - 4, 4) && world.access(1, 0, true, start + 512, 4));
    world.barrier(0);
    let warp = &world.warps[1];
    let access = Access::new(warp, warp.view(0), Strength::Weak);
    world.shadow.read(&access, start, 16, 0, 32).unwrap();
    let warp = &world.warps[2];
    let access = Access::new(warp, warp.view(0), Strength::Weak);
    let conflict = world.shadow.read(&access, start, 16, 0, 32).unwrap_err();
    assert_eq!((conflict.other.warp(), conflict.other.lane(), conflict.wrote), (0, 0, true));
}

#[test]
fn reads_together_are_reads_of_each() {
    for writer in [0, 9] {
        let mut world = World::new();
        let warp = &world.warps[0];
        let access = Access::new(warp, warp.view(0), Strength::Weak);
        world.shadow.read_together(&access, 0, 4, 0b1_0000_0001).unwrap();
        assert!(!world.store(0, writer), "lane 8 at least has read");
        world.warps[0].synchronise(0b11_0000_0001);
        assert!(world.store(0, writer));
        assert!(!world.store(0, 20));
    }
}

#[test]
fn a_new_generation_forgets() {
    let mut world = World::new();
    assert!(world.store(0, 0) && !world.load(1, 0));
    world.shadow.reset(4096);
    assert!(world.load(1, 0));
}
