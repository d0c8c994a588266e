//! Out-of-bounds, misaligned and uninitialised accesses, in every state space.

mod common;

use common::case;
use ptx_vm::fault::FaultKind::{Misaligned, OutOfBounds, Uninitialised};

#[test]
fn the_last_element_is_in_bounds_and_the_next_is_not() {
    case(8, 128, "ld.global.u32 %r20, [%d3]; st.global.u32 [%d3], %r20;").silent();
    let fault = case(8, 128, "ld.global.u32 %r20, [%d3+4];").fault(OutOfBounds, "ld.global");
    assert_eq!((fault.block, fault.thread), ([7, 0, 0], [127, 0, 0]));
    assert!(fault.detail.contains("0 bytes past the end of an allocation of 4096"), "{fault}");
    assert!(fault.to_string().contains("PTX line 31"), "{fault}");
    let fault = case(8, 128, "st.global.u32 [%d3+-4], %r2;").fault(OutOfBounds, "st.global");
    assert_eq!((fault.block, fault.thread), ([0, 0, 0], [0, 0, 0]));
    assert!(fault.detail.contains("4 bytes before an allocation of 4096"), "{fault}");
    case(8, 128, "atom.global.add.u32 %r20, [%d3+4], 1;").fault(OutOfBounds, "atom");
    case(1, 1, "ld.global.u32 %r20, [%d1+65536];").fault(OutOfBounds, "ld.global");
    case(1, 1, "mov.u64 %d5, 0; ld.global.u32 %r20, [%d5];").fault(OutOfBounds, "ld.global");
}

#[test]
fn one_lane_out_of_many_is_blamed() {
    let body = "
        setp.eq.u32 %p1, %r2, 13;
        selp.b64 %d5, %d1, %d3, %p1;
        @%p1 add.s64 %d5, %d5, 8192;
        ld.global.u32 %r20, [%d5];";
    let fault = case(1, 64, body).fault(OutOfBounds, "ld.global");
    assert_eq!(fault.thread, [13, 0, 0]);
}

#[test]
fn a_vector_may_not_stick_out() {
    case(1, 1, "ld.global.v4.u32 {%r20, %r21, %r22, %r23}, [%d1+4080];").silent();
    let body = "ld.global.v4.u32 {%r20, %r21, %r22, %r23}, [%d1+4096];";
    case(1, 1, body).fault(OutOfBounds, "ld.global");
    let body = "ld.global.v4.u32 {%r20, %r21, %r22, %r23}, [%d1+8];";
    case(1, 1, body).fault(Misaligned, "ld.global");
}

#[test]
fn shared_memory_ends_where_it_was_declared_to() {
    case(1, 1, "st.shared.u32 [s+4092], %r2;").silent();
    case(1, 1, "st.shared.u32 [s+4096], %r2;").fault(OutOfBounds, "st.shared");
    let mut case = case(1, 1, "st.shared.u32 [s+4096], %r2;");
    case.dynamic = 4;
    case.silent();
    case.dynamic = 3;
    case.fault(OutOfBounds, "st.shared");
}

#[test]
fn negative_and_misaligned_shared_addresses() {
    case(1, 32, "sub.u32 %r20, %r8, 4; st.shared.u32 [%r20], %r2;").fault(OutOfBounds, "st.shared");
    let fault = case(1, 32, "st.shared.u32 [%r8+2], %r2;").fault(Misaligned, "st.shared");
    assert_eq!(fault.thread, [0, 0, 0]);
    case(1, 32, "st.shared.u16 [%r8+2], %h1;").silent();
}

#[test]
fn misaligned_global_addresses() {
    case(1, 32, "ld.global.u16 %h1, [%d3+2];").silent();
    case(1, 32, "ld.global.u32 %r20, [%d3+2];").fault(Misaligned, "ld.global");
    case(1, 32, "ld.global.u64 %d5, [%d1+4];").fault(Misaligned, "ld.global");
    case(1, 32, "red.global.add.u32 [%d1+2], 1;").fault(Misaligned, "red.global");
}

#[test]
fn global_memory_must_be_written_before_it_is_read() {
    let fault = case(1, 32, "ld.global.u32 %r20, [%d2+4096];").fault(Uninitialised, "ld.global");
    assert!(fault.detail.contains("byte 4096 of an allocation of 8192"), "{fault}");
    case(1, 32, "atom.global.add.u32 %r20, [%d2+4096], 1;").fault(Uninitialised, "atom");
    let body = "
        mul.wide.u32 %d5, %r2, 4;
        add.s64 %d5, %d5, %d2;
        st.global.u16 [%d5+4096], %h1;
        ld.global.u16 %h2, [%d5+4096];";
    case(1, 32, body).silent();
    let fault = case(1, 32, &format!("{body} ld.global.u32 %r20, [%d5+4096];"))
        .fault(Uninitialised, "ld.global.u32");
    assert!(fault.detail.contains("byte 4098"), "{fault}");
}

#[test]
fn shared_memory_must_be_written_before_it_is_read() {
    case(1, 32, "ld.shared.u32 %r20, [%r8];").fault(Uninitialised, "ld.shared");
    case(1, 32, "st.shared.u32 [%r8], %r2; ld.shared.u32 %r20, [%r8];").silent();
    // Another block's is not this one's, though it lay at the same place.
    let body = "
        setp.eq.u32 %p1, %r3, 0;
        @%p1 st.shared.u32 [%r8], %r2;
        ld.shared.u32 %r20, [%r8];";
    let mut case = case(2, 32, body);
    case.resident = 1;
    assert_eq!(case.fault(Uninitialised, "ld.shared").block, [1, 0, 0]);
}

#[test]
fn local_memory_is_each_threads_own() {
    let body = "
        st.local.u32 [l+8], %r2;
        ld.local.u32 %r20, [l+8];
        st.global.u32 [%d3], %r20;";
    let done = case(1, 96, body).silent();
    assert!((0..96).all(|i| done.a[i] == i as u32));
    case(1, 32, &format!("{body} ld.local.u32 %r21, [l+12];")).fault(Uninitialised, "ld.local");
    case(1, 32, "st.local.u32 [l+64], %r2;").fault(OutOfBounds, "st.local");
    case(1, 32, "st.local.u32 [l+2], %r2;").fault(Misaligned, "st.local");
}

#[test]
fn generic_addresses_find_their_space() {
    let body = "
        mov.u64 %d5, s;
        cvta.shared.u64 %d5, %d5;
        mul.wide.u32 %d6, %r2, 4;
        add.s64 %d5, %d5, %d6;
        mov.u64 %d7, l;
        cvta.local.u64 %d7, %d7;
        and.b32 %r20, %r2, 3;
        setp.eq.u32 %p1, %r20, 0;
        setp.eq.u32 %p2, %r20, 1;
        selp.b64 %d8, %d5, %d3, %p1;
        selp.b64 %d8, %d7, %d8, %p2;
        st.u32 [%d8], %r2;
        ld.u32 %r21, [%d8];
        add.u32 %r21, %r21, 5;
        st.global.u32 [%d3+2048], %r21;
        @%p1 ld.shared.u32 %r22, [%r8];
        @%p2 ld.local.u32 %r22, [l];
        @%p1 st.global.u32 [%d3+1024], %r22;
        @%p2 st.global.u32 [%d3+1024], %r22;";
    let done = case(1, 64, body).silent();
    for i in 0..64 {
        assert_eq!(done.a[512 + i], i as u32 + 5);
        let want = if i % 4 < 2 { i } else { 256 + i };
        assert_eq!(done.a[256 + i], want as u32);
        assert_eq!(done.a[i], i as u32, "the others were numbered so");
    }
    assert_eq!(done.report.global_stores.bytes, 32 * 4 + 64 * 4 + 32 * 4);
    case(1, 1, "mov.u64 %d5, s; cvta.shared.u64 %d5, %d5; st.u32 [%d5+4096], %r2;")
        .fault(OutOfBounds, "st.u32");
}
