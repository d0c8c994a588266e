//! Barriers of a block: numbers, parts of a block, votes, and what goes wrong.

mod common;

use common::case;
use ptx_vm::fault::FaultKind::{Deadlock, DivergentBarrier, Race, Undefined};

#[test]
fn every_barrier_is_counted_once() {
    let done = case(3, 96, "bar.sync 0; barrier.sync 5; bar.sync 0;").silent();
    assert_eq!(done.report.barriers, 9);
}

#[test]
fn threads_that_have_exited_are_missed() {
    let body = "setp.ge.u32 %p1, %r2, 90; @%p1 exit; bar.sync 0;";
    let fault = case(2, 96, body).fault(DivergentBarrier, "bar.sync");
    assert!(fault.detail.contains("6 threads of the block have exited"), "{fault}");
    case(2, 90, body).silent();
}

#[test]
fn threads_that_took_another_way_are_missed() {
    let body = "
        setp.ge.u32 %p1, %r2, 40;
        @%p1 bra END;
        bar.sync 0;
    END:";
    case(1, 64, body).fault(DivergentBarrier, "bar.sync");
    // Whole warps that go another way, too.
    case(1, 64, &body.replace("40", "32")).fault(DivergentBarrier, "bar.sync");
    case(1, 40, body).silent();
    // A guard that holds for some lanes only is the same thing.
    case(1, 32, "setp.ge.u32 %p1, %r2, 7; @%p1 bar.sync 0;").fault(DivergentBarrier, "bar.sync");
    case(1, 32, "setp.ge.u32 %p1, %r2, 0; @%p1 bar.sync 0;").silent();
    case(1, 32, "setp.ge.u32 %p1, %r2, 32; @%p1 bar.sync 0;").silent();
}

#[test]
fn the_lanes_of_a_warp_must_come_to_one_aligned_barrier() {
    let body = |barrier: &str| {
        format!(
            "setp.ge.u32 %p1, %r5, 16;
            @%p1 bra OTHER;
            {barrier} 0;
            bra END;
        OTHER:
            {barrier} 0;
        END:
            st.global.u32 [%d3], %r2;"
        )
    };
    case(1, 64, &body("bar.sync")).fault(DivergentBarrier, "bar.sync");
    case(1, 64, &body("barrier.sync.aligned")).fault(DivergentBarrier, "barrier.sync");
    // Not so if the barrier is not aligned, nor if whole warps part.
    assert_eq!(case(1, 64, &body("barrier.sync")).silent().report.barriers, 1);
    let warps = body("bar.sync").replace("%r5, 16", "%r2, 32");
    assert_eq!(case(1, 64, &warps).silent().report.barriers, 1);
}

#[test]
fn a_barrier_after_lanes_have_parted_brings_them_together() {
    let body = "
        and.b32 %r20, %r2, 7;
        mov.u32 %r21, 0;
    LOOP:
        add.u32 %r21, %r21, 1;
        setp.le.u32 %p1, %r21, %r20;
        @%p1 bra LOOP;
        bar.sync 0;
        activemask.b32 %r22;
        st.global.u32 [%d3], %r22;";
    let done = case(2, 96, body).silent();
    assert!(done.a[..192].iter().all(|mask| *mask == u32::MAX));
}

/// Warps 0 and 1 store, warps 2 and 3 read.
fn producer(produced: &str, awaited: &str) -> String {
    format!(
        "setp.ge.u32 %p1, %r2, 64;
        @%p1 bra READER;
        st.shared.u32 [%r8], %r2;
        {produced}
        bra END;
    READER:
        {awaited}
        ld.shared.u32 %r20, [%r8+-256];
        st.global.u32 [%d3], %r20;
    END:"
    )
}

#[test]
fn producers_arrive_and_consumers_wait() {
    let done = case(2, 128, &producer("bar.arrive 3, 128;", "bar.sync 3, 128;")).silent();
    assert!((0..64).all(|i| done.a[64 + i] == i as u32));
    // Those who only arrive learn nothing: what readers did before is not ordered with what producers do after.
    let back = producer(
        "bar.arrive 3, 128; st.shared.u32 [%r8+256], %r2;",
        "st.shared.u32 [%r8], 0; bar.sync 3, 128;",
    );
    case(2, 128, &back).fault(Race, "st.shared");
}

#[test]
fn part_of_a_block_meets_on_its_own() {
    // Warps 0 and 1 exchange through barrier 1, warps 2 and 3 through barrier 2.
    let body = |threads: u32| {
        format!(
            "shr.u32 %r20, %r2, 6;
            add.u32 %r20, %r20, 1;
            st.shared.u32 [%r8], %r2;
            bar.sync %r20, {threads};
            xor.b32 %r21, %r8, 128;
            ld.shared.u32 %r22, [%r21];
            st.global.u32 [%d3], %r22;"
        )
    };
    let done = case(2, 128, &body(64)).silent();
    assert!((0..128).all(|i| done.a[i] == (i as u32 ^ 32)));
    assert_eq!(done.report.barriers, 4);
    // A part is ordered with itself only.
    let across = body(64)
        .replace("128;\n", "256;\n")
        .replace("xor.b32 %r21, %r8, 128", "xor.b32 %r21, %r8, 256");
    let filled = format!("st.shared.u32 [%r8], 0; bar.sync 0; {across}");
    case(2, 128, &filled).fault(Race, "shared.u32");
}

#[test]
fn thread_counts_must_fit() {
    case(1, 64, "bar.sync 1, 33;").fault(Undefined, "bar.sync");
    case(1, 64, "bar.sync 1, 96;").fault(Undefined, "bar.sync");
    case(1, 64, "bar.sync 1, 64;").silent();
    // 48 threads are two warps.
    case(1, 48, "bar.sync 1, 64; bar.sync 1;").silent();
    let differ = "
        setp.lt.u32 %p1, %r2, 32;
        selp.u32 %r20, 64, 96, %p1;
        bar.sync 1, %r20;";
    case(1, 96, differ).fault(DivergentBarrier, "bar.sync");
    case(1, 96, "bar.sync 1, 64;").fault(DivergentBarrier, "bar.sync");
    case(1, 32, "bar.sync %r6;").silent();
    let number = "mov.u32 %r20, 16; bar.sync %r20;";
    case(1, 32, number).fault(Undefined, "bar.sync");
    case(1, 32, "bar.sync %r5;").fault(Undefined, "bar.sync");
}

#[test]
fn barriers_in_a_circle_are_a_deadlock() {
    let body = "
        setp.lt.u32 %p1, %r2, 32;
        @%p1 bra ONE;
        bar.sync 2;
        bar.sync 1;
        bra END;
    ONE:
        bar.sync 1;
        bar.sync 2;
    END:";
    let fault = case(1, 64, body).fault(Deadlock, "bar.sync");
    assert!(fault.detail.contains("bar.sync 1") && fault.detail.contains("bar.sync 2"), "{fault}");
}

#[test]
fn barriers_count_votes() {
    let body = "
        setp.lt.u32 %p1, %r2, 50;
        setp.lt.u32 %p2, %r2, 96;
        setp.gt.u32 %p3, %r2, 96;
        bar.red.popc.u32 %r20, 0, %p1;
        barrier.red.popc.u32 %r21, 0, !%p1;
        bar.red.and.pred %p4, 0, %p1;
        bar.red.and.pred %p5, 0, %p2;
        bar.red.or.pred %p6, 0, %p1;
        bar.red.or.pred %p7, 0, %p3;
        selp.u32 %r22, 1, 0, %p4;
        selp.u32 %r23, 2, 0, %p5;
        selp.u32 %r24, 4, 0, %p6;
        selp.u32 %r25, 8, 0, %p7;
        or.b32 %r22, %r22, %r23;
        or.b32 %r22, %r22, %r24;
        or.b32 %r22, %r22, %r25;
        shl.b32 %r20, %r20, 8;
        shl.b32 %r21, %r21, 16;
        or.b32 %r22, %r22, %r20;
        or.b32 %r22, %r22, %r21;
        st.global.u32 [%d3], %r22;";
    let done = case(2, 96, body).silent();
    assert!(done.a[..192].iter().all(|value| *value == (46 << 16 | 50 << 8 | 2 | 4)));
}
