//! The operations compiled for each of the four types in this crate, once: a program that uses the
//! engine only links them, whatever its own optimization, instead of compiling every vector width
//! of every type again. That was most of what a test program took to build.
use super::Cpu;
use crate::engine;
use crate::{DType, Element, Host, Result, Shape};
use half::{bf16, f16};
use std::any::TypeId;
use std::mem::ManuallyDrop;

/// An operation, without the type that it works on.
pub(super) trait Operation {
    type Args<'a, E: Element>;
    fn run_f64(cpu: &Cpu, shape: &Shape, args: Self::Args<'_, f64>) -> Result<()>;
    fn run_f32(cpu: &Cpu, shape: &Shape, args: Self::Args<'_, f32>) -> Result<()>;
    fn run_f16(cpu: &Cpu, shape: &Shape, args: Self::Args<'_, f16>) -> Result<()>;
    fn run_bf16(cpu: &Cpu, shape: &Shape, args: Self::Args<'_, bf16>) -> Result<()>;
}

macro_rules! operation {
    ($name:ident, $method:ident) => {
        pub(super) struct $name;
        impl Operation for $name {
            type Args<'a, E: Element> = engine::$name<'a, Host, E>;
            operation!($name, $method, run_f64: f64, run_f32: f32, run_f16: f16, run_bf16: bf16);
        }
    };
    ($name:ident, $method:ident, $($run:ident: $t:ty),*) => {$(
        #[inline(never)] // else it could be compiled where it is called
        fn $run(cpu: &Cpu, shape: &Shape, args: engine::$name<'_, Host, $t>) -> Result<()> {
            cpu.$method(shape, args)
        }
    )*};
}
operation!(ForwardTrain, forward_train_of);
operation!(ForwardEval, forward_eval_of);
operation!(Backward, backward_of);
operation!(Stats, stats_of);

/// Runs what was compiled for the type that `E` is.
pub(super) fn run<O: Operation, E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    args: O::Args<'_, E>,
) -> Result<()> {
    match E::DTYPE {
        DType::F64 => O::run_f64(cpu, shape, same::<O, E, f64>(args)),
        DType::F32 => O::run_f32(cpu, shape, same::<O, E, f32>(args)),
        DType::F16 => O::run_f16(cpu, shape, same::<O, E, f16>(args)),
        DType::Bf16 => O::run_bf16(cpu, shape, same::<O, E, bf16>(args)),
    }
}

/// The arguments themselves: `T` must be `E`, which only the compiler does not know.
fn same<'a, O: Operation, E: Element, T: Element>(args: O::Args<'a, E>) -> O::Args<'a, T> {
    assert_eq!(TypeId::of::<E>(), TypeId::of::<T>(), "the dtype names another type");
    let args = ManuallyDrop::new(args);
    // SAFETY: E and T are one type, so both sides are one type, lifetime included; the original is
    // not used again, nor dropped.
    unsafe { std::mem::transmute_copy(&*args) }
}
