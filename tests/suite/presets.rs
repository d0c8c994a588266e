//! Other systems' defaults, and what Keras 1 stored.
use crate::support::engines::engines;
use crate::support::files::checkout;
use crate::support::golden::{Golden, kinds};
use crate::support::layer::{forward, numbers, small, snapshot};
use crate::support::oracle::served;
use batchnorm::{BatchNorm, Config, Engine, Keras1, Keras1Std, Reference, Variance};

engines! { [reference, cpu, cuda, gpu] [every_preset_trains] }

/// Each system's defaults through a step of training, as the reference; golden cases have the numbers.
fn every_preset_trains<G: Engine>(engine: &G) {
    for config in presets() {
        let x = numbers::<f64>(small().len(), 1);
        let mut bn = BatchNorm::<f64, G>::new(engine, 3, config).unwrap();
        let mut right = BatchNorm::<f64, _>::new(&Reference, 3, config).unwrap();
        served(forward(&mut bn, &small(), &x)).expect("an engine that serves everything");
        forward(&mut right, &small(), &x).unwrap();
        let (got, right) = (snapshot(&bn).running.unwrap(), snapshot(&right).running.unwrap());
        for (got, right) in [got.0, got.1].concat().iter().zip([right.0, right.1].concat()) {
            assert!((got - right).abs() < 1e-12, "{config}: {got}, expected {right}");
        }
        assert_eq!(got.2, right.2);
    }
}

fn presets() -> [Config; 11] {
    [
        Config::pytorch(),
        Config::keras(),
        Config::keras2_fused(),
        Config::tensorflow(),
        Config::keras1(Keras1::V1_2),
        Config::matlab(),
        Config::wolfram(),
        Config::onnx(),
        Config::flax(),
        Config::haiku(0.9),
        Config::mxnet(),
    ]
}

/// What the documentation's table says, read from other places: eps and the weight of the new mean.
#[test]
fn presets_are_each_systems_defaults() {
    let of = |config: &Config| (config.eps, config.momentum.factors(9).0, config.variance);
    use Variance::{Biased, Unbiased};
    // 1 - 0.9 in f32 arithmetic's inputs: 0.9 is 0.899999976158142 there, 1e-5 is 9.99999974737875e-6.
    let onnx = (9.999999747378752e-6, 0.10000002384185791, Biased);
    let haiku = (1.0 - 0.9) / (1.0 - 0.9f64.powi(10));
    let right = [
        (1e-5, 0.1, Unbiased),
        (1e-3, 0.010000000000000009, Biased),
        (1e-3, 0.010000000000000009, Unbiased),
        (1e-3, 0.010000000000000009, Biased),
        (1e-3, 0.010000000000000009, Biased),
        (1e-5, 0.1, Biased),
        (1e-3, 0.09999999999999998, Biased),
        onnx,
        (1e-5, 0.010000000000000009, Biased),
        (1e-5, haiku, Biased),
        (1e-5, 0.09999999999999998, Biased),
    ];
    for (config, right) in presets().iter().zip(right) {
        let got = of(config);
        assert!((got.1 - right.1).abs() < 1e-15, "{config}: {got:?}, expected {right:?}");
        assert_eq!((got.0, got.2), (right.0, right.2), "{config}");
    }
    assert_eq!(Config::pytorch(), Config::default());
    let keras = Config::keras().to_string();
    assert!(
        keras.ends_with("variance=biased, one_value=zero_variance, empty_batch=nan"),
        "{keras}"
    );
}

/// The presets beside what the golden cases of those systems say of themselves.
#[test]
fn presets_are_what_golden_cases_were_made_by() {
    let cases = [
        ("steps_pytorch_no_affine", Config::pytorch()),
        ("steps_keras3_nhwc", Config::keras()),
        ("steps_keras2_fused_nhwc", Config::keras2_fused()),
        ("steps_bias_only_bf16", Config::keras()),
        ("steps_wolfram_chw", Config::wolfram()),
        ("steps_flax_nhwc", Config::flax()),
        ("steps_haiku_debiased", Config::haiku(0.9)),
    ];
    for (name, preset) in cases {
        let path = checkout(&format!("tests/golden/frameworks/{name}.safetensors"));
        let Golden::Layer(document) = Golden::read(&path).unwrap() else { panic!("{name}") };
        let config = kinds::steps_config(&document).unwrap();
        assert_eq!(
            (preset.momentum, preset.variance),
            (config.momentum, config.variance),
            "{name}"
        );
        assert_eq!(preset.eps, document.number("eps").unwrap(), "{name}");
    }
}

#[test]
fn a_stored_deviation_without_a_variance_is_refused() {
    let error = Keras1Std::Deviation.to_var(1e-3, 1e-6, 1e-2).unwrap_err().to_string();
    assert!(
        error.starts_with("running_std: expected a denominator of at least sqrt(1e-2)"),
        "{error}"
    );
    assert!(Keras1Std::Variance.to_var(f64::NAN, 1e-6, 1e-2).is_err());
    // Each by its own formula: the denominators are equal.
    let (eps, to_eps) = (1e-2, 1e-3f64);
    for (stored, old) in [
        (Keras1Std::Deviation, 0.5 + eps),
        (Keras1Std::Variance, f64::sqrt(0.5 + eps)),
        (Keras1Std::VarianceEpsOutside, 0.5f64.sqrt() + eps),
    ] {
        let var = stored.to_var(0.5, eps, to_eps).unwrap();
        assert!(((var + to_eps).sqrt() - old).abs() < 1e-15, "{stored:?}");
    }
    assert_eq!(Keras1::V0_3.stored(false), Keras1Std::Deviation);
    assert_eq!(Keras1::V1_0_6.stored(true), Keras1Std::Deviation);
    assert_eq!(Keras1::V1_0_6.stored(false), Keras1Std::Variance);
    assert_eq!(Keras1::V1_0_7.stored(true), Keras1Std::VarianceEpsOutside);
    assert_eq!(Keras1::V1_2.stored(true), Keras1Std::Variance);
}

#[test]
fn keras_1_changed_its_defaults() {
    let of = |version| {
        let config = Config::keras1(version);
        (config.eps, config.momentum.factors(0).0)
    };
    assert_eq!(of(Keras1::V0_3), (1e-6, 1.0 - 0.9));
    assert_eq!(of(Keras1::V1_0_6), (1e-6, 1.0 - 0.9));
    assert_eq!(of(Keras1::V1_0_7), (1e-6, 1.0 - 0.99));
    assert_eq!(of(Keras1::V1_0_8), (1e-5, 1.0 - 0.99));
    assert_eq!(of(Keras1::V1_2), (1e-3, 1.0 - 0.99));
}

#[test]
fn presets_print_what_is_not_as_in_pytorch() {
    let rest = "affine=True, track_running_stats=True, variance=biased";
    assert_eq!(Config::matlab().to_string(), format!("eps=1e-05, momentum=(0.1, 0.1), {rest}"));
    assert_eq!(
        Config::haiku(0.9).to_string(),
        format!("eps=1e-05, momentum=debiased(0.9), {rest}")
    );
}
