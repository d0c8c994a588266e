//! What a text becomes, and what is refused: always with its line and form.

mod support;

use ptx_vm::instr::{
    Address, AtomicOp, BarrierMode, Fill, Guard, Kernel, Op, Order, Scope, ShuffleMode, Space,
    Special, Type, VoteMode,
};
use ptx_vm::{LoadError, Module};
use std::sync::Arc;
use support::text;

const REGISTERS: &str = ".reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .f64 %fd<9>;";

fn kernel(body: &str) -> Arc<Kernel> {
    Module::load(&text(REGISTERS, body)).unwrap_or_else(|error| panic!("{error}")).kernels()[0]
        .clone()
}

fn refusal(body: &str) -> LoadError {
    match Module::load(&text(REGISTERS, body)) {
        Ok(_) => panic!("`{body}` was taken"),
        Err(error) => error,
    }
}

/// The first instruction.
fn op(body: &str) -> Op {
    kernel(body).code[0].op.clone()
}

#[track_caller]
fn refused(body: &str, message: &str) {
    let error = refusal(body);
    assert_eq!((error.line, error.form.as_str()), (7, body), "{error}");
    assert!(error.message.contains(message), "`{}` does not say `{message}`", error.message);
}

#[test]
fn unknown_forms_are_refused() {
    refused("frobnicate.b32 %r1, %r2;", "unknown instruction `frobnicate`");
    refused("add.frob.s32 %r1, %r2, %r3;", "unknown modifier `.frob` of `add`");
    refused("add.s33 %r1, %r2, %r3;", "`add` needs a type");
    refused("add.b32 %r1, %r2, %r3;", "`add` has no type B32");
    refused("add.s32 %r1, %r2, %r77;", "unknown register `%r77`");
    refused("add.s32 %r1, %r2, %clock64;", "register `%clock64` has 64 bits, not 32");
    refused("add.s32 %r1, %r2, %rd3;", "register `%rd3` has 64 bits, not 32");
    refused("add.s32 %r1, %r2;", "`add` has 3 operands, not 2");
    refused("add.s32 %p1, %r2, %r3;", "register `%p1` has a predicate, not 32 bits");
    refused("selp.b32 %r1, %r2, %r3, %r4;", "register `%r4` has 32 bits, not a predicate");
    refused("bra $nowhere;", "unknown label `$nowhere`");
    refused("@%p77 exit;", "unknown register `%p77`");
    refused("mul.s32 %r1, %r2, %r3;", "needs `.lo`, `.hi` or `.wide`");
    refused("fma.f32 %f1, %f2, %f3, %f4;", "needs a rounding");
    refused("cvt.s32.f32 %r1, %f1;", "a rounding is missing");
    refused("cvt.f32.s32 %f1, %r1;", "a rounding is missing");
    refused("cvt.rn.s32.f32 %r1, %f1;", "an integral rounding is needed");
    refused("cvt.rna.f16.f32 %rs1, %f1;", "that rounding does not belong here");
    refused("cvt.rni.f16.f32 %rs1, %f1;", "that rounding does not belong here");
    refused("setp.lo.f32 %p1, %f1, %f2;", "comparison `.lo` is not for F32");
    refused("sqrt.approx.f64 %fd1, %fd2;", "`sqrt.approx` of F64");
    refused("mov.b64 %rd1, {%r1, %r2, %r3};", "so many registers do not fit");
    refused("min.f32 %f1, %f2, %f3, %f4;", "`min` has 3 operands, not 4");
}

#[test]
fn unknown_accesses_are_refused() {
    refused("ld.global.evict.f32 %f1, [%rd1];", "unknown modifier `.evict` of `ld`");
    refused("ld.global.v8.f32 %f1, [%rd1];", "unknown modifier `.v8`");
    refused("ld.shared::cluster.f32 %f1, [%r1];", "unknown modifier `.shared::cluster`");
    refused("ld.acquire.global.f32 %f1, [%rd1];", "a scope is missing");
    refused("ld.release.gpu.global.f32 %f1, [%rd1];", "a load cannot release");
    refused("st.acquire.gpu.global.f32 [%rd1], %f1;", "a store cannot acquire");
    refused("ld.global.f32 %f1, [%r1];", "is no address here");
    refused("ld.global.f64 %f1, [%rd1];", "does not fit a register of 32 bits");
    refused("ld.global.v2.f32 {%f1}, [%rd1];", "1 registers where 2 belong");
    refused("st.global.f64 [%rd1], %f1;", "register `%f1` has 32 bits, not 64");
    refused("st.param.u64 [p], %rd1;", "cannot be written");
    refused("ld.global.u32 %r1, [p];", "lies in Param memory, not Global");
    refused("atom.global.and.f32 %f1, [%rd1], %f2;", "no And of F32");
    refused("red.global.exch.b32 [%rd1], %r1;", "cannot exchange");
    refused("atom.global.cas.b32 %r1, [%rd1], %r2;", "`atom` with 3 operands");
    refused("fence.proxy.async;", "`fence` needs a scope");
    refused("shfl.bfly.b32 %r1, %r2, 1, 31;", "without `.sync`");
    refused("barrier.cluster.arrive;", "unknown modifier `.cluster`");
    refused("bar.red.popc.u32 %r1, 0;", "`bar` with 2 operands");
    refused("cp.async.ca.shared.global [%r1], [%rd1], 16;", "unknown instruction `cp`");
    refused("call foo;", "unknown function `foo`");
}

#[test]
fn texts_that_are_no_ptx_are_refused() {
    let whole = |text: &str| Module::load(text).unwrap_err();
    let error =
        whole(".version 7.8\n.target sm_80\n.address_size 64\n.extern .global .u32 counter;\n");
    assert_eq!(
        error.to_string(),
        "PTX line 4: `counter` is defined in another module: there is no linker: `.extern .global .u32 counter;`"
    );
    let error = whole(".version 7.8\n.target sm_80\n.address_size 32\n");
    assert_eq!((error.line, error.message.as_str()), (3, "addresses of 64 bits only"));
    let error = whole(".version 7.8\n.target sm_80\n.func f() .frob { ret; }\n");
    assert_eq!(
        (error.line, error.message.as_str()),
        (3, "unknown directive `.frob` of a function")
    );
    assert_eq!(whole(".version 7.8\n/* never ends").line, 2);
    assert!(
        whole(".version 7.8\n.target sm_80\n.visible .entry k()\n{\nret;\n")
            .message
            .contains("too early")
    );
    assert!(whole("\u{7f}ELF").message.contains("does not have"));
    let error = refusal("add.s32 %r1, %r2\nsub.s32 %r1, %r2, %r3;");
    assert_eq!(error.line, 7);
    assert!(error.message.contains("`;`") || error.message.contains("`,`"), "{error}");
    let error = refusal("$a:\nmov.u32 %r1, 1;\n$a:\nret;");
    assert_eq!((error.line, error.form.as_str()), (9, "$a:"));
}

#[test]
fn kernels_have_the_driver_s_layout() {
    let module = Module::load(
        ".version 7.8\n.target sm_90a, texmode_independent\n.address_size 64\n\
         .file 1 \"kernel.cu\"\n\
         .extern .shared .align 16 .b8 dynamic[];\n\
         .shared .align 4 .b8 used[108];\n\
         .shared .align 8 .b8 unused[1000];\n\
         .visible .entry first(\n.param .u32 first_0,\n.param .u64 .ptr .global .align 16 first_1,\n\
         .param .align 8 .b8 first_2[12],\n.param .u8 first_3\n)\n\
         .maxntid 64, 4, 1\n.minnctapersm 2\n.pragma \"nounroll\";\n\
         {\n.reg .b32 %r<4>; .reg .b64 %rd<3>;\n.shared .align 8 .f64 own;\n.local .align 16 .b8 __local_depot0[40];\n\
         .loc 1 5 3\n\
         mov.u32 %r1, used;\nmov.u64 %rd1, own;\nmov.u32 %r2, dynamic;\nmov.u64 %rd2, __local_depot0;\n\
         ld.param.u32 %r3, [first_2+4];\nld.shared.u32 %r3, [dynamic+8];\nret;\n}\n\
         .visible .entry second()\n.reqntid 32\n{\nret;\n}\n",
    )
    .unwrap();
    assert_eq!(module.target(), 90);
    assert_eq!(
        module.kernels().iter().map(|kernel| kernel.name.as_str()).collect::<Vec<_>>(),
        ["first", "second"]
    );
    let first = module.kernel("first").unwrap();
    let layout: Vec<_> = first.params.iter().map(|param| (param.offset, param.size)).collect();
    assert_eq!(layout, [(0, 4), (8, 8), (16, 12), (28, 1)]);
    assert_eq!(first.param_bytes, 29);
    assert_eq!((first.max_threads, first.min_blocks), (Some(256), Some(2)));
    // `used` takes 108 bytes, `own` begins at the next multiple of 8, the dynamic part at the next of 16.
    assert_eq!((first.static_shared, first.local), (128, 40));
    let constants: Vec<u64> = first
        .fills
        .iter()
        .map(|(_, fill)| match fill {
            Fill::Constant(bits) => *bits,
            Fill::Special(special) => panic!("{special:?}"),
            Fill::Symbol(..) => panic!("no variable is there"),
        })
        .collect();
    assert_eq!(constants, [0, 112, 128]);
    let Op::Load { address, .. } = first.code[4].op else { panic!() };
    assert_eq!(address, Address { space: Space::Param, base: None, offset: 20 });
    let Op::Load { address, .. } = first.code[5].op else { panic!() };
    assert_eq!(address, Address { space: Space::Shared, base: None, offset: 136 });
    let second = module.kernel("second").unwrap();
    assert_eq!((second.max_threads, second.static_shared, second.param_bytes), (Some(32), 0, 0));
    assert!(module.kernel("third").is_none());
}

#[test]
fn lines_and_guards_are_kept() {
    let kernel = kernel("setp.eq.s32 %p1, %r1, 0;\n@%p1 add.s32\n %r1, %r1, 1;\n@!%p1 exit;");
    let Op::Alu(setp) = &kernel.code[0].op else { panic!() };
    assert_eq!(kernel.code[0].guard, None);
    assert_eq!(kernel.code[1].guard, Some(Guard { reg: setp.to[0], negated: false }));
    assert_eq!(kernel.code[2].guard, Some(Guard { reg: setp.to[0], negated: true }));
    assert_eq!([7, 8, 10], [0, 1, 2].map(|i: usize| kernel.code[i].line));
    assert_eq!(kernel.source[kernel.code[2].line as usize - 1], "@!%p1 exit;");
}

#[test]
fn blocks_hide_names() {
    // Inline assembly declares registers and labels of its own.
    let kernel = kernel(
        "mov.u32 %r1, 1;\n{ .reg .b32 %r<2>; .reg .pred p; mov.u32 %r1, 2;\nsetp.eq.u32 p, %r1, 2;\n@p bra done;\nmov.u32 %r1, 3;\ndone: }\n\
         { .reg .pred p; setp.eq.u32 p, %r1, 1; @p bra done; mov.u32 %r2, 5; done: }\nmov.u32 %r1, 4;",
    );
    let written = |i: usize| match &kernel.code[i].op {
        Op::Alu(alu) => alu.to[0],
        other => panic!("{other:?}"),
    };
    assert_eq!(written(0), written(8), "the outer register");
    assert_ne!(written(0), written(1), "the inner one");
    assert_eq!(written(1), written(4));
    let targets: Vec<u32> = kernel
        .code
        .iter()
        .filter_map(|instr| match instr.op {
            Op::Branch { target, .. } => Some(target),
            _ => None,
        })
        .collect();
    assert_eq!(targets, [5, 8]);
}

#[test]
fn branches_find_labels_both_ways() {
    let kernel = kernel("$top:\nadd.s32 %r1, %r1, 1;\nbra.uni $end;\n{ bra $top; }\n$end:");
    assert_eq!(kernel.code[1].op, Op::Branch { target: 3, uniform: true });
    assert_eq!(kernel.code[2].op, Op::Branch { target: 0, uniform: false });
    assert_eq!(kernel.code[3].op, Op::Exit);
    // Falling off the end is leaving too.
    assert_eq!(kernel.code.last().unwrap().op, Op::Exit);
}

#[test]
fn special_registers_and_numbers_are_filled_once() {
    let kernel = kernel(
        "mov.u32 %r1, %tid.x;\nmov.u32 %r2, %tid.x;\nadd.s32 %r3, %r1, 7;\nadd.s64 %rd1, %rd1, 7;\nmov.u32 %r4, %nctaid.z;\nmov.u32 %r5, %laneid;\nmov.u32 %r6, %lanemask_lt;",
    );
    let fills: Vec<Fill> = kernel.fills.iter().map(|&(_, fill)| fill).collect();
    let special = Fill::Special;
    assert_eq!(
        fills,
        [
            special(Special::Thread(0)),
            Fill::Constant(7),
            special(Special::Blocks(2)),
            special(Special::Lane),
            special(Special::LaneMaskLt),
        ]
    );
}

#[test]
fn loads_and_stores_have_orders() {
    let order = |body: &str| match op(body) {
        Op::Load { order, .. }
        | Op::Store { order, .. }
        | Op::Fence { order }
        | Op::Atomic { order, .. } => order,
        other => panic!("{other:?}"),
    };
    use Order::*;
    for (body, expected) in [
        ("ld.global.u32 %r1, [%rd1];", Weak),
        ("ld.weak.global.u32 %r1, [%rd1];", Weak),
        ("ld.global.nc.L1::no_allocate.L2::128B.u32 %r1, [%rd1];", Weak),
        ("ld.global.cg.u32 %r1, [%rd1];", Weak),
        ("ld.volatile.global.u32 %r1, [%rd1];", Volatile),
        ("ld.relaxed.gpu.global.u32 %r1, [%rd1];", Relaxed(Scope::Device)),
        ("ld.acquire.gpu.u32 %r1, [%rd1];", Acquire(Scope::Device)),
        ("ld.acquire.sys.global.u32 %r1, [%rd1];", Acquire(Scope::System)),
        ("ld.acquire.cta.shared.u32 %r1, [%r1];", Acquire(Scope::Block)),
        ("st.release.gpu.global.u32 [%rd1], %r1;", Release(Scope::Device)),
        ("st.volatile.shared.u32 [%r1], %r1;", Volatile),
        ("st.global.wt.u32 [%rd1], %r1;", Weak),
        ("fence.acq_rel.gpu;", AcquireRelease(Scope::Device)),
        ("fence.sc.cta;", SequentiallyConsistent(Scope::Block)),
        ("membar.gl;", SequentiallyConsistent(Scope::Device)),
        ("membar.cta;", SequentiallyConsistent(Scope::Block)),
        ("membar.sys;", SequentiallyConsistent(Scope::System)),
        ("atom.global.add.u32 %r1, [%rd1], 1;", Relaxed(Scope::Device)),
        ("atom.add.release.gpu.u32 %r1, [%rd1], 1;", Release(Scope::Device)),
        ("atom.acq_rel.sys.global.cas.b64 %rd1, [%rd2], 1, 2;", AcquireRelease(Scope::System)),
        ("atom.cta.shared.add.u32 %r1, [%r2], 1;", Relaxed(Scope::Block)),
        ("red.release.gpu.global.add.u32 [%rd1], 1;", Release(Scope::Device)),
    ] {
        assert_eq!(order(body), expected, "{body}");
    }
}

#[test]
fn vectors_and_narrow_loads() {
    let Op::Load { ty, count, regs, address, .. } =
        op("ld.global.cs.v4.f32 {%f1, _, %f2, %f1}, [%rd1+-16];")
    else {
        panic!()
    };
    assert_eq!((ty, count, address.space, address.offset), (Type::F32, 4, Space::Global, -16));
    assert_eq!(regs[0], regs[3]);
    assert_ne!(regs[0], regs[1]);
    let Op::Store { count, regs, .. } = op("st.shared.v2.f32 [%r1], {%f1, 0f3F800000};") else {
        panic!()
    };
    assert_eq!(count, 2);
    assert_ne!(regs[0], regs[1]);
    // A signed byte is extended to its register by a conversion behind the load, under the same guard.
    let kernel = kernel("@%p1 ld.global.s8 %r1, [%rd1];");
    let (Op::Load { regs, .. }, Op::Alu(extend)) = (&kernel.code[0].op, &kernel.code[1].op) else {
        panic!()
    };
    assert_eq!((extend.to[0], extend.from[0]), (regs[0], regs[0]));
    assert_eq!(kernel.code[0].guard, kernel.code[1].guard);
    let mut registers = ptx_vm::registers::Registers::of(&kernel);
    registers.row_mut(regs[0])[0] = 0x80;
    ptx_vm::alu::execute(extend, &mut registers, 1);
    assert_eq!(registers.row(regs[0])[0], 0xffff_ff80);
}

#[test]
fn atomics_have_results_or_none() {
    let Op::Atomic { op: add, ty, result, values, .. } = op("red.global.add.f64 [%rd1], %fd1;")
    else {
        panic!()
    };
    assert_eq!((add, ty, result, values[0]), (AtomicOp::Add, Type::F64, None, values[1]));
    let Op::Atomic { op: cas, result, values, .. } =
        op("atom.global.cas.b32 %r1, [%rd1], %r2, %r3;")
    else {
        panic!()
    };
    assert_eq!(cas, AtomicOp::CompareExchange);
    assert!(result.is_some());
    assert_ne!(values[0], values[1]);
    let Op::Atomic { result, .. } = op("atom.global.inc.u32 _, [%rd1], 5;") else { panic!() };
    assert_eq!(result, None);
    let Op::Atomic { ty, .. } = op("atom.global.add.noftz.f16x2 %r1, [%rd1], %r2;") else {
        panic!()
    };
    assert_eq!(ty, Type::F16x2);
}

#[test]
fn warps_and_blocks_meet() {
    let Op::Shuffle { mode, found, .. } = op("shfl.sync.bfly.b32 %r1|%p1, %r2, 16, 31, -1;") else {
        panic!()
    };
    assert_eq!(mode, ShuffleMode::Butterfly);
    assert!(found.is_some());
    let Op::Shuffle { mode, found, .. } = op("shfl.sync.down.b32 %r1, %r2, %r3, 31, -1;") else {
        panic!()
    };
    assert_eq!((mode, found), (ShuffleMode::Down, None));
    let Op::Vote { mode, negated, .. } = op("vote.sync.ballot.b32 %r1, !%p1, -1;") else {
        panic!()
    };
    assert_eq!((mode, negated), (VoteMode::Ballot, true));
    let Op::Vote { mode, .. } = op("vote.sync.any.pred %p1, %p2, -1;") else { panic!() };
    assert_eq!(mode, VoteMode::Any);
    let Op::Barrier { mode, aligned, threads, .. } = op("bar.sync 0;") else { panic!() };
    assert_eq!((mode, aligned, threads), (BarrierMode::Sync, true, None));
    let Op::Barrier { aligned, threads, .. } = op("barrier.sync 1, %r1;") else { panic!() };
    assert!(!aligned && threads.is_some());
    let Op::Barrier { mode, result, value, .. } = op("bar.red.and.pred %p1, 0, !%p2;") else {
        panic!()
    };
    assert_eq!(mode, BarrierMode::And);
    assert!(result.is_some() && value.is_some_and(|(_, negated)| negated));
    let Op::Barrier { mode, threads, .. } = op("bar.arrive 1, 64;") else { panic!() };
    assert_eq!(mode, BarrierMode::Arrive);
    assert!(threads.is_some());
    assert!(matches!(op("bar.warp.sync -1;"), Op::WarpBarrier { .. }));
    assert!(matches!(op("activemask.b32 %r1;"), Op::ActiveMask { .. }));
    assert_eq!(op("trap;"), Op::Trap);
    assert_eq!(op("prefetch.global.L2 [%rd1];"), Op::Nop);
    assert!(matches!(op("nanosleep.u32 100;"), Op::Sleep { .. }));
}

#[test]
fn registers_that_are_not_in_use_at_one_time_are_one() {
    let chain: String = (1..100).map(|i| format!("add.s32 %r{}, %r{}, 1;\n", i + 1, i)).collect();
    let text = |body: &str| {
        format!(
            ".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n\
             .reg .b32 %r<200>; .reg .pred %p<3>;\n{body}\nret;\n}}\n"
        )
    };
    let kernel = |body: &str| Module::load(&text(body)).unwrap().kernel("k").unwrap().clone();
    // Two of the chain at a time, and the number 1.
    assert_eq!(kernel(&chain).registers, 3);
    // What a later turn of a loop reads keeps its place through the loop; so do both constants.
    let chain = chain.replace("%r1,", "%r150,");
    let turn = format!(
        "top:\n{chain}mov.u32 %r150, %r151;\nmov.u32 %r151, %r100;\n\
         setp.lt.s32 %p1, %r150, 7;\n@%p1 bra top;"
    );
    let looped = kernel(&turn);
    let Op::Alu(first) = &looped.code[0].op else { panic!() };
    let carried = first.from[0];
    let carries = |reg| {
        looped.code[..99].iter().all(|instr| match &instr.op {
            Op::Alu(alu) => alu.to[0] != reg,
            _ => true,
        })
    };
    assert!(carries(carried), "written within the loop before it is read in the next turn");
    let Op::Alu(moved) = &looped.code[99].op else { panic!() };
    assert!(carries(moved.from[0]) && moved.from[0] != carried);
    assert_eq!(moved.to[0], carried);
    // One that is written before a loop and read at its top is read in every turn.
    let before = kernel(&format!("mov.u32 %r150, 5;\ntop:\n{chain}@%p1 bra top;"));
    let Op::Alu(written) = &before.code[0].op else { panic!() };
    let overwrites = |instr: &ptx_vm::instr::Instr| match &instr.op {
        Op::Alu(alu) => alu.to[0] == written.to[0],
        _ => false,
    };
    assert!(!before.code[1..].iter().any(overwrites));
    // Where a guard does not hold the old value stays, so that it must not lose its place.
    let guarded =
        kernel("mov.u32 %r1, 5;\nmov.u32 %r2, 6;\n@%p1 mov.u32 %r1, %r2;\nadd.s32 %r3, %r1, %r1;");
    let written = |i: usize| match &guarded.code[i].op {
        Op::Alu(alu) => alu.to[0],
        other => panic!("{other:?}"),
    };
    assert_eq!(written(0), written(2));
    assert_ne!(written(0), written(1));
}
