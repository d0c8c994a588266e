//! Folding into convolutions and linear layers: golden cases have the numbers, here is what they leave out.
use crate::support::engines::engines;
use crate::support::layer::{layer, numbers, up};
use batchnorm::{
    Activation, BatchNorm, Config, Element, Engine, Error, Folded, Reference, WeightLayout,
};

engines! { [reference, cpu, cuda, cudnn, gpu] [a_layer_is_folded_off_any_memory] }

/// A layer whose every channel has a scale and a shift of its own.
fn trained<G: Engine>(engine: &G, channels: usize, config: Config) -> BatchNorm<f32, G> {
    let mut bn = BatchNorm::<f32, G>::new(engine, channels, config).unwrap();
    let seeded = |seed| numbers::<f32>(channels, seed);
    for (i, (_, param)) in bn.named_parameters_mut().enumerate() {
        param.value = up(engine, &seeded(i as u64));
    }
    let running = bn.running_mut().unwrap();
    running.mean = up(engine, &seeded(5));
    running.var = up(engine, &seeded(6).iter().map(|v| v * v + 0.25).collect::<Vec<_>>());
    bn
}

fn a_layer_is_folded_off_any_memory<G: Engine>(engine: &G) {
    let right = trained(&Reference, 3, Config::default()).scale_shift().unwrap();
    assert_eq!(trained(engine, 3, Config::default()).scale_shift().unwrap(), right);
}

/// y of one place and kernel 1, by output and input channel.
fn product(weights: &[[f64; 3]], x: [f64; 3], bias: &[f64]) -> Vec<f64> {
    let y = |(w, b): (&[f64; 3], &f64)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b;
    weights.iter().zip(bias).map(y).collect()
}

/// All layouts of the same 3 to 3 channels, weights by output and input.
#[test]
fn every_layout_holds_the_same_weights() {
    let bn = trained(&Reference, 3, Config::default());
    let by = bn.scale_shift().unwrap();
    let w: Vec<f64> = numbers::<f64>(9, 1);
    let rows: Vec<[f64; 3]> = w.as_chunks().0.to_vec();
    let by_input: Vec<f64> = (0..9).map(|i| rows[i % 3][i / 3]).collect();
    let b: Vec<f64> = numbers(3, 2);
    let x = [0.5, -1.5, 2.0];
    let normalized: Vec<f64> = (0..3).map(|c| x[c] * by.scale()[c] + by.shift()[c]).collect();
    let before: Vec<f64> = product(&rows, x, &b);
    let before: Vec<f64> = (0..3).map(|c| before[c] * by.scale()[c] + by.shift()[c]).collect();
    let after = product(&rows, [normalized[0], normalized[1], normalized[2]], &b);
    let outputs_first = [
        WeightLayout::conv(&[3, 3, 1, 1]),
        WeightLayout::linear(&[3, 3]),
        WeightLayout::keras_conv_transpose(&[1, 1, 3, 3]),
    ];
    let inputs_first = [
        WeightLayout::conv_transpose(&[3, 3, 1]),
        WeightLayout::keras_conv(&[1, 3, 3]),
        WeightLayout::flax_conv_transpose(&[1, 1, 1, 3, 3]),
        WeightLayout::dense(&[3, 3]),
    ];
    let all = outputs_first.iter().map(|layout| (layout, &w, true));
    for (layout, weight, outputs_first) in
        all.chain(inputs_first.iter().map(|layout| (layout, &by_input, false)))
    {
        let check = |folded: Folded<f64>, right: &[f64]| {
            let at = |o: usize, i: usize| if outputs_first { 3 * o + i } else { 3 * i + o };
            let rows = [0, 1, 2].map(|o| [0, 1, 2].map(|i| folded.weight[at(o, i)]));
            for (got, right) in product(&rows, x, &folded.bias).iter().zip(right) {
                approx::assert_abs_diff_eq!(*got, *right, epsilon = 1e-12);
            }
        };
        check(by.fold_into_preceding(layout, weight, Some(&b)).unwrap(), &before);
        match by.fold_into_following(layout, weight, Some(&b)) {
            Ok(folded) => check(folded, &after),
            Err(error) => {
                assert!(format!("{layout:?}").contains("transposed: true"), "{layout:?}");
                assert!(error.to_string().contains("transposed convolution"), "{error}");
            }
        }
    }
}

/// The groups' channels: two inputs and four outputs in two groups, and a depthwise multiplier of two.
#[test]
fn groups_keep_to_their_channels() {
    let two = trained(&Reference, 2, Config::default()).scale_shift().unwrap();
    let four = trained(&Reference, 4, Config::default()).scale_shift().unwrap();
    // Output o belongs to input o / 2.
    let grouped = [
        (WeightLayout::conv(&[4, 1, 1]).groups(2), [0, 1, 2, 3]),
        (WeightLayout::keras_conv(&[1, 1, 4]).groups(2), [0, 1, 2, 3]),
        (WeightLayout::conv_transpose(&[2, 2, 1]).groups(2), [0, 1, 2, 3]),
        (WeightLayout::flax_conv_transpose(&[1, 2, 2]).groups(2), [0, 1, 2, 3]),
        (WeightLayout::keras_conv_transpose(&[1, 2, 2]).groups(2), [0, 2, 1, 3]),
        (WeightLayout::keras_depthwise_conv(&[1, 1, 2, 2]), [0, 1, 2, 3]),
    ];
    for (layout, outputs) in grouped {
        let folded = four.fold_into_preceding(&layout, &[1.0f64; 4], None).unwrap();
        assert_eq!(folded.weight, outputs.map(|o| four.scale()[o]), "{layout:?}");
        assert_eq!(folded.bias, four.shift(), "{layout:?}");
        let Ok(folded) = two.fold_into_following(&layout, &[1.0f64; 4], None) else { continue };
        assert_eq!(folded.weight, outputs.map(|o| two.scale()[o / 2]), "{layout:?}");
        assert_eq!(folded.bias, [0, 0, 1, 1].map(|i| two.shift()[i]), "{layout:?}");
    }
}

/// Without shifts nothing is lost at the edges.
#[test]
fn a_scale_alone_folds_into_any_following_layer() {
    let config = Config::default().bias(false);
    let mut bn = layer::<f32, _>(&Reference, config);
    bn.running_mut().unwrap().mean = vec![0.0; 3];
    let by = bn.scale_shift().unwrap();
    for layout in [
        WeightLayout::conv(&[1, 3, 3]).pads_with_zeros(true),
        WeightLayout::conv_transpose(&[3, 1, 3]).pads_with_zeros(true),
    ] {
        let folded = by.fold_into_following(&layout, &[1.0f32; 9], Some(&[0.5])).unwrap();
        let right = [0, 1, 2].map(|c| [by.scale()[c] as f32; 3]);
        assert_eq!((folded.weight, folded.bias), (right.concat(), vec![0.5]));
    }
}

fn message<E: Element>(folded: batchnorm::Result<Folded<E>>) -> String {
    folded.map(|_| ()).unwrap_err().to_string()
}

#[test]
fn what_does_not_fold_is_refused_in_words() {
    let by = trained(&Reference, 3, Config::default()).scale_shift().unwrap();
    let (conv, w) = (WeightLayout::conv(&[3, 3, 2]), [0.5f32; 18]);
    let pre = |layout: &WeightLayout| message(by.fold_into_following(layout, &w, None));
    let post = |layout: &WeightLayout| message(by.fold_into_preceding(layout, &w, None));
    let padded = pre(&conv.clone().pads_with_zeros(true));
    assert!(
        padded.starts_with("shift: expected 0 in every channel before a layer that pads"),
        "{padded}"
    );
    assert!(padded.contains("; got ") && padded.ends_with(" in channel 0"), "{padded}");
    let transposed = pre(&WeightLayout::conv_transpose(&[3, 3, 2]));
    assert!(transposed.contains("before a transposed convolution"), "{transposed}");
    assert_eq!(
        post(&WeightLayout::conv(&[2, 3, 3])),
        "output channels: expected the normalization's 3, got a layer of 2"
    );
    assert_eq!(
        pre(&WeightLayout::conv(&[3, 2, 3])),
        "input channels: expected the normalization's 3, got a layer of 2"
    );
    for (layout, right) in [
        (WeightLayout::conv(&[3, 6]), "weight: expected at least 3 axes, got the shape [3, 6]"),
        (WeightLayout::keras_conv(&[18]), "weight: expected at least 3 axes, got the shape [18]"),
        (WeightLayout::linear(&[3, 3, 2]), "weight: expected 2 axes, got the shape [3, 3, 2]"),
        (WeightLayout::dense(&[]), "weight: expected 2 axes, got the shape []"),
        (
            WeightLayout::conv(&[3, 0, 6]),
            "weight: expected axes of at least 1, got the shape [3, 0, 6]",
        ),
        (conv.clone().groups(0), "groups: expected a divisor of the 3 output channels, got 0"),
        (conv.clone().groups(2), "groups: expected a divisor of the 3 output channels, got 2"),
        (
            WeightLayout::conv_transpose(&[9, 1, 2]).groups(2),
            "groups: expected a divisor of the 9 input channels, got 2",
        ),
        (WeightLayout::linear(&[3, 6]).groups(3), "groups: expected 1 of a linear layer, got 3"),
        (WeightLayout::conv(&[3, 3, 5]), "weight: expected 45 elements, got 18"),
        (WeightLayout::conv(&[usize::MAX, 2, 2]), &overflow()),
    ] {
        assert_eq!(post(&layout), right);
        assert_eq!(pre(&layout), right);
    }
    assert_eq!(
        message(by.fold_into_preceding(&conv, &w, Some(&[0.0; 2]))),
        "bias: expected 3 elements, got 2"
    );
    let mut bn = trained(&Reference, 3, Config::default().activation(Activation::Relu));
    let relu = bn.scale_shift().unwrap();
    assert!(relu.fold_into_preceding(&conv, &w, None).is_ok());
    assert_eq!(
        message(relu.fold_into_following(&conv, &w, None)),
        "activation: expected none before the layer, got relu"
    );
    bn.running_mut().unwrap().var[1] = f32::NAN;
    let error = bn.scale_shift().unwrap_err().to_string();
    assert!(
        error.starts_with("scale and shift: expected finite ones, got a scale of NaN"),
        "{error}"
    );
    bn.running_mut().unwrap().var.pop();
    assert!(matches!(bn.scale_shift(), Err(Error::Length { what: "running_var", .. })));
    let bn = layer::<f32, _>(&Reference, Config::default().track_running_stats(false));
    let error = bn.scale_shift().unwrap_err().to_string();
    assert!(error.starts_with("running statistics: expected a layer that tracks them"), "{error}");
}

fn overflow() -> String {
    format!("weight: expected axes of at least 1, got the shape {:?}", [usize::MAX, 2, 2])
}

/// f16 ends at 65504.
#[test]
fn what_a_type_cannot_hold_is_refused() {
    let mut bn = trained(&Reference, 3, Config::default());
    let dense = WeightLayout::dense(&[1, 3]);
    let w = [half::f16::from_f32(3e4); 3];
    bn.weight_mut().unwrap().value = vec![1.0, 4.0, 1.0];
    bn.running_mut().unwrap().var = vec![1.0; 3];
    let error = message(bn.scale_shift().unwrap().fold_into_preceding(&dense, &w, None));
    assert!(error.starts_with("weight: expected what f16 holds, got 1199"), "{error}");
    assert!(error.ends_with("as element 1 of the folded layer"), "{error}");
}
