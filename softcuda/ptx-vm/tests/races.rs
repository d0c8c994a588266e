//! Races in shared and global memory, and what is none.

mod common;

use common::case;
use ptx_vm::fault::FaultKind::Race;

/// Each thread stores a word of shared memory and reads that of the thread `%r20` further, after `between`.
fn exchange(by: u32, between: &str) -> String {
    format!(
        "st.shared.u32 [%r8], %r2;
        {between}
        add.u32 %r20, %r2, {by};
        rem.u32 %r20, %r20, %r4;
        mov.u32 %r21, s;
        mad.lo.s32 %r21, %r20, 4, %r21;
        ld.shared.u32 %r22, [%r21];
        st.global.u32 [%d3], %r22;"
    )
}

/// Every word is written before anyone runs.
const FILLED: &str = "st.shared.u32 [%r8], 0; bar.sync 0;";

#[test]
fn a_barrier_orders_what_warps_exchange() {
    let done = case(2, 128, &exchange(37, "bar.sync 0;")).silent();
    assert!((0..128).all(|i| done.a[i] == (i as u32 + 37) % 128));
    let fault = case(2, 128, &(FILLED.to_owned() + &exchange(37, "")))
        .fault(Race, "ld.shared.u32 %r22|st.shared.u32 [%r8], %r2");
    assert!(fault.detail.contains("of shared memory"), "{fault}");
    let (block, thread) = fault.other.unwrap();
    assert_eq!(block, fault.block);
    assert!(thread != fault.thread);
    // Only some exchange within a warp, so that without a barrier at least the others race.
    case(2, 128, &(FILLED.to_owned() + &exchange(37, "bar.warp.sync -1;"))).fault(Race, "shared");
}

#[test]
fn a_warp_barrier_orders_what_lanes_exchange() {
    case(1, 32, &exchange(1, "bar.warp.sync -1;")).silent();
    case(1, 32, &exchange(1, "")).fault(Race, "ld.shared.u32 %r22");
    // `shfl` and `vote` move registers; memory they do not order.
    let shuffle = "shfl.sync.idx.b32 %r30|%p1, %r2, 0, 31, -1;";
    case(1, 32, &exchange(1, shuffle)).fault(Race, "ld.shared.u32 %r22");
    let vote = "setp.eq.u32 %p1, %r2, 0; vote.sync.any.pred %p2, %p1, -1;";
    case(1, 32, &exchange(1, vote)).fault(Race, "ld.shared.u32 %r22");
}

#[test]
fn a_warp_barrier_orders_its_members_only() {
    let halves = "
        setp.lt.u32 %p1, %r5, 16;
        selp.b32 %r30, 0xffff, 0xffff0000, %p1;
        bar.warp.sync %r30;";
    // Neighbours in pairs stay within a half; a shift by one does not.
    let pairs = |between: &str| {
        format!(
            "st.shared.u32 [%r8], %r2;
            {between}
            xor.b32 %r20, %r8, 4;
            ld.shared.u32 %r22, [%r20];"
        )
    };
    case(1, 32, &pairs(halves)).silent();
    case(1, 32, &exchange(1, halves)).fault(Race, "ld.shared.u32 %r22");
}

#[test]
fn a_write_after_others_have_read_needs_a_barrier_too() {
    let sum = |second: &str| {
        format!(
            "mov.u32 %r30, 0;
        LOOP:
            setp.eq.u32 %p1, %r2, 0;
            @%p1 st.shared.u32 [s], %r30;
            bar.sync 0;
            ld.shared.u32 %r22, [s];
            {second}
            add.u32 %r30, %r30, 1;
            setp.lt.u32 %p2, %r30, 5;
            @%p2 bra LOOP;"
        )
    };
    case(1, 96, &sum("bar.sync 0;")).silent();
    let fault = case(1, 96, &sum("")).fault(Race, "st.shared");
    assert!(fault.detail.contains("has read"), "{fault}");
}

#[test]
fn narrow_neighbours_do_not_race() {
    for (ty, size) in [("u8", 1), ("u16", 2), ("u32", 4), ("u64", 8)] {
        let body = format!(
            "mov.u32 %r20, s;
            mad.lo.s32 %r20, %r2, {size}, %r20;
            mul.wide.u32 %d5, %r7, {size};
            add.s64 %d5, %d5, %d2;
            cvt.u16.u32 %h1, %r2;
            cvt.u64.u32 %d6, %r2;
            st.shared.{ty} [%r20], {reg};
            st.global.{ty} [%d5], {reg};
            ld.shared.{ty} {other}, [%r20];
            ld.global.{ty} {other}, [%d5];",
            reg = ["", "%h1", "%h1", "", "%r2", "", "", "", "%d6"][size],
            other = ["", "%h2", "%h2", "", "%r22", "", "", "", "%d7"][size],
        );
        // 96 threads: three warps whose places touch.
        case(2, 96, &body).silent();
        // Every word, however wide, belongs to the thread before it, too.
        let clash = body.replace("ld.shared", "ld.shared.u8 %h3, [%r20+-1]; ld.shared");
        let clash = clash.replace("mad.lo.s32 %r20", "add.u32 %r20, %r20, 8; mad.lo.s32 %r20");
        case(2, 96, &format!("st.shared.u64 [s], 0; bar.sync 0; {clash}"))
            .fault(Race, "ld.shared.u8 %h3|st.shared");
    }
}

#[test]
fn a_wide_access_races_with_a_part_of_it() {
    let body = |fence: &str| {
        format!(
            "setp.ne.u32 %p1, %r2, 0;
            @%p1 bra OTHER;
            st.global.v4.u32 [%d1], {{%r2, %r2, %r2, %r2}};
        OTHER:
            {fence}
            setp.ne.u32 %p1, %r2, 32;
            @%p1 bra END;
            st.global.u8 [%d1+13], %h1;
        END:"
        )
    };
    case(1, 64, &body("bar.sync 0;")).silent();
    case(1, 64, &body("")).fault(Race, "st.global");
}

#[test]
fn blocks_that_nothing_orders_race() {
    let own = "st.global.u32 [%d3], %r2; ld.global.u32 %r20, [%d3];";
    case(4, 64, own).silent();
    let fault = case(4, 64, "st.global.u32 [%d4], %r2;").fault(Race, "st.global");
    assert!(fault.detail.contains("of an allocation of 4096"), "{fault}");
    assert_ne!(fault.other.unwrap().0, fault.block);
    // A barrier of a block does not order blocks.
    case(4, 64, "st.global.u32 [%d4], %r2; bar.sync 0;").fault(Race, "st.global");
    case(4, 64, "ld.global.u32 %r20, [%d4]; bar.sync 0;").silent();
    let body = "
        ld.global.u32 %r20, [%d4];
        setp.eq.u32 %p1, %r3, 2;
        @%p1 st.global.u32 [%d4], %r20;";
    case(4, 64, body).fault(Race, "global");
}

#[test]
fn launches_do_not_race_with_each_other() {
    // The same memory, two launches: `Case::run` makes a new memory, so run by hand.
    let case = case(1, 64, "st.global.u32 [%d4], %r2;");
    let mut memory = ptx_vm::memory::Memory::new(1 << 20);
    let a = memory.alloc(4096).unwrap();
    let mut params = Vec::new();
    params.extend([a.to_le_bytes(), a.to_le_bytes()].concat());
    params.extend(0u32.to_le_bytes());
    for seed in 0..3 {
        let launch = ptx_vm::launch::Launch {
            kernel: case.module.kernel("k").unwrap(),
            grid: [1, 1, 1],
            block: [64, 1, 1],
            dynamic_shared: 0,
            params: &params,
            cooperative: false,
            resident: 1,
            seed,
            budget: 1 << 20,
        };
        ptx_vm::launch::run(&mut memory, &launch).unwrap();
    }
}

#[test]
fn atomics_race_with_weak_accesses_only() {
    let done = case(8, 96, "red.global.add.u32 [%d2], 1;").silent();
    assert_eq!((done.b[0], done.report.atomics), (8 * 96, 8 * 96));
    case(8, 96, "red.global.add.u32 [%d2], 1; ld.global.u32 %r20, [%d2];").fault(Race, "global");
    let weak = "
        setp.eq.u32 %p1, %r7, 0;
        @%p1 st.global.u32 [%d2], %r2;
        red.global.add.u32 [%d2], 1;";
    case(8, 96, weak).fault(Race, "global");
    // In shared memory, with the barriers that make it right.
    let body = |first: &str, second: &str| {
        format!(
            "setp.eq.u32 %p1, %r2, 0;
            @%p1 st.shared.u32 [s], 0;
            {first}
            atom.shared.add.u32 %r20, [s], 1;
            {second}
            ld.shared.u32 %r21, [s];
            st.global.u32 [%d3], %r21;"
        )
    };
    let done = case(2, 96, &body("bar.sync 0;", "bar.sync 0;")).silent();
    assert!(done.a[..192].iter().all(|count| *count == 96));
    case(2, 96, &format!("st.shared.u32 [s], 7; bar.sync 0; {}", body("", "bar.sync 0;")))
        .fault(Race, "st.shared|atom.shared");
    case(2, 96, &body("bar.sync 0;", "")).fault(Race, "ld.shared|atom.shared");
}

#[test]
fn an_atomic_of_block_scope_does_not_reach_other_blocks() {
    case(1, 96, "red.relaxed.cta.global.add.u32 [%d2], 1;").silent();
    case(2, 96, "red.relaxed.cta.global.add.u32 [%d2], 1;").fault(Race, "red");
}

#[test]
fn lanes_may_store_one_value_to_one_place() {
    case(1, 32, "st.shared.u32 [s], 7; ").silent();
    case(1, 32, "st.shared.u32 [s], %r2;").fault(Race, "st.shared");
    case(1, 64, "st.shared.u32 [s], 7;").fault(Race, "st.shared");
}

#[test]
fn volatile_accesses_do_not_race_but_order_nothing() {
    let body = |between: &str| {
        format!(
            "st.volatile.global.u32 [%d2], %r7;
            {between}
            ld.volatile.global.u32 %r20, [%d2];"
        )
    };
    case(4, 64, &body("")).no_fault();
    case(4, 64, &body("st.global.u32 [%d4], %r2;")).fault(Race, "st.global.u32 [%d4]");
}
