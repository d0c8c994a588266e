//! The operations compiled for each of the four types in this crate, once: a program that uses the
//! engine only links them, whatever its own optimization, instead of compiling every level of vector
//! instructions of every type again. That was most of what a test program took to build.
use super::{Cpu, backward, dealt, double_backward, forward, ghost, groups, layer_norm, stats};
use crate::engine::{
    Backward, DoubleBackward, ForwardEval, ForwardTrain, GroupRows, LayerNormBackward,
    LayerNormForward, Stats,
};
use crate::{Element, Host, Result, Saved, Shape};
use half::{bf16, f16};

/// What [`Cpu`] does for a type: its operations on tensors.
pub trait CpuOperations: Sized {
    #[doc(hidden)]
    fn forward_train(cpu: &Cpu, shape: &Shape, args: ForwardTrain<'_, Host, Self>) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn forward_eval(cpu: &Cpu, shape: &Shape, args: ForwardEval<'_, Host, Self>) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn backward(cpu: &Cpu, shape: &Shape, args: Backward<'_, Host, Self>) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn forward_train_groups(
        cpu: &Cpu,
        groups: &[Shape],
        args: ForwardTrain<'_, Host, Self>,
        saved: &mut [Saved<Host, Self::Acc>],
        factors: &[(f64, f64)],
    ) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn backward_groups(cpu: &Cpu, args: Backward<'_, Host, Self>) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn forward_train_at_once(
        cpu: &Cpu,
        shape: &Shape,
        groups: GroupRows,
        args: ForwardTrain<'_, Host, Self>,
        factors: &[(f64, f64)],
    ) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn double_backward(
        cpu: &Cpu,
        shape: &Shape,
        args: DoubleBackward<'_, Host, Self>,
    ) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn stats(cpu: &Cpu, shape: &Shape, args: Stats<'_, Host, Self>) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn layer_norm(cpu: &Cpu, shape: &Shape, args: LayerNormForward<'_, Host, Self>) -> Result<()>
    where
        Self: Element;
    #[doc(hidden)]
    fn layer_norm_backward(
        cpu: &Cpu,
        shape: &Shape,
        args: LayerNormBackward<'_, Host, Self>,
    ) -> Result<()>
    where
        Self: Element;
}

macro_rules! operations {
    ($($t:ty),*) => {$(
        // Never inlined: else they could be compiled where they are called.
        impl CpuOperations for $t {
            #[inline(never)]
            fn forward_train(cpu: &Cpu, shape: &Shape, args: ForwardTrain<'_, Host, $t>) -> Result<()> {
                match shape.dealt() {
                    Some(_) => dealt::forward_train(cpu, shape, args),
                    None => forward::forward_train(cpu, shape, args, None),
                }
            }
            #[inline(never)]
            fn forward_eval(cpu: &Cpu, shape: &Shape, args: ForwardEval<'_, Host, $t>) -> Result<()> {
                forward::forward_eval(cpu, shape, args)
            }
            #[inline(never)]
            fn backward(cpu: &Cpu, shape: &Shape, args: Backward<'_, Host, $t>) -> Result<()> {
                match shape.dealt() {
                    Some(_) => dealt::backward(cpu, shape, args),
                    None => backward::backward(cpu, shape, args, None),
                }
            }
            #[inline(never)]
            fn forward_train_groups(
                cpu: &Cpu,
                groups: &[Shape],
                args: ForwardTrain<'_, Host, $t>,
                saved: &mut [Saved<Host, <$t as Element>::Acc>],
                factors: &[(f64, f64)],
            ) -> Result<()> {
                groups::forward_train(cpu, groups, args, saved, factors)
            }
            #[inline(never)]
            fn backward_groups(cpu: &Cpu, args: Backward<'_, Host, $t>) -> Result<()> {
                groups::backward(cpu, args)
            }
            #[inline(never)]
            fn forward_train_at_once(
                cpu: &Cpu,
                shape: &Shape,
                groups: GroupRows,
                args: ForwardTrain<'_, Host, $t>,
                factors: &[(f64, f64)],
            ) -> Result<()> {
                ghost::forward_train(cpu, shape, groups, args, factors)
            }
            #[inline(never)]
            fn double_backward(
                cpu: &Cpu,
                shape: &Shape,
                args: DoubleBackward<'_, Host, $t>,
            ) -> Result<()> {
                match shape.dealt() {
                    Some(_) => dealt::double_backward(cpu, shape, args),
                    None => double_backward::double_backward(cpu, shape, args),
                }
            }
            #[inline(never)]
            fn stats(cpu: &Cpu, shape: &Shape, args: Stats<'_, Host, $t>) -> Result<()> {
                stats::stats(cpu, shape, args)
            }
            #[inline(never)]
            fn layer_norm(cpu: &Cpu, shape: &Shape, args: LayerNormForward<'_, Host, $t>) -> Result<()> {
                layer_norm::forward(cpu, shape, args)
            }
            #[inline(never)]
            fn layer_norm_backward(
                cpu: &Cpu,
                shape: &Shape,
                args: LayerNormBackward<'_, Host, $t>,
            ) -> Result<()> {
                layer_norm::backward(cpu, shape, args)
            }
        }
    )*};
}
operations!(f64, f32, f16, bf16);
