//! Configurations written and read by serde, with the feature of that name.
#![cfg(feature = "serde")]
use batchnorm::{
    Activation, Algorithm, Config, Constraint, EmptyBatch, Ghost, GhostRemainder, Initializer,
    Momentum, NonFinite, OneValue, PopulationRule, Regularizer, Renorm, RenormClip, Variance,
};

fn read(json: &str) -> std::result::Result<Config, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn what_is_written_reads_back() {
    let momenta = [
        Momentum::Exponential(0.25),
        Momentum::Separate { mean: 0.25, var: 0.5 },
        Momentum::Cumulative,
        Momentum::Average,
        Momentum::Debiased { decay: 0.75 },
    ];
    for activation in Activation::ALL {
        for momentum in momenta {
            let config = Config::default().eps(1e-3).weight(false).activation(activation);
            let config = config.momentum(momentum);
            assert_eq!(read(&serde_json::to_string(&config).unwrap()), Ok(config));
        }
    }
}

/// What a version wrote that had no other fields than these, which is what the default writes today.
#[test]
fn files_of_earlier_versions_read() {
    for momentum in [r#"{"exponential":0.25}"#, r#""cumulative""#, r#""average""#] {
        let old = format!(
            r#"{{"eps":0.001,"momentum":{momentum},"activation":"relu","weight":true,"bias":false,"track_running_stats":true}}"#
        );
        let config = read(&old).unwrap();
        assert_eq!((config.eps, config.variance), (1e-3, Variance::Unbiased));
        assert_eq!(serde_json::to_string(&config).unwrap(), old);
    }
}

#[test]
fn rules_of_running_statistics_are_written_by_name() {
    // A number that JSON's readers do not round: serde_json may, by a unit in the last place.
    let config = Config::keras().momentum(Momentum::Exponential(0.25)).non_finite(NonFinite::Skip);
    let written = serde_json::to_string(&config).unwrap();
    let rules = r#""variance":"biased","one_value":"zero_variance","empty_batch":"nan","non_finite":"skip"}"#;
    assert!(written.ends_with(rules), "{written}");
    assert_eq!(read(&written), Ok(config));
    let kept = Config::default().one_value(OneValue::KeepVariance).empty_batch(EmptyBatch::Nan);
    assert_eq!(read(r#"{"one_value":"keep_variance","empty_batch":"nan"}"#), Ok(kept));
    for (config, momentum) in [
        (Config::matlab(), r#"{"separate":{"mean":0.1,"var":0.1}}"#),
        (Config::haiku(0.75), r#"{"debiased":{"decay":0.75}}"#),
    ] {
        let written = serde_json::to_value(config).unwrap();
        assert_eq!(written["momentum"].to_string(), momentum);
    }
}

#[test]
fn ghost_batches_and_renormalization_are_written_by_name() {
    let config = Config::default().ghost(Ghost::strided(8));
    let written = serde_json::to_string(&config).unwrap();
    let ghost = r#""ghost":{"size":8,"rows":"strided","remainder":"even","update":"average"}}"#;
    assert!(written.ends_with(ghost), "{written}");
    assert_eq!(read(&written), Ok(config));
    let short = Ghost::consecutive(3).remainder(GhostRemainder::ShortLast);
    let read_short = read(r#"{"ghost":{"size":3,"remainder":"short_last"}}"#);
    assert_eq!(read_short, Ok(Config::default().ghost(short)));
    let config = Config::default().renorm(Renorm::keras().clip(RenormClip::paper(2.0, 0.5)));
    let written = serde_json::to_value(config).unwrap();
    let clip = r#"{"d_max":0.5,"r_max":2.0,"r_min":0.5}"#;
    assert_eq!(written["renorm"]["clip"].to_string(), clip);
    assert_eq!(read(&written.to_string()), Ok(config));
    let bounds = read(r#"{"renorm":{"clip":{"d_max":0.5},"momentum":null}}"#).unwrap().renorm;
    let paper = Renorm::paper(1.0, 0.0).clip(RenormClip::NONE.d_max(0.5));
    assert_eq!(bounds, Some(paper));
    for unknown in [r#"{"ghost":{"size":3,"gap":1}}"#, r#"{"renorm":{"clip":{"dmax":1.0}}}"#] {
        let error = read(unknown).unwrap_err();
        assert!(error.starts_with("unknown field"), "{unknown}: {error}");
    }
}

#[test]
fn words_are_pytorchs() {
    for activation in Activation::ALL {
        let written = serde_json::to_value(activation).unwrap();
        let name = match &written {
            serde_json::Value::Object(fields) => fields.keys().next().unwrap(),
            name => name.as_str().unwrap(),
        };
        assert_eq!(name, activation.name());
    }
    let config =
        Config::default().eps(0.5).activation(Activation::LeakyRelu { negative_slope: 0.25 });
    let expected = r#"{"eps":0.5,"momentum":{"exponential":0.1},"#.to_owned()
        + r#""activation":{"leaky_relu":{"negative_slope":0.25}},"#
        + r#""weight":true,"bias":true,"track_running_stats":true}"#;
    assert_eq!(serde_json::to_string(&config).unwrap(), expected);
}

#[test]
fn what_is_missing_has_its_default_and_what_is_unknown_is_refused() {
    assert_eq!(read("{}"), Ok(Config::default()));
    assert_eq!(read(r#"{"bias":false}"#), Ok(Config::default().bias(false)));
    for unknown in [
        r#"{"affine":false}"#,
        r#"{"momentum":{"linear":0.1}}"#,
        r#"{"momentum":{"separate":{"mean":0.1,"var":0.1,"std":0.1}}}"#,
        r#"{"variance":"unknown"}"#,
        r#"{"activation":"softmax"}"#,
        r#"{"activation":{"leaky_relu":{"negative_slope":0.1,"inplace":true}}}"#,
    ] {
        let error = read(unknown).unwrap_err();
        assert!(error.starts_with("unknown "), "{unknown}: {error}");
    }
}

/// What parameters are trained by.
#[test]
fn optimizers_and_what_parameters_carry_are_written_in_words() {
    fn written<T>(value: T, expected: &str)
    where
        T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
    {
        let text = serde_json::to_string(&value).unwrap();
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<T>(&text).unwrap(), value);
    }
    let sgd = r#"{"sgd":{"momentum":0.5,"dampening":0.0,"nesterov":true}}"#;
    written(Algorithm::nesterov(0.5), sgd);
    let adam = r#"{"adam":{"beta1":0.5,"beta2":0.25,"eps":0.125}}"#;
    let plain = Algorithm::Adam { beta1: 0.5, beta2: 0.25, eps: 0.125, amsgrad: false };
    assert_eq!(serde_json::from_str::<Algorithm>(adam).unwrap(), plain);
    for algorithm in [
        Algorithm::sgd(0.0),
        Algorithm::adam().amsgrad(true),
        Algorithm::adam_w(),
        Algorithm::keras_sgd(0.5),
        Algorithm::keras_adam(),
        Algorithm::MatlabSgdm { momentum: 0.5 },
    ] {
        let text = serde_json::to_string(&algorithm).unwrap();
        assert!(text.starts_with(&format!("{{\"{}\":", algorithm.name())), "{text}");
        written(algorithm, &text);
    }
    written(Regularizer::new(0.5, 0.25), r#"{"l1":0.5,"l2":0.25}"#);
    assert_eq!(serde_json::from_str::<Regularizer>("{}").unwrap(), Regularizer::default());
    written(Constraint::NonNegative, r#""non_negative""#);
    written(Constraint::MaxNorm(2.0), r#"{"max_norm":2.0}"#);
    written(Initializer::ONES, r#"{"constant":1.0}"#);
    let uniform = r#"{"uniform":{"low":-0.05,"high":0.05,"seed":3}}"#;
    written(Initializer::keras1("uniform", 3).unwrap(), uniform);
    written(PopulationRule::UpdateBn, r#""update_bn""#);
    for unknown in [r#"{"sgd":{"momentum":0.5,"weight_decay":0.1}}"#, r#"{"lbfgs":{}}"#] {
        let error = serde_json::from_str::<Algorithm>(unknown).unwrap_err().to_string();
        assert!(error.starts_with("unknown "), "{unknown}: {error}");
    }
}
