//! Functions that kernels call, and the two that a module need not define: assertions and printing.

mod common;

use common::{case_with, words};
use ptx_vm::{Module, fault::FaultKind, memory::Memory};

/// What nvcc makes of `int sum(int n)`, which returns early for odd numbers, and of a caller of it.
const SUM: &str = "
.func (.param .b32 ret) sum(.param .b32 sum_n) {
    .reg .pred %p<4>; .reg .b32 %r<8>;
    ld.param.u32 %r1, [sum_n];
    and.b32 %r2, %r1, 1;
    setp.eq.u32 %p1, %r2, 1;
    @%p1 bra $odd;
    mov.u32 %r3, 0;
$again:
    setp.eq.u32 %p2, %r1, 0;
    @%p2 bra $end;
    add.u32 %r3, %r3, %r1;
    sub.u32 %r1, %r1, 1;
    bra $again;
$odd:
    st.param.b32 [ret], 7;
    ret;
$end:
    st.param.b32 [ret+0], %r3;
    ret;
}
.func (.param .b32 ret) both(.param .b32 a, .param .align 8 .b8 pair[16]) {
    .reg .b32 %r<8>; .reg .b64 %rd<3>;
    { .param .b32 p0; .param .b32 back;
      ld.param.u32 %r1, [a];
      st.param.b32 [p0], %r1;
      call.uni (back), sum, (p0);
      ld.param.b32 %r2, [back]; }
    ld.param.v2.u32 {%r3, %r4}, [pair+8];
    mov.u64 %rd1, pair;
    ld.param.u32 %r5, [%rd1+4];
    add.u32 %r2, %r2, %r3;
    add.u32 %r2, %r2, %r5;
    st.param.b32 [ret], %r2;
    ret;
}";

fn expected(n: u32) -> u32 {
    if n % 2 == 1 { 7 } else { n * (n + 1) / 2 }
}

/// Threads that part in a function meet again behind the call; each has its own parameters.
#[test]
fn a_call_gives_what_the_function_returns() {
    let body = "
    and.b32 %r10, %r7, 15;
    { .param .b32 p0; .param .align 8 .b8 p1[16]; .param .b32 back;
      st.param.b32 [p0+0], %r10;
      st.param.b32 [p1+4], 1000;
      st.param.v2.b32 [p1+8], {%r5, %r5};
      call.uni (back), both, (p0, p1);
      ld.param.b32 %r11, [back+0]; }
    bar.sync 0;
    st.global.u32 [%d3], %r11;";
    let done = case_with(SUM, 2, 64, body).silent();
    for (i, value) in done.a[..128].iter().enumerate() {
        let (n, lane) = (i as u32 % 16, i as u32 % 32);
        assert_eq!(*value, expected(n) + 1000 + lane, "{i}");
    }
}

#[test]
fn a_guarded_call_is_made_where_the_guard_holds() {
    let body = "
    setp.lt.u32 %p1, %r2, 10;
    mov.u32 %r11, 5;
    @%p1 call (%r11), sum, (%r2);
    @!%p1 call (%r11), sum, (4);
    st.global.u32 [%d3], %r11;";
    let done = case_with(SUM, 1, 32, body).silent();
    for (i, value) in done.a[..32].iter().enumerate() {
        assert_eq!(*value, if i < 10 { expected(i as u32) } else { 10 }, "{i}");
    }
}

/// As PTX is written by hand: parameters are registers. What is shared is one place, however often the function is called.
#[test]
fn registers_are_parameters_and_shared_variables_are_one() {
    let function = "
.func (.reg .b32 out) count(.reg .b32 by) {
    .shared .align 4 .b8 total[4];
    .reg .b32 at;
    mov.u32 at, total;
    ld.shared.u32 out, [at];
    add.u32 out, out, by;
    st.shared.u32 [at], out;
}
.func clear() {
    .shared .align 4 .b8 total[4];
    .reg .b32 r;
    mov.u32 r, total;
    st.shared.u32 [r], 77;
    ret;
}
.func (.reg .b32 out) first(.reg .b32 by) {
    .reg .b32 zero;
    .shared .align 4 .b8 other[4];
    mov.u32 zero, other;
    st.shared.u32 [zero], by;
    ld.shared.u32 out, [zero];
}";
    // `count` reads what was never written before the first call but for this.
    let body = "
    setp.eq.u32 %p1, %r2, 0;
    @!%p1 bra $done;
    call (%r10), first, (3);
    call (%r11), first, (%r10);
    call clear;
    st.global.u32 [%d1], %r11;
    call (%r12), count, (1);
$done:";
    case_with(function, 1, 32, body).fault(FaultKind::Uninitialised, "ld.shared.u32 out");
    let done = case_with(function, 1, 32, &body.replace("call (%r12), count, (1);", "")).silent();
    assert_eq!(done.a[0], 3);
    let kernel = case_with(function, 1, 32, body).module.kernel("k").unwrap().clone();
    assert_eq!(kernel.static_shared, 4096 + 3 * 4);
}

#[test]
fn a_fault_in_a_function_names_its_line() {
    let function = ".func bad(.param .b64 p) {\n.reg .b64 %rd; .reg .b32 %r;\nld.param.u64 %rd, [p];\nld.global.u32 %r, [%rd+999996];\n}";
    let case = case_with(function, 1, 32, "call bad, (%d1);");
    let fault = case.fault(FaultKind::OutOfBounds, "ld.global.u32 %r, [%rd+999996];");
    assert_eq!(fault.line, 7);
}

fn refusal(declarations: &str, body: &str) -> String {
    let text = format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n{declarations}\n.entry k() {{ .reg .b32 %r<4>; .reg .b64 %rd<4>;\n{body}\n}}"
    );
    Module::load(&text).unwrap_err().to_string()
}

#[test]
fn what_no_call_can_do_is_refused_in_words() {
    let f = ".func f() { call g; }\n.func g() { call h; }\n.func h() {\ncall f;\n}";
    assert_eq!(
        refusal(f, "call f;"),
        "PTX line 7: recursion is not supported: `f` calls `g` calls `h` calls `f`: `call f;`"
    );
    let one = ".func (.param .b32 r) f(.param .b32 p) { ret; }";
    let alone = ".extern .func (.param .b64 r) malloc(.param .b64 p);";
    for (declarations, body, message) in [
        (one, "call (%r1), f;", "`f` has 1 parameters, not 0"),
        (one, "call f, (%r1);", "`f` has 1 results, not 0"),
        (one, "call (%rd1), f, (%r1);", "the result of `f` does not fit"),
        (one, "call (%r1), f, (%r1, %r2);", "`f` has 1 parameters, not 2"),
        (one, "call (%r1), %rd1, (%r1), p;", "calls by address are not supported"),
        (one, "call %rd1;", "calls by address are not supported"),
        (one, "call g;", "unknown function `g`"),
        (one, "{ .param .b8 p; call (%r1), f, (p); }", "`p` has 1 bytes, not 4"),
        (alone, "call (%rd1), malloc, (%rd2);", "`malloc` is declared, but defined nowhere here"),
        (&format!("{one}\n{one}"), "call (%r1), f, (%r1);", "there is another `f`"),
        ("", "call;", "`call` needs the name of a function"),
        (".func f() { .local .b8 l[600000]; }", "call f;", "524288 bytes of local memory at most"),
    ] {
        let said = refusal(declarations, body);
        assert!(said.contains(message), "{body}: {said}");
    }
    // 2^40 calls, and a chain that is longer than any stack.
    let double: String = (0..40)
        .map(|i| format!(".func f{i}() {{ call f{}; call f{}; }}\n", i + 1, i + 1))
        .collect();
    assert!(
        refusal(&format!("{double}.func f40() {{ }}"), "call f0;")
            .contains("more than 65536 calls")
    );
    let chain: String =
        (0..9999).map(|i| format!(".func f{i}() {{ call f{}; }}\n", i + 1)).collect();
    assert!(refusal(&chain, "call f0;").contains("calls nest deeper than 64"));
}

const TEXTS: &str = "
.file 1 \"/src/kernel.cu\"
.extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
.extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
.global .align 1 .b8 message[6] = {105, 32, 60, 32, 110};
.global .align 1 .b8 file[5] = {97, 46, 99, 117};
.global .align 1 .b8 function[2] = {107};";

#[test]
fn an_assertion_that_does_not_hold_says_which_and_where() {
    let body = "
    setp.lt.u32 %p1, %r2, 5;
    @%p1 bra $fine;
    .loc 1 42 3
    mov.u64 %d10, message;
    cvta.global.u64 %d10, %d10;
    { .param .b64 p0; .param .b64 p1; .param .b32 p2; .param .b64 p3; .param .b64 p4;
      st.param.b64 [p0+0], %d10;
      mov.u64 %d11, file;
      st.param.b64 [p1+0], %d11;
      st.param.b32 [p2+0], 42;
      mov.u64 %d12, function;
      st.param.b64 [p3+0], %d12;
      st.param.b64 [p4+0], 1;
      call.uni __assertfail, (p0, p1, p2, p3, p4); }
$fine:";
    let case = case_with(TEXTS, 1, 32, body);
    let fault = case.fault(FaultKind::Assertion, "call.uni __assertfail");
    assert_eq!(fault.thread, [5, 0, 0]);
    assert_eq!(&*fault.detail, "`i < n` does not hold, a.cu:42, k (/src/kernel.cu:42)");
    let mut fine = case_with(TEXTS, 1, 5, body);
    fine.seeds = 2;
    fine.silent();
}

/// The bytes of a text as the values of an array, its 0 among them.
fn array(name: &str, text: &str) -> String {
    let bytes: Vec<String> = text.bytes().chain([0]).map(|byte| byte.to_string()).collect();
    format!(".global .align 1 .b8 {name}[{}] = {{{}}};\n", bytes.len(), bytes.join(", "))
}

#[test]
fn what_a_kernel_prints_is_what_c_prints() {
    let texts = TEXTS.to_owned()
        + &array(
            "format",
            "%d|%5d|%-5d|%05i|%+d|%u|%x|%#X|%c|%s|%8.3f|%.2e|%g|%g|%lld|%%|%5s|%p\n",
        )
        + &array("word", "warp");
    let values: [(&str, u64); 17] = [
        ("s32", -7i32 as u32 as u64),
        ("s32", 42),
        ("s32", 42),
        ("s32", -42i32 as u32 as u64),
        ("s32", 42),
        ("u32", 4_000_000_000),
        ("u32", 255),
        ("u32", 255),
        ("u32", 'z' as u64),
        ("word", 0),
        ("f64", 2.5f64.to_bits()),
        ("f64", 12345.678f64.to_bits()),
        ("f64", 0.0001f64.to_bits()),
        ("f64", 1e10f64.to_bits()),
        ("s64", -5i64 as u64),
        ("word", 0),
        ("s64", 0xabc),
    ];
    let (mut stores, mut at) = (String::new(), 0u64);
    for (ty, bits) in values {
        let wide = !matches!(ty, "s32" | "u32");
        at = at.next_multiple_of(if wide { 8 } else { 4 });
        stores += &match (ty, wide) {
            ("word", _) => format!("mov.u64 %d9, word; st.local.u64 [%d20+{at}], %d9;\n"),
            (_, true) => format!("mov.b64 %d9, {bits}; st.local.u64 [%d20+{at}], %d9;\n"),
            _ => format!("mov.b32 %r9, {bits}; st.local.u32 [%d20+{at}], %r9;\n"),
        };
        at += if wide { 8 } else { 4 };
    }
    let body = format!(
        ".local .align 8 .b8 values[256];
    mov.u64 %d20, values;
    {stores}
    cvta.local.u64 %d21, %d20;
    setp.ne.u32 %p1, %r2, 0;
    @%p1 bra $done;
    {{ .param .b64 p0; .param .b64 p1; .param .b32 back;
      mov.u64 %d22, format;
      st.param.b64 [p0], %d22;
      st.param.b64 [p1], %d21;
      call.uni (back), vprintf, (p0, p1);
      ld.param.b32 %r20, [back]; }}
    st.global.u32 [%d1], %r20;
$done:"
    );
    let case = case_with(&texts, 1, 32, &body);
    let mut memory = Memory::new(1 << 20);
    let done = case.run_in(&mut memory, 0, 1).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(done.a[0], values.len() as u32);
    assert_eq!(
        memory.take_printed(),
        "-7|   42|42   |-0042|+42|4000000000|ff|0XFF|z|warp|   2.500|1.23e+04|0.0001|1e+10|-5|%| warp|0xabc\n"
    );
    assert_eq!(memory.take_printed(), "");
}

#[test]
fn printing_what_is_not_there_is_a_fault() {
    let texts = TEXTS.to_owned() + &array("format", "%d");
    let call = |format: &str, values: &str| {
        case_with(
            &texts,
            1,
            32,
            &format!("mov.u64 %d22, {format};\ncall (%r9), vprintf, (%d22, {values});"),
        )
    };
    call("12345", "0").fault(FaultKind::OutOfBounds, "vprintf");
    let fault = call("format", "0").fault(FaultKind::OutOfBounds, "vprintf");
    assert_eq!(&*fault.detail, "prints a value for `%d` of 4 bytes at 0x0, where there is none");
}

/// One address is another place for each lane, whatever they store there.
#[test]
fn lanes_that_store_one_value_locally_all_store_it() {
    let body = "
    mov.u32 %r10, 5;
    st.local.u32 [l], %r10;
    ld.local.u32 %r11, [l];
    st.global.u32 [%d3], %r11;";
    let done = case_with("", 1, 32, body).silent();
    assert_eq!(words(done.a[..32].to_vec()), words([5; 32]));
}
