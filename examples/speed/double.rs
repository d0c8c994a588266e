//! The gradients of a backward beside that backward, in turns. The backward reads x and the gradient of y twice and
//! writes one result, 5 tensors; these read one more twice and write one more, 8 tensors. Where both fit the cache
//! they are 3 and 5. By a mask that backward is one by it, too.
use super::steps::{By, SHAPES, has_words, in_turns, median};
use crate::table::{Case, data};
use anyhow::Result;
use batchnorm::{Activation, Backward, DType, DoubleBackward, Element, Engine, ForwardTrain};
use batchnorm::{Host, Mask, Saved};
use half::{bf16, f16};
use std::io::{self, Write};

/// Prints how many times a backward its gradients take.
pub fn compare<G: Engine<Memory = Host>>(engine: &G, words: &[&str], rounds: usize) -> Result<()> {
    let mut out = io::stdout();
    for dtype in ["f32", "bf16", "f16"] {
        for (dims, layout) in SHAPES {
            let ways = [
                (By::Batch, Activation::Identity),
                (By::Batch, Activation::Relu),
                (By::Batch, Activation::Silu),
                (By::Padded, Activation::Identity),
                (By::Padded, Activation::Relu),
                (By::Padded, Activation::Silu),
            ];
            for (by, activation) in ways {
                let case = Case::parse("bwd", dims, layout.name(), dtype)?;
                let places = by.places(&case);
                let padded = if places.is_some() { "padded-" } else { "" };
                let (dims, behind) = (case.dims_name(), format!("{padded}double-{activation}"));
                let name = format!("{dims:16} {:6} {dtype:5} {behind:18}", layout.name());
                if !has_words(&name, words) {
                    continue;
                }
                let (us, ratio) = match case.dtype {
                    DType::F32 => {
                        pair::<f32, G>(engine, (&case, places.as_deref()), activation, rounds)?
                    }
                    DType::F16 => {
                        pair::<f16, G>(engine, (&case, places.as_deref()), activation, rounds)?
                    }
                    _ => pair::<bf16, G>(engine, (&case, places.as_deref()), activation, rounds)?,
                };
                writeln!(out, "{name} {us:10.1} {ratio:7.2}")?;
            }
        }
    }
    Ok(())
}

/// Microseconds of the backward, and how many times that the other takes.
fn pair<E: Element<Acc = f32>, G: Engine<Memory = Host>>(
    engine: &G,
    (case, places): (&Case, Option<&[u8]>),
    activation: Activation,
    rounds: usize,
) -> Result<(f64, f64)> {
    let shape = case.shape()?;
    let [x, grad_y, v_x] =
        [data::X, data::GRAD_Y, data::RESIDUAL].map(|seed| data::tensor::<E>(case, seed));
    let zeros = || vec![E::default(); shape.len()];
    let (mut y, mut grad_x, mut gg_x) = (zeros(), zeros(), zeros());
    let channel = || vec![0.5; shape.channels()];
    let (mut of_weight, mut of_bias, weight) = (channel(), channel(), channel());
    let mut saved = Saved::new();
    let args = ForwardTrain::<Host, E>::new(&x, &mut y).saved(&mut saved).weight(&weight);
    let mut args = args.activation(activation);
    args.mask = places.map(Mask::<Host>::new);
    engine.forward_train(&shape, args)?;
    let plain = |grad_x: &mut [E], of_weight: &mut [f32], of_bias: &mut [f32]| {
        let mut args = Backward::<Host, E>::new(&saved, &x, &grad_y).grad_x(grad_x);
        args.mask = places;
        Ok(engine.backward(&shape, args.grad_weight(of_weight).grad_bias(of_bias))?)
    };
    let double = |gg_grad_y: &mut [E], gg_x: &mut [E], of_weight: &mut [f32]| {
        let mut args = DoubleBackward::<Host, E>::new(&saved, &x, &grad_y).v_x(&v_x);
        args.mask = places;
        let args = args.v_weight(&weight).v_bias(&weight);
        let args = args.gg_grad_y(gg_grad_y).gg_x(gg_x).gg_weight(of_weight);
        Ok(engine.double_backward(&shape, args)?)
    };
    let times = in_turns(rounds, |k| match k {
        0 => plain(&mut grad_x, &mut of_weight, &mut of_bias),
        _ => double(&mut y, &mut gg_x, &mut of_weight),
    })?;
    let [plain, double] = &times;
    let us = plain.iter().copied().fold(f64::INFINITY, f64::min) * 1e6;
    Ok((us, median(plain.iter().zip(double).map(|(a, b)| b / a).collect())))
}
