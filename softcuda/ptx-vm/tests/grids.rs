//! Grids: who is where, in which order they run, what is counted, and what never ends.

mod common;

use common::case;
use ptx_vm::fault::FaultKind::{Hang, InvalidLaunch};

#[test]
fn threads_know_where_they_are() {
    let body = "
        mov.u32 %r20, %tid.y;
        mov.u32 %r21, %tid.z;
        mov.u32 %r22, %ctaid.y;
        mov.u32 %r23, %ctaid.z;
        mov.u32 %r24, %ntid.y;
        mov.u32 %r25, %nctaid.y;
        mad.lo.u32 %r26, %r21, %r24, %r20;
        mad.lo.u32 %r26, %r26, %r4, %r2;
        mad.lo.u32 %r27, %r23, %r25, %r22;
        mad.lo.u32 %r27, %r27, %r6, %r3;
        mul.lo.u32 %r28, %r27, 60;
        add.u32 %r28, %r28, %r26;
        mul.wide.u32 %d5, %r28, 4;
        add.s64 %d5, %d5, %d2;
        shl.b32 %r29, %r21, 8;
        or.b32 %r29, %r29, %r20;
        shl.b32 %r29, %r29, 8;
        or.b32 %r29, %r29, %r2;
        st.global.u32 [%d5], %r29;";
    let mut case = case(1, 1, body);
    case.grid = [2, 3, 2];
    case.block = [5, 4, 3];
    let done = case.silent();
    for i in 0..720u32 {
        let t = i % 60;
        assert_eq!(done.b[i as usize], (t / 20) << 16 | (t / 5 % 4) << 8 | (t % 5));
    }
    assert_eq!(done.b[720], 0);
}

#[test]
fn sectors_are_those_that_a_warp_touches() {
    let count = |body: &str| case(2, 64, body).silent().report;
    let report = count("ld.global.u32 %r20, [%d3]; st.global.u32 [%d3], %r20;");
    assert_eq!((report.global_loads.bytes, report.global_loads.sectors), (512, 16));
    assert_eq!((report.global_loads.requests, report.global_stores.requests), (4, 4));
    assert_eq!(report.global_stores.sectors, 16);
    // One place for all, words 64 bytes apart, a run that begins in the midst of a sector, half of the lanes.
    assert_eq!(count("ld.global.u32 %r20, [%d1];").global_loads.sectors, 4);
    let strided = "mul.wide.u32 %d5, %r5, 64; add.s64 %d5, %d5, %d1; ld.global.u32 %r20, [%d5];";
    assert_eq!(count(strided).global_loads.sectors, 4 * 32);
    assert_eq!(count("ld.global.u32 %r20, [%d3+12];").global_loads.sectors, 4 * 5);
    let half = count("setp.lt.u32 %p1, %r5, 16; @%p1 ld.global.u32 %r20, [%d3];").global_loads;
    assert_eq!((half.bytes, half.sectors, half.requests), (256, 8, 4));
    let none = count("setp.lt.u32 %p1, %r5, 0; @%p1 ld.global.u32 %r20, [%d3];").global_loads;
    assert_eq!((none.bytes, none.sectors, none.requests), (0, 0, 0));
    let vector = "
        mul.wide.u32 %d5, %r2, 16;
        add.s64 %d5, %d5, %d1;
        ld.global.v4.u32 {%r20, %r21, %r22, %r23}, [%d5];";
    let vector = count(vector).global_loads;
    assert_eq!((vector.bytes, vector.sectors, vector.requests), (2048, 64, 4));
    // Polls and atomic operations are not among the loads.
    let report = count("ld.acquire.gpu.global.u32 %r20, [%d2]; red.global.add.u32 [%d2], 1;");
    assert_eq!((report.global_loads.bytes, report.polls.bytes, report.atomics), (0, 512, 128));
    let report = count(
        "st.shared.u32 [%r8], %r2; ld.shared.v2.u32 {%r20, %r21}, [%r8];"
            .replace("ld.shared.v2.u32 {%r20, %r21}", "ld.shared.u32 %r20")
            .as_str(),
    );
    assert_eq!((report.shared_loads, report.shared_stores), (512, 512));
    assert_eq!(report.high_water, 4096 + 8192);
}

#[test]
fn instructions_are_counted_for_threads_and_for_warps() {
    let base = case(2, 40, "").silent().report;
    let more =
        case(2, 40, "add.u32 %r20, %r2, 1; setp.lt.u32 %p1, %r5, 3; @%p1 add.u32 %r20, %r20, 1;")
            .silent()
            .report;
    assert_eq!(more.thread_instructions - base.thread_instructions, 2 * (40 + 40 + 3 + 3));
    assert_eq!(more.warp_instructions - base.warp_instructions, 2 * 2 * 3);
}

#[test]
fn counts_and_results_do_not_depend_on_the_order() {
    // `silent` compares all seeds and residencies.
    let body = "
        st.shared.u32 [%r8], %r7;
        bar.sync 0;
        sub.u32 %r20, %r4, %r2;
        sub.u32 %r20, %r20, 1;
        mov.u32 %r21, s;
        mad.lo.u32 %r21, %r20, 4, %r21;
        ld.shared.u32 %r22, [%r21];
        red.global.add.u32 [%d2], %r22;
        red.global.max.u32 [%d2+4], %r22;
        st.global.u32 [%d3], %r22;";
    let mut case = case(9, 96, body);
    case.seeds = 40;
    let done = case.silent();
    assert_eq!((done.b[0], done.b[1]), (863 * 864 / 2, 863));
}

#[test]
fn orders_differ() {
    // Who comes first to an atomic exchange depends on the seed: of blocks, and of warps.
    let body = "setp.eq.u32 %p1, %r5, 0; @%p1 atom.global.cas.b32 %r20, [%d2], 0, %r7;";
    let first: std::collections::BTreeSet<_> =
        case(8, 128, body).no_fault().iter().map(|done| done.b[0]).collect();
    assert!(first.len() > 4, "{first:?}");
    assert!(first.iter().any(|thread| thread % 128 != 0), "{first:?}");
}

#[test]
fn what_never_ends_uses_up_its_budget() {
    let mut case = case(2, 64, "setp.eq.u32 %p1, %r7, 70; LOOP: @%p1 bra LOOP;");
    case.budget = 100_000;
    let fault = case.fault(Hang, "bra LOOP");
    assert!(fault.detail.contains("budget of 100000"), "{fault}");
    assert_eq!((fault.block, fault.thread), ([1, 0, 0], [6, 0, 0]));
    let mut short = common::case(2, 64, "");
    let needed = short.silent().report.thread_instructions;
    short.budget = needed + 1;
    short.silent();
    short.budget = needed / 2;
    short.fault(Hang, "");
}

#[test]
fn polling_for_what_nobody_will_write_is_noticed_soon() {
    let body = "
    WAIT:
        ld.volatile.global.u32 %r20, [%d2];
        setp.eq.u32 %p1, %r20, 0;
        @%p1 bra WAIT;";
    let mut case = case(4, 64, body);
    case.seeds = 2;
    let fault = case.fault(Hang, "");
    assert!(fault.detail.contains("threads poll, but no other"), "{fault}");
    assert!(fault.detail.contains("256 threads at line"), "{fault}");
}

#[test]
fn impossible_launches_are_refused() {
    let with = |change: fn(&mut common::Case)| {
        let mut case = case(1, 32, "");
        change(&mut case);
        case.fault(InvalidLaunch, "").detail
    };
    assert!(with(|case| case.grid = [0, 1, 1]).contains("no threads"));
    assert!(with(|case| case.block = [32, 0, 1]).contains("no threads"));
    assert!(with(|case| case.block = [32, 33, 1]).contains("1056 threads"));
    assert!(with(|case| case.grid = [u32::MAX, u32::MAX, u32::MAX]).contains("warps in the grid"));
    assert!(with(|case| case.resident = 0).contains("resident"));
}
