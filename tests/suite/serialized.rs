//! Configurations written and read by serde, with the feature of that name.
#![cfg(feature = "serde")]
use batchnorm::{Activation, Config, Momentum};

fn read(json: &str) -> std::result::Result<Config, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn what_is_written_reads_back() {
    let momenta = [Momentum::Exponential(0.25), Momentum::Cumulative, Momentum::Average];
    for activation in Activation::ALL {
        for momentum in momenta {
            let config = Config::default().eps(1e-3).weight(false).activation(activation);
            let config = config.momentum(momentum);
            assert_eq!(read(&serde_json::to_string(&config).unwrap()), Ok(config));
        }
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
        r#"{"activation":"softmax"}"#,
        r#"{"activation":{"leaky_relu":{"negative_slope":0.1,"inplace":true}}}"#,
    ] {
        let error = read(unknown).unwrap_err();
        assert!(error.starts_with("unknown "), "{unknown}: {error}");
    }
}
