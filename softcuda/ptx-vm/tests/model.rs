//! Litmus tests of the memory consistency model: what orders two blocks, and what does not.

mod common;

use common::{Case, case};
use ptx_vm::fault::FaultKind::{Hang, Race};

/// Thread 0 of block 0 stores b[1] and then sets b[0] as `release` says; another thread waits for that as `acquire` says
/// and then loads b[1]. `other`: whether a thread is the reader (in %p2).
fn message(other: &str, release: &str, acquire: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r7, 0;
        @%p1 bra NOTWRITER;
        st.global.u32 [%d2+4], 42;
        {release}
        bra END;
    NOTWRITER:
        {other}
        @!%p2 bra END;
    WAIT:
        {acquire}
        setp.eq.u32 %p3, %r20, 0;
        @%p3 bra WAIT;
        ld.global.u32 %r21, [%d2+4];
        st.global.u32 [%d2+8], %r21;
    END:"
    )
}

const OTHER_BLOCK: &str = "setp.eq.u32 %p2, %r7, 64;";
const OTHER_WARP: &str = "setp.eq.u32 %p2, %r7, 33;";
const OTHER_LANE: &str = "setp.eq.u32 %p2, %r7, 5;";

fn passes(case: &Case) {
    assert!(case.no_fault().iter().all(|done| done.b[2] == 42));
}

/// Writes and reads the flag so that the message is passed to any thread of the device.
const RIGHT: [(&str, &str); 6] = [
    ("st.release.gpu.global.u32 [%d2], 1;", "ld.acquire.gpu.global.u32 %r20, [%d2];"),
    ("st.release.sys.global.u32 [%d2], 1;", "ld.acquire.gpu.global.u32 %r20, [%d2];"),
    (
        "fence.acq_rel.gpu; st.relaxed.gpu.global.u32 [%d2], 1;",
        "ld.relaxed.gpu.global.u32 %r20, [%d2]; fence.acq_rel.gpu;",
    ),
    (
        "membar.gl; st.volatile.global.u32 [%d2], 1;",
        "ld.volatile.global.u32 %r20, [%d2]; membar.gl;",
    ),
    (
        "fence.sc.gpu; atom.global.exch.b32 %r20, [%d2], 1;",
        "atom.global.add.u32 %r20, [%d2], 0; fence.sc.gpu;",
    ),
    ("red.release.gpu.global.add.u32 [%d2], 1;", "atom.acquire.gpu.global.or.b32 %r20, [%d2], 0;"),
];

/// The same with something missing.
const WRONG: [(&str, &str); 8] = [
    // Nothing releases.
    ("st.relaxed.gpu.global.u32 [%d2], 1;", "ld.acquire.gpu.global.u32 %r20, [%d2];"),
    ("st.volatile.global.u32 [%d2], 1;", "ld.volatile.global.u32 %r20, [%d2]; membar.gl;"),
    ("atom.global.exch.b32 %r20, [%d2], 1;", "atom.global.add.u32 %r20, [%d2], 0; fence.sc.gpu;"),
    ("st.relaxed.gpu.global.u32 [%d2], 1; membar.gl;", "ld.acquire.gpu.global.u32 %r20, [%d2];"),
    // Nothing acquires.
    ("st.release.gpu.global.u32 [%d2], 1;", "ld.relaxed.gpu.global.u32 %r20, [%d2];"),
    ("membar.gl; st.volatile.global.u32 [%d2], 1;", "ld.volatile.global.u32 %r20, [%d2];"),
    (
        "membar.gl; st.volatile.global.u32 [%d2], 1;",
        "membar.gl; ld.volatile.global.u32 %r20, [%d2];",
    ),
    ("red.release.gpu.global.add.u32 [%d2], 1;", "atom.global.or.b32 %r20, [%d2], 0;"),
];

/// Right within a block, too narrow between blocks.
const NARROW: [(&str, &str); 5] = [
    ("st.release.cta.global.u32 [%d2], 1;", "ld.acquire.cta.global.u32 %r20, [%d2];"),
    (
        "membar.cta; st.volatile.global.u32 [%d2], 1;",
        "ld.volatile.global.u32 %r20, [%d2]; membar.gl;",
    ),
    (
        "membar.gl; st.volatile.global.u32 [%d2], 1;",
        "ld.volatile.global.u32 %r20, [%d2]; membar.cta;",
    ),
    (
        "fence.acq_rel.cta; st.relaxed.gpu.global.u32 [%d2], 1;",
        "ld.relaxed.gpu.global.u32 %r20, [%d2]; fence.acq_rel.gpu;",
    ),
    ("red.release.cta.global.add.u32 [%d2], 1;", "ld.acquire.gpu.global.u32 %r20, [%d2];"),
];

#[test]
fn a_message_passes_with_release_and_acquire() {
    for (release, acquire) in RIGHT {
        for other in [OTHER_BLOCK, OTHER_WARP, OTHER_LANE] {
            passes(&case(2, 64, &message(other, release, acquire)));
        }
    }
}

#[test]
fn a_message_races_without_release_or_acquire() {
    for (release, acquire) in WRONG {
        for other in [OTHER_BLOCK, OTHER_WARP, OTHER_LANE] {
            let case = case(2, 64, &message(other, release, acquire));
            case.fault(Race, "ld.global.u32 %r21");
        }
    }
}

#[test]
fn block_scope_orders_threads_of_one_block_only() {
    for (release, acquire) in NARROW {
        for other in [OTHER_WARP, OTHER_LANE] {
            passes(&case(2, 64, &message(other, release, acquire)));
        }
        let between = case(2, 64, &message(OTHER_BLOCK, release, acquire));
        between.fault(Race, "ld.global.u32 %r21|[%d2]");
    }
}

#[test]
fn a_flag_in_shared_memory_orders_a_block() {
    let body = |release: &str, acquire: &str| {
        let all = message(OTHER_WARP, release, acquire);
        format!("setp.eq.u32 %p1, %r2, 0; @%p1 st.shared.u32 [s], 0; bar.sync 0; {all}")
    };
    let right = body(
        "membar.cta; st.volatile.shared.u32 [s], 1;",
        "ld.volatile.shared.u32 %r20, [s]; membar.cta;",
    );
    passes(&case(1, 64, &right));
    let wrong =
        body("st.volatile.shared.u32 [s], 1;", "ld.volatile.shared.u32 %r20, [s]; membar.cta;");
    case(1, 64, &wrong).fault(Race, "ld.global.u32 %r21");
}

#[test]
fn a_weak_flag_races_itself() {
    let body = message(
        OTHER_BLOCK,
        "membar.gl; st.global.u32 [%d2], 1;",
        "ld.volatile.global.u32 %r20, [%d2]; membar.gl;",
    );
    case(2, 64, &body).fault(Race, "[%d2]");
}

/// All threads of a block store, the block meets, thread 0 releases; of the other block, thread 0 acquires, the block
/// meets, and all threads read.
fn handover(before: &str, after: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r3, 0;
        @%p1 bra READER;
        add.u32 %r20, %r2, 1000;
        st.global.u32 [%d4], %r20;
        {before}
        setp.eq.u32 %p2, %r2, 0;
        @%p2 red.release.gpu.global.add.u32 [%d2], 1;
        bra END;
    READER:
        setp.ne.u32 %p2, %r2, 0;
        @%p2 bra MEET;
    WAIT:
        ld.acquire.gpu.global.u32 %r20, [%d2];
        setp.eq.u32 %p3, %r20, 0;
        @%p3 bra WAIT;
    MEET:
        {after}
        ld.global.u32 %r21, [%d4];
        st.global.u32 [%d4+2048], %r21;
    END:"
    )
}

#[test]
fn barriers_pass_on_what_one_thread_has_acquired() {
    let right = case(2, 96, &handover("bar.sync 0;", "bar.sync 0;"));
    for done in right.no_fault() {
        assert!((0..96).all(|i| done.a[512 + i] == 1000 + i as u32));
    }
    case(2, 96, &handover("", "bar.sync 0;")).fault(Race, "ld.global.u32 %r21");
    case(2, 96, &handover("bar.sync 0;", "")).fault(Race, "%r21|[%d4]");
}

/// The last block to finish sums up what each has stored: CUDA's "last block done".
fn ticket(before: &str, after: &str, meet: &str) -> String {
    format!(
        "mul.wide.u32 %d5, %r3, 4;
        add.s64 %d5, %d5, %d2;
        setp.ne.u32 %p1, %r2, 0;
        @%p1 bra MEET;
        add.u32 %r20, %r3, 1;
        st.global.u32 [%d5+64], %r20;
        {before}
        atom.global.inc.u32 %r21, [%d2], 1000;
        sub.u32 %r22, %r6, 1;
        set.eq.u32.u32 %r23, %r21, %r22;
        {after}
        st.shared.u32 [s], %r23;
    MEET:
        {meet}
        ld.shared.u32 %r24, [s];
        setp.eq.u32 %p2, %r24, 0;
        @%p2 bra END;
        setp.ne.u32 %p3, %r2, 40;
        @%p3 bra END;
        mov.u32 %r25, 0;
        mov.u32 %r26, 0;
        mov.u64 %d6, %d2;
    SUM:
        ld.global.u32 %r27, [%d6+64];
        add.u32 %r25, %r25, %r27;
        add.s64 %d6, %d6, 4;
        add.u32 %r26, %r26, 1;
        setp.lt.u32 %p4, %r26, %r6;
        @%p4 bra SUM;
        st.global.u32 [%d2+4], %r25;
        st.global.u32 [%d2], 0;
    END:"
    )
}

#[test]
fn the_last_block_may_read_what_all_have_stored() {
    for (before, after) in [("membar.gl;", "membar.gl;"), ("membar.gl;", "")] {
        let case = case(6, 64, &ticket(before, after, "bar.sync 0;"));
        let done = case.silent();
        assert_eq!((done.b[0], done.b[1]), (0, 21));
    }
    let release =
        ticket("", "", "bar.sync 0;").replace("atom.global.inc", "atom.acq_rel.gpu.global.inc");
    case(6, 64, &release).silent();
}

#[test]
fn without_its_fence_the_last_block_races() {
    for after in ["membar.gl;", ""] {
        let case = case(6, 64, &ticket("", after, "bar.sync 0;"));
        case.fault(Race, "ld.global.u32 %r27");
    }
    case(6, 64, &ticket("membar.cta;", "membar.gl;", "bar.sync 0;"))
        .fault(Race, "ld.global.u32 %r27");
    case(6, 64, &format!("st.shared.u32 [s], 0; bar.sync 0; {}", ticket("membar.gl;", "", "")))
        .fault(Race, "[s]");
}

/// A barrier of the grid made by hand, `rounds` of it; every block reads its neighbour's last number in each.
pub fn grid_barrier(arrive: &str, wait: &str) -> String {
    format!(
        "mov.u32 %r30, 0;
        mul.wide.u32 %d5, %r3, 4;
        add.s64 %d5, %d5, %d2;
        add.u32 %r31, %r3, 1;
        rem.u32 %r31, %r31, %r6;
        mul.wide.u32 %d6, %r31, 4;
        add.s64 %d6, %d6, %d2;
        setp.ne.u32 %p1, %r2, 0;
    ROUND:
        and.b32 %r37, %r30, 1;
        mul.wide.u32 %d7, %r37, 1024;
        add.s64 %d8, %d5, %d7;
        add.s64 %d9, %d6, %d7;
        setp.eq.u32 %p4, %r2, 33;
        add.u32 %r32, %r30, %r3;
        @%p4 st.global.u32 [%d8+64], %r32;
        bar.sync 0;
        @%p1 bra MEET;
        add.u32 %r33, %r30, 1;
        mul.lo.u32 %r33, %r33, %r6;
        {arrive}
    WAIT:
        {wait}
        setp.lt.u32 %p2, %r34, %r33;
        @%p2 bra WAIT;
    MEET:
        bar.sync 0;
        ld.global.u32 %r35, [%d9+64];
        add.u32 %r36, %r30, %r31;
        setp.ne.u32 %p3, %r35, %r36;
        @%p3 trap;
        add.u32 %r30, %r30, 1;
        setp.lt.u32 %p3, %r30, 4;
        @%p3 bra ROUND;"
    )
}

#[test]
fn a_grid_barrier_orders_all_blocks() {
    let release = "red.release.gpu.global.add.u32 [%d2], 1;";
    let acquire = "ld.acquire.gpu.global.u32 %r34, [%d2];";
    case(7, 64, &grid_barrier(release, acquire)).no_fault();
    let fenced = "membar.gl; red.global.add.u32 [%d2], 1;";
    case(7, 64, &grid_barrier(fenced, "ld.volatile.global.u32 %r34, [%d2]; membar.gl;")).no_fault();
    let relaxed = "red.global.add.u32 [%d2], 1;";
    case(7, 64, &grid_barrier(relaxed, acquire)).fault(Race, "[%d9+64]|[%d8+64]");
    let polled = "ld.relaxed.gpu.global.u32 %r34, [%d2];";
    case(7, 64, &grid_barrier(release, polled)).fault(Race, "[%d9+64]|[%d8+64]");
}

#[test]
fn a_grid_barrier_hangs_if_not_all_blocks_are_resident() {
    let release = "red.release.gpu.global.add.u32 [%d2], 1;";
    let acquire = "ld.acquire.gpu.global.u32 %r34, [%d2];";
    let mut case = case(7, 64, &grid_barrier(release, acquire));
    case.resident = 6;
    let fault = case.fault(Hang, "WAIT|ld.acquire|setp|bra|bar.sync");
    assert!(fault.detail.contains("threads at line"), "{fault}");
    assert!(fault.detail.contains("bar.sync 0;"), "{fault}");
    case.resident = 7;
    case.no_fault();
}

#[test]
fn lanes_of_a_warp_pass_a_lock_to_each_other() {
    // Every lane adds to a[0] under a lock, by a weak load and store.
    let lock = |acquire: &str, release: &str| {
        format!(
            "mov.u32 %r30, 0;
        AGAIN:
            atom{acquire}.global.cas.b32 %r20, [%d2], 0, 1;
            setp.ne.u32 %p1, %r20, 0;
            @%p1 bra NOTYET;
            ld.global.u32 %r21, [%d1];
            add.u32 %r21, %r21, 1;
            st.global.u32 [%d1], %r21;
            {release}
            mov.u32 %r30, 1;
        NOTYET:
            setp.eq.u32 %p2, %r30, 0;
            @%p2 bra AGAIN;"
        )
    };
    let right = lock(".acquire.gpu", "st.release.gpu.global.u32 [%d2], 0;");
    assert!(case(3, 64, &right).no_fault().iter().all(|done| done.a[0] == 192));
    let right = lock("", "membar.gl; st.volatile.global.u32 [%d2], 0;")
        .replace("ld.global", "membar.gl; ld.global");
    assert!(case(3, 64, &right).no_fault().iter().all(|done| done.a[0] == 192));
    case(3, 64, &lock(".acquire.gpu", "st.relaxed.gpu.global.u32 [%d2], 0;")).fault(Race, "[%d1]");
    // A lock that waits inside for a lane that cannot come back to release it.
    let spin = "
        setp.ne.u32 %p1, %r2, 0;
        @%p1 bra OTHERS;
        st.global.u32 [%d1+8], 5;
        st.release.gpu.global.u32 [%d2], 1;
        bra END;
    OTHERS:
        ld.acquire.gpu.global.u32 %r20, [%d2];
        setp.eq.u32 %p2, %r20, 0;
        @%p2 bra OTHERS;
        ld.global.u32 %r21, [%d1+8];
    END:";
    case(1, 32, spin).no_fault();
    // The same with the waiting lanes first in the text.
    let first = "
        setp.eq.u32 %p1, %r2, 0;
        @%p1 bra ONE;
    OTHERS:
        ld.acquire.gpu.global.u32 %r20, [%d2];
        setp.eq.u32 %p2, %r20, 0;
        @%p2 bra OTHERS;
        ld.global.u32 %r21, [%d1+8];
        bra END;
    ONE:
        st.global.u32 [%d1+8], 5;
        st.release.gpu.global.u32 [%d2], 1;
    END:";
    case(1, 32, first).no_fault();
}
