//! Kind `fold`: the layer before or after a normalization does its work. What the folded layer computes is
//! judged too, by a convolution from its definition.
use super::super::super::tolerance::Kind;
use super::super::{Document, narrow, widen};
use super::Outcome;
use super::layer::Layer;
use super::vectors::note_as;
use anyhow::{Result, ensure};
use batchnorm::{Config, Element, Engine, Folded, WeightLayout};

type Layout = fn(&[usize]) -> WeightLayout;

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let is_post = match document.text("position")? {
        "post" => true,
        "pre" => false,
        other => anyhow::bail!("position: expected post or pre, got {other:?}"),
    };
    let groups = document.count("groups")?;
    let is_transposed = document.value("transposed")?.as_bool() == Some(true);
    let layouts: &[(&str, Layout)] = match (document.count("dim")?, is_transposed) {
        (0, _) => &[("", WeightLayout::linear), ("_io", WeightLayout::dense)],
        (_, false) => &[("", WeightLayout::conv), ("_hwio", WeightLayout::keras_conv)],
        (_, true) => {
            &[("", WeightLayout::conv_transpose), ("_hwio", WeightLayout::flax_conv_transpose)]
        }
    };
    // Around axis 1 of x or y, which are (N, C, ..).
    let mut document = document.clone();
    document.set_count("axis", 1);
    let document = &document;
    let of = if is_post { "y" } else { "x" };
    let bn = Layer::<G, E>::new(engine, document, of, Config::default())?.bn;
    let by = bn.scale_shift()?;
    let host = |name: &str| -> Result<Vec<E>> {
        Ok(document.values(name)?.iter().map(|&v| narrow(v)).collect())
    };
    let bias = document.has("conv_bias").then(|| host("conv_bias")).transpose()?;
    let mut outcome = Outcome::default();
    for (form, layout) in layouts {
        let name = format!("conv_weight{form}");
        if !document.has(&name) {
            continue;
        }
        let layout = layout(&document.tensor(&name)?.dims)
            .groups(groups)
            .pads_with_zeros(document.count("padding")? > 0);
        let weight = host(&name)?;
        let folded = match is_post {
            true => by.fold_into_preceding(&layout, &weight, bias.as_deref())?,
            false => by.fold_into_following(&layout, &weight, bias.as_deref())?,
        };
        let Folded { weight, bias, .. } = folded;
        let (weight, bias) = (wide(weight), wide(bias));
        let as_elements = (document.dtype, Kind::Element, 0.0);
        if form.is_empty() {
            let y = convolution(document, &weight, &bias)?;
            note_as(&mut outcome, document, "y", y, as_elements)?;
        }
        note_as(&mut outcome, document, &format!("fused_weight{form}"), weight, as_elements)?;
        note_as(&mut outcome, document, "fused_bias", bias, as_elements)?;
    }
    Ok(outcome)
}

fn wide<E: Element>(values: Vec<E>) -> Vec<f64> {
    values.into_iter().map(widen).collect()
}

/// y of x: a convolution, or a linear layer, which is one without axes.
///
/// A tap k of the kernel joins place a on the one side to place `a * stride + k * dilation - padding` on the
/// other; the sides are y and x, of a transposed convolution x and y.
fn convolution(document: &Document, weight: &[f64], bias: &[f64]) -> Result<Vec<f64>> {
    let count = |key: &str| document.count(key);
    let (stride, padding, dilation) = (count("stride")?, count("padding")?, count("dilation")?);
    let is_transposed = document.value("transposed")?.as_bool() == Some(true);
    let (x, golden) = (document.tensor("x")?, document.tensor("y")?);
    let kernel = &document.tensor("conv_weight")?.dims;
    let (ins, outs) = (x.dims[1], golden.dims[1]);
    let (in_len, out_len): (usize, usize) =
        (x.dims[2..].iter().product(), golden.dims[2..].iter().product());
    let taps: usize = kernel[2..].iter().product();
    let groups = count("groups")?;
    let (group_ins, group_outs) = (ins / groups, outs / groups);
    ensure!(x.dims.len() == kernel.len(), "x: expected {} axes, got {:?}", kernel.len(), x.dims);
    let (sides, other_sides) = match is_transposed {
        true => (&x.dims[2..], &golden.dims[2..]),
        false => (&golden.dims[2..], &x.dims[2..]),
    };
    let mut y = vec![0.0; golden.values.len()];
    for (n, c) in (0..x.dims[0]).flat_map(|n| (0..outs).map(move |c| (n, c))) {
        y[(n * outs + c) * out_len..][..out_len].fill(bias[c]);
    }
    for at in 0..sides.iter().product() {
        for tap in 0..taps {
            let Some(other) = joined(at, sides, tap, &kernel[2..], other_sides, |a, k| {
                (a * stride + k * dilation).checked_sub(padding)
            }) else {
                continue;
            };
            let (from, to) = if is_transposed { (at, other) } else { (other, at) };
            for (o, i) in (0..outs).flat_map(|o| (0..group_ins).map(move |i| (o, i))) {
                let input = o / group_outs * group_ins + i;
                let w = match is_transposed {
                    true => weight[(input * group_outs + o % group_outs) * taps + tap],
                    false => weight[(o * group_ins + i) * taps + tap],
                };
                for n in 0..x.dims[0] {
                    let x = x.values[(n * ins + input) * in_len + from];
                    y[(n * outs + o) * out_len + to] += w * x;
                }
            }
        }
    }
    Ok(y)
}

/// The place that a tap joins to another one, both as one number in the order of memory; none outside.
fn joined(
    mut at: usize,
    sides: &[usize],
    mut tap: usize,
    kernel: &[usize],
    other_sides: &[usize],
    place: impl Fn(usize, usize) -> Option<usize>,
) -> Option<usize> {
    let (mut other, mut stride) = (0, 1);
    for axis in (0..sides.len()).rev() {
        let here = place(at % sides[axis], tap % kernel[axis])?;
        (at, tap) = (at / sides[axis], tap / kernel[axis]);
        if here >= other_sides[axis] {
            return None;
        }
        other += here * stride;
        stride *= other_sides[axis];
    }
    Some(other)
}
