//! Variables of a module, and the time.

mod common;

use common::{Case, case, case_with};
use ptx_vm::{AddressOf, Module, fault::FaultKind, memory::Memory};

fn variables(text: &str) -> Vec<ptx_vm::Variable> {
    let text = format!(".version 7.8\n.target sm_80\n.address_size 64\n{text}\n");
    Module::load(&text).unwrap_or_else(|error| panic!("{error}")).variables().to_vec()
}

#[test]
fn initial_values_are_the_bytes_that_the_text_says() {
    let made = variables(
        ".visible .global .align 4 .u32 one = 0x01020304;
.global .align 8 .b8 bytes[6] = {1, 2, 255};
.const .f64 half = 0d3FE0000000000000;
.global .f32 floats[] = {1.0, -2.5, 0f3F800000};
.global .s16 grid[2][3] = {{1, 2}, {-1}};
.global .align 8 .u64 at[3] = {generic(bytes)+2, floats, 7};
.global .align 8 .b8 parts[8] = {0xFF(one), 0xFF00(generic(one)), 9};
.global .align 4 .b8 empty[1000];",
    );
    let names: Vec<_> = made.iter().map(|variable| &variable.name[..]).collect();
    assert_eq!(names, ["one", "bytes", "half", "floats", "grid", "at", "parts", "empty"]);
    assert_eq!(made.iter().map(|v| v.bytes).collect::<Vec<_>>(), [4, 6, 8, 12, 12, 24, 8, 1000]);
    assert_eq!(made.iter().map(|v| v.is_constant).filter(|c| *c).count(), 1);
    assert_eq!(made[0].initial, [4, 3, 2, 1]);
    assert_eq!(made[1].initial, [1, 2, 255]);
    assert_eq!(made[2].initial, 0.5f64.to_le_bytes());
    assert_eq!(made[3].initial, [1.0f32, -2.5, 1.0].map(f32::to_le_bytes).concat());
    assert_eq!(made[4].initial, [1i16, 2, 0, -1].map(i16::to_le_bytes).concat());
    let whole = AddressOf { at: 0, bytes: 8, of: 1, offset: 2, shift: 0 };
    assert_eq!(made[5].addresses[0], whole);
    let places: Vec<u64> = (1..=8).map(|i| 0x0102_0304_0500 * i).collect();
    let image = made[5].image(&places);
    assert_eq!(image[..8], (places[1] + 2).to_le_bytes());
    assert_eq!(image[8..16], places[3].to_le_bytes());
    assert_eq!(image[16..], 7u64.to_le_bytes());
    assert_eq!(made[6].image(&places), [0x00, 0x05, 9]);
    assert!(made[7].initial.is_empty());
}

#[test]
fn what_a_variable_cannot_be_is_refused_in_words() {
    for (text, message) in [
        (".global .u32 x = {1};", "`{`"),
        (".global .u32 x[2] = {1, 2, 3};", "more than 2 values"),
        (".global .u32 x[];", "how many has `x`?"),
        (".global .u32 x[2][];", "only the first length"),
        (".global .u64 x = y;", "`y` is no variable of the module"),
        (".global .u32 y; .global .u32 x = y;", "the address of `y` does not fit"),
        (".global .u32 y; .global .b8 x[8] = {0xF0(y)};", "one of its bytes"),
        (".global .u32 x; .global .u32 x;", "there is another `x`"),
        (".extern .global .u32 x;", "defined in another module"),
        (".global .attribute(.managed) .u32 x;", "variables with attributes"),
        (".global .f32 x = 1;;", "unknown declaration"),
        (".global .b8 x[0];", "has no bytes"),
        (".global .b8 x[99999999999];", "too many"),
    ] {
        let text = format!(".version 7.8\n.target sm_80\n.address_size 64\n{text}\n");
        let said = Module::load(&text).unwrap_err().to_string();
        assert!(said.contains(message), "{text}: {said}");
    }
}

const TABLES: &str = "
.global .align 4 .u32 table[4] = {10, 20, 30, 40};
.global .align 8 .u64 third = generic(table)+8;
.const .align 4 .u32 weights[2] = {5, 6};
.global .align 4 .u32 counter;";

#[test]
fn a_kernel_reads_and_writes_variables() {
    let body = "
    and.b32 %r10, %r7, 3;
    mul.wide.u32 %d10, %r10, 4;
    mov.u64 %d11, table;
    add.u64 %d11, %d11, %d10;
    ld.global.u32 %r11, [%d11];
    ld.const.u32 %r12, [weights+4];
    ld.global.u64 %d12, [third];
    ld.u32 %r13, [%d12];
    mov.u64 %d13, weights;
    cvta.const.u64 %d13, %d13;
    ld.u32 %r14, [%d13];
    add.u32 %r11, %r11, %r12;
    add.u32 %r11, %r11, %r13;
    add.u32 %r11, %r11, %r14;
    atom.global.add.u32 %r15, [counter], 1;
    st.global.u32 [%d3], %r11;";
    let case = case_with(TABLES, 2, 64, body);
    let done = case.silent();
    for (i, value) in done.a[..128].iter().enumerate() {
        assert_eq!(*value, 10 * (i as u32 % 4 + 1) + 6 + 30 + 5, "{i}");
    }
    let mut memory = Memory::new(1 << 20);
    case.run_in(&mut memory, 3, 1).unwrap();
    let (counter, _) = memory.allocations().nth(3).unwrap();
    let mut bytes = [0; 4];
    memory.read(counter, &mut bytes).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 128);
    // What is read of constant memory is no traffic of global memory; generic addresses do not tell.
    let loads =
        case_with(TABLES, 1, 32, "ld.const.u32 %r12, [weights+4]; st.global.u32 [%d3], %r12;");
    assert_eq!(loads.silent().report.global_loads.bytes, 0);
}

#[test]
fn the_end_of_a_variable_is_a_bound() {
    let past = case_with(TABLES, 1, 32, "ld.global.u32 %r10, [table+16];");
    let fault = past.fault(FaultKind::OutOfBounds, "ld.global.u32 %r10, [table+16];");
    assert!(fault.detail.contains("0 bytes past the end of an allocation of 16 bytes"), "{fault}");
    case_with(TABLES, 1, 32, "ld.const.u32 %r10, [weights+8];")
        .fault(FaultKind::OutOfBounds, "ld.const");
    let race = case_with(TABLES, 1, 64, "st.global.u32 [counter], %r2;");
    race.fault(FaultKind::Race, "st.global");
    let refused = |body: &str, message: &str| {
        let text = format!(
            ".version 7.8\n.target sm_80\n{TABLES}\n.entry k() {{ .reg .b32 %r<9>; .reg .b64 %d<9>; {body} }}"
        );
        let said = Module::load(&text).unwrap_err().to_string();
        assert!(said.contains(message), "{body}: {said}");
    };
    refused("st.const.u32 [weights], 1;", "constant memory cannot be written");
    refused("ld.const.u32 %r1, [table];", "lies in Global memory, not Const");
    refused("mov.u32 %r1, table;", "the address of `table` does not fit");
}

#[test]
fn without_addresses_nothing_runs() {
    let case = case_with(TABLES, 1, 32, "ld.global.u32 %r10, [table];");
    let kernel = case.module.kernel("k").unwrap();
    assert!(kernel.is_unbound() && !kernel.bound(&[1, 2, 3, 4]).is_unbound());
    let launch = ptx_vm::launch::Launch {
        kernel,
        grid: [1; 3],
        block: [1; 3],
        dynamic_shared: 0,
        params: &[0; 20],
        cooperative: false,
        resident: 1,
        seed: 0,
        budget: 1000,
    };
    let fault = ptx_vm::launch::run(&mut Memory::new(1 << 20), &launch).unwrap_err();
    assert_eq!(fault.kind, FaultKind::InvalidLaunch);
}

/// Waiting by the clock ends, however long the wait: when all wait, time flies.
#[test]
fn a_kernel_that_waits_by_the_clock_ends() {
    for (register, bits, wait) in [
        ("%clock64", 64, 2_000_000_000u64),
        ("%globaltimer", 64, 60_000_000_000),
        ("%clock", 32, 1 << 31),
    ] {
        let (r, ty) = if bits == 64 { ("%d2", "u64") } else { ("%r2", "u32") };
        let body = format!(
            "mov.{ty} {r}0, {register};
$wait:
    nanosleep.u32 100;
    mov.{ty} {r}1, {register};
    sub.{ty} {r}2, {r}1, {r}0;
    setp.lt.{ty} %p1, {r}2, {wait};
    @%p1 bra $wait;
    st.global.u32 [%d3], 1;"
        );
        let case = Case { seeds: 3, budget: 3_000_000, ..case(2, 64, &body) };
        assert!(case.no_fault().iter().all(|done| done.a[..128] == [1; 128]), "{register}");
    }
}

/// Time only grows, and a sleep is as long as it says at least.
#[test]
fn time_grows() {
    let body = "
    mov.u64 %d20, %globaltimer;
    mov.u32 %r20, %clock;
    mov.u32 %r21, %clock;
    nanosleep.u32 5000;
    mov.u64 %d21, %globaltimer;
    mov.u32 %r22, %globaltimer_hi;
    sub.u64 %d21, %d21, %d20;
    cvt.u32.u64 %r23, %d21;
    setp.gt.u32 %p1, %r21, %r20;
    setp.ge.u32 %p2, %r23, 5000;
    and.pred %p1, %p1, %p2;
    setp.eq.u32 %p2, %r22, 0;
    and.pred %p1, %p1, %p2;
    selp.u32 %r24, 1, 0, %p1;
    st.global.u32 [%d3], %r24;";
    for done in case(1, 32, body).no_fault() {
        assert_eq!(done.a[..32], [1; 32]);
    }
}

/// Reading the clock often without storing anything is no hang.
#[test]
fn a_kernel_may_look_at_the_clock_as_often_as_it_likes() {
    let body = "
    mov.u32 %r20, 0;
    mov.u64 %d21, 0;
$again:
    mov.u64 %d20, %clock64;
    add.u64 %d21, %d21, %d20;
    add.u32 %r20, %r20, 1;
    setp.lt.u32 %p1, %r20, 20000;
    @%p1 bra $again;
    st.global.u32 [%d3], %r20;";
    let case = Case { seeds: 2, ..case(1, 32, body) };
    assert!(case.no_fault().iter().all(|done| done.a[..32] == [20000; 32]));
}

/// Who waits for what never comes still hangs, whether it looks at the clock or not.
#[test]
fn a_wait_without_end_is_a_hang() {
    let body = "
$wait:
    mov.u64 %d20, %clock64;
    ld.volatile.global.u32 %r20, [%d1];
    setp.eq.u32 %p1, %r20, 0;
    @%p1 bra $wait;";
    let fault = case(1, 32, body).fault(FaultKind::Hang, "mov|ld.|setp|bra");
    assert!(fault.detail.contains("threads poll"), "{fault}");
}

/// A race to PTX, which a test may let pass.
#[test]
fn equal_writes_pass_where_they_may() {
    let store = |value: &str| case(2, 64, &format!("st.global.u32 [%d1], {value};"));
    store("5").fault(FaultKind::Race, "st.global");
    let mut memory = Memory::new(1 << 20);
    memory.let_equal_writes_pass(true);
    for seed in 0..8 {
        let done =
            store("5").run_in(&mut memory, seed, 2).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(done.a[0], 5);
        let fault = store("%r3").run_in(&mut memory, seed, 2).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Race);
        // Of a value that another thread reads, too.
        let fault = case(1, 64, "ld.global.u32 %r20, [%d1];\nst.global.u32 [%d1], 0;");
        assert_eq!(fault.run_in(&mut memory, seed, 2).unwrap_err().kind, FaultKind::Race);
    }
}
