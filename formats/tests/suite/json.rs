//! MATLAB's and Wolfram's names.
use batchnorm::Momentum;
use batchnorm_formats::json::{self, System};

#[test]
fn matlabs_names() {
    let text = r#"{"Name": "bn", "TrainedMean": [[[1, 2]]], "TrainedVariance": [[3], [4.5]],
        "Scale": [0.1, 0.2], "Offset": [], "Epsilon": 1e-5, "MeanDecay": 0.1, "VarianceDecay": 0.25}"#;
    let state = json::read(text, System::Matlab).unwrap();
    assert_eq!((state.weight.as_deref(), &state.bias), (Some(&[0.1, 0.2][..]), &None));
    assert_eq!(state.running_mean, Some(vec![1.0, 2.0]));
    assert_eq!(state.running_var, Some(vec![3.0, 4.5]));
    assert_eq!(
        (state.eps, state.momentum),
        (Some(1e-5), Some(Momentum::Separate { mean: 0.1, var: 0.25 }))
    );
    let again = json::write(&state, System::Matlab).unwrap();
    assert_eq!(json::read(&again, System::Matlab).unwrap(), state);
    let read = |text: &str| json::read(text, System::Matlab).unwrap_err().to_string();
    let error = read(r#"{"Scale": 1, "MeanDecay": 0.1}"#);
    assert_eq!(error, "decay: expected MeanDecay and VarianceDecay, got MeanDecay alone");
    let error = json::write(&state, System::Wolfram).unwrap_err().to_string();
    assert_eq!(error, "json: momentum: Wolfram has none such as (0.1, 0.25)");
    let error = read(r#"{"Scale": [[1, 2], [3, 4]]}"#);
    assert_eq!(error, "Scale: expected one value per channel, got more dimensions");
    assert_eq!(read(r#"{"Scale": ["a"]}"#), "Scale: expected numbers, got \"a\"");
    assert_eq!(read("{}"), "state: expected an array, got none");
}

#[test]
fn wolframs_names_weigh_the_old_value() {
    let text = r#"{"Scaling": [1, 2], "Biases": [3, 4], "MovingMean": [5, 6],
        "MovingVariance": [7, 8], "Epsilon": 0.001, "Momentum": 0.875}"#;
    let state = json::read(text, System::Wolfram).unwrap();
    assert_eq!(state.momentum, Some(Momentum::Exponential(0.125)));
    let again = json::write(&state, System::Wolfram).unwrap();
    assert!(again.contains(r#""Momentum":0.875"#), "{again}");
    assert_eq!(json::read(&again, System::Wolfram).unwrap(), state);
    // Before 12.0.
    let old = text.replace("Scaling", "Gamma").replace("Biases", "Beta");
    assert_eq!(json::read(&old, System::Wolfram).unwrap(), state);
    let mut bad = state.clone();
    bad.running_var.as_mut().unwrap()[0] = f64::NAN;
    let error = json::write(&bad, System::Wolfram).unwrap_err().to_string();
    assert_eq!(error, "json: MovingVariance: NaN");
    bad = state;
    bad.momentum = Some(Momentum::Cumulative);
    assert!(json::write(&bad, System::Wolfram).is_err());
}
