//! The lanes of a warp: parting and meeting, exchanges, votes.

mod common;

use common::case;
use ptx_vm::fault::FaultKind::{DivergentBarrier, Trap, Undefined};

#[test]
fn branches_within_branches_come_together() {
    let body = "
        and.b32 %r20, %r2, 1;
        and.b32 %r21, %r2, 2;
        setp.ne.u32 %p1, %r20, 0;
        setp.ne.u32 %p2, %r21, 0;
        mov.u32 %r22, 100;
        @%p1 bra ODD;
        @%p2 bra EVEN2;
        add.u32 %r22, %r22, 1;
        bra EVENEND;
    EVEN2:
        add.u32 %r22, %r22, 2;
    EVENEND:
        activemask.b32 %r23;
        bra END;
    ODD:
        @!%p2 bra ODD0;
        add.u32 %r22, %r22, 4;
        bra ODDEND;
    ODD0:
        add.u32 %r22, %r22, 3;
    ODDEND:
        activemask.b32 %r23;
    END:
        activemask.b32 %r24;
        st.global.u32 [%d3], %r22;
        st.global.u32 [%d3+256], %r23;
        st.global.u32 [%d3+512], %r24;";
    let done = case(1, 64, body).silent();
    for i in 0..64 {
        assert_eq!(done.a[i], [101, 103, 102, 104][i % 4]);
        assert_eq!(done.a[64 + i], [0x5555_5555, 0xaaaa_aaaa][i % 2]);
        assert_eq!(done.a[128 + i], u32::MAX);
    }
}

#[test]
fn loops_of_different_length_and_early_exits() {
    // Lane l sums 1..=l, unless a break at 20 comes first; lanes that are multiples of 5 exit without a store.
    let body = "
        mov.u32 %r20, 0;
        mov.u32 %r21, 0;
        rem.u32 %r22, %r2, 5;
        setp.eq.u32 %p3, %r22, 0;
    LOOP:
        setp.ge.u32 %p1, %r20, %r2;
        @%p1 bra DONE;
        add.u32 %r20, %r20, 1;
        add.u32 %r21, %r21, %r20;
        setp.eq.u32 %p2, %r20, 20;
        @%p2 bra DONE;
        bra LOOP;
    DONE:
        @%p3 exit;
        activemask.b32 %r24;
        st.global.u32 [%d3], %r21;
        st.global.u32 [%d3+1024], %r24;";
    let done = case(2, 64, body).silent();
    for i in 0..128u32 {
        let (thread, last) = (i % 64, (i % 64).min(20));
        if thread % 5 == 0 {
            assert_eq!(done.a[i as usize], i, "untouched");
        } else {
            assert_eq!(done.a[i as usize], last * (last + 1) / 2);
            let base = thread & !31;
            let active =
                (0..32).filter(|lane| (base + lane) % 5 != 0).fold(0, |m, lane| m | 1u32 << lane);
            assert_eq!(done.a[256 + i as usize], active);
        }
    }
}

/// What `shfl` gives every lane of one warp: value and predicate.
fn shuffle(mode: &str, by: &str, clamp: u32, members: &str) -> Vec<(u32, u32)> {
    let body = format!(
        "add.u32 %r20, %r5, 500;
        shfl.sync.{mode}.b32 %r21|%p1, %r20, {by}, {clamp}, {members};
        selp.u32 %r22, 1, 0, %p1;
        st.global.u32 [%d3], %r21;
        st.global.u32 [%d3+128], %r22;"
    );
    let done = case(1, 32, &body).silent();
    (0..32).map(|i| (done.a[i].wrapping_sub(500), done.a[32 + i])).collect()
}

#[test]
fn shuffles_by_the_book() {
    // The whole warp, and segments of 8 lanes (clamp 0x1807 or 0x181f: segment mask 24).
    for lane in 0..32u32 {
        let i = lane as usize;
        let pick = |from: Option<u32>| (from.unwrap_or(lane), u32::from(from.is_some()));
        assert_eq!(shuffle("up", "3", 0, "-1")[i], pick(lane.checked_sub(3)));
        assert_eq!(
            shuffle("down", "3", 31, "-1")[i],
            pick(Some(lane + 3).filter(|from| *from < 32))
        );
        assert_eq!(shuffle("bfly", "5", 31, "-1")[i], pick(Some(lane ^ 5)));
        assert_eq!(shuffle("idx", "37", 31, "-1")[i], pick(Some(5)));
        let (segment, at) = (lane & 24, lane & 7);
        assert_eq!(
            shuffle("up", "3", 0x1800, "-1")[i],
            pick(at.checked_sub(3).map(|a| segment | a))
        );
        let down = Some(at + 3).filter(|at| *at < 8).map(|a| segment | a);
        assert_eq!(shuffle("down", "3", 0x1807, "-1")[i], pick(down));
        assert_eq!(shuffle("idx", "%r2", 0x1807, "-1")[i], pick(Some(lane)));
        assert_eq!(shuffle("idx", "2", 0x1807, "-1")[i], pick(Some(segment | 2)));
        // Across the segment a butterfly may read lower lanes, not higher ones.
        let over = Some(lane ^ 8).filter(|from| *from <= (segment | 7));
        assert_eq!(shuffle("bfly", "8", 0x1807, "-1")[i], pick(over));
    }
}

#[test]
fn a_shuffle_must_not_read_from_those_who_take_no_part() {
    let body = "
        setp.ge.u32 %p1, %r5, 16;
        @%p1 bra END;
        shfl.sync.down.b32 %r20, %r5, 8, 31, 0xffff;
    END:";
    let fault = case(1, 32, body).fault(Undefined, "shfl");
    assert!(fault.detail.contains("lane 8 reads from lane 16"), "{fault}");
    case(1, 32, &body.replace("8, 31", "8, 0x100f")).silent();
    // A block of 40 threads: lanes 8 and up of its second warp do not exist.
    case(1, 40, "shfl.sync.down.b32 %r20, %r5, 16, 31, -1;").fault(Undefined, "shfl");
    case(1, 64, "shfl.sync.down.b32 %r20, %r5, 16, 31, -1;").silent();
    // A lane outside its own members.
    case(1, 32, "shfl.sync.bfly.b32 %r20, %r5, 1, 31, 0xff;").fault(Undefined, "shfl");
}

#[test]
fn lanes_wait_for_all_members() {
    // Half of the warp comes late; all of it exchanges.
    let body = "
        setp.lt.u32 %p1, %r5, 16;
        mov.u32 %r20, 7;
        @%p1 bra EARLY;
        mov.u32 %r20, 9;
    EARLY:
        shfl.sync.bfly.b32 %r21, %r20, 16, 31, -1;
        st.global.u32 [%d3], %r21;";
    let done = case(1, 32, body).silent();
    assert!((0..32).all(|i| done.a[i] == if i < 16 { 9 } else { 7 }));
    // Each half on its own, at one instruction and at two.
    let halves = "
        setp.lt.u32 %p1, %r5, 16;
        selp.b32 %r30, 0xffff, 0xffff0000, %p1;
        shfl.sync.bfly.b32 %r21, %r5, 1, 31, %r30;
        @%p1 bra LOW;
        vote.sync.ballot.b32 %r22, %p1, 0xffff0000;
        bra END;
    LOW:
        vote.sync.ballot.b32 %r22, %p1, 0xffff;
    END:
        st.global.u32 [%d3], %r21;
        st.global.u32 [%d3+128], %r22;";
    let done = case(1, 32, halves).silent();
    assert!((0..32).all(|i| done.a[i] == i as u32 ^ 1));
    assert!((0..32).all(|i| done.a[32 + i] == if i < 16 { 0xffff } else { 0 }));
}

#[test]
fn members_that_never_come_are_a_fault() {
    let body = "
        setp.lt.u32 %p1, %r5, 16;
        @%p1 bra LOW;
        shfl.sync.bfly.b32 %r21, %r5, 1, 31, -1;
        bra END;
    LOW:
        shfl.sync.bfly.b32 %r21, %r5, 2, 31, -1;
    END:";
    let fault = case(1, 32, body).fault(DivergentBarrier, "shfl");
    assert!(fault.detail.contains("16 threads at line"), "{fault}");
    // Those that have exited are not waited for.
    let exits = "
        setp.lt.u32 %p1, %r5, 4;
        @%p1 exit;
        vote.sync.ballot.b32 %r20, %p1, -1;
        bar.warp.sync -1;
        shfl.sync.idx.b32 %r21, %r5, 9, 31, -1;
        st.global.u32 [%d3], %r21;";
    let done = case(1, 32, exits).silent();
    assert!((4..32).all(|i| done.a[i] == 9));
    // Nor those that exit later, while others wait.
    let later = "
        setp.lt.u32 %p1, %r5, 4;
        @!%p1 bra WAIT;
        bra OUT;
    WAIT:
        bar.warp.sync -1;
        st.global.u32 [%d3], %r5;
        exit;
    OUT:
        st.global.u32 [%d3], 77;
        exit;";
    let done = case(1, 32, later).silent();
    assert!((0..32).all(|i| done.a[i] == if i < 4 { 77 } else { i as u32 }));
}

#[test]
fn votes_of_all_kinds() {
    let body = "
        setp.lt.u32 %p1, %r5, 32;
        setp.lt.u32 %p2, %r5, 3;
        setp.lt.u32 %p3, %r5, 0;
        vote.sync.all.pred %p4, %p1, -1;
        vote.sync.all.pred %p5, %p2, -1;
        vote.sync.any.pred %p6, %p2, -1;
        vote.sync.any.pred %p7, %p3, -1;
        vote.sync.uni.pred %p8, %p3, -1;
        vote.sync.uni.pred %p9, %p2, -1;
        vote.sync.all.pred %p10, !%p3, -1;
        vote.sync.ballot.b32 %r20, %p2, -1;
        vote.sync.ballot.b32 %r21, !%p2, -1;
        selp.u32 %r22, 1, 0, %p4;
        @%p5 add.u32 %r22, %r22, 2;
        @%p6 add.u32 %r22, %r22, 4;
        @%p7 add.u32 %r22, %r22, 8;
        @%p8 add.u32 %r22, %r22, 16;
        @%p9 add.u32 %r22, %r22, 32;
        @%p10 add.u32 %r22, %r22, 64;
        st.global.u32 [%d3], %r20;
        st.global.u32 [%d3+128], %r21;
        st.global.u32 [%d3+256], %r22;";
    let done = case(1, 32, body).silent();
    for i in 0..32 {
        assert_eq!((done.a[i], done.a[32 + i], done.a[64 + i]), (7, !7, 1 + 4 + 16 + 64));
    }
}

#[test]
fn a_trap_says_who() {
    let fault = case(3, 64, "setp.eq.u32 %p1, %r7, 170; @%p1 trap;").fault(Trap, "trap");
    assert_eq!((fault.block, fault.thread), ([2, 0, 0], [42, 0, 0]));
    case(3, 64, "setp.eq.u32 %p1, %r7, 192; @%p1 trap;").silent();
}
