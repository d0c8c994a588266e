use super::*;

fn values(initializer: Initializer, channels: usize) -> Vec<f64> {
    initializer.values(channels).unwrap().collect()
}
fn moments(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}

#[test]
fn every_name_has_the_spread_of_its_system() {
    // Variance at C channels: limit^2 / 3 of uniform ones.
    const C: usize = 40_000;
    let root = (C as f64).sqrt();
    for (name, variance) in [
        ("zero", 0.0),
        ("one", 0.0),
        ("uniform", 0.05 * 0.05 / 3.0),
        ("normal", 0.05 * 0.05),
        ("lecun_uniform", 3.0 / root / 3.0),
        ("glorot_uniform", 3.0 / root / 3.0),
        ("glorot_normal", 1.0 / root),
        ("he_uniform", 6.0 / root / 3.0),
        ("he_normal", 2.0 / root),
    ] {
        assert!(KERAS1.contains(&name));
        let (mean, var) = moments(&values(Initializer::keras1(name, 5).unwrap(), C));
        let expected = if name == "one" { 1.0 } else { 0.0 };
        assert!((mean - expected).abs() <= 4.0 * (variance / C as f64).sqrt(), "{name}: {mean}");
        assert!((var - variance).abs() <= 0.03 * variance, "{name}: {var}, not {variance}");
    }
    let narrow = values(Initializer::matlab("narrow-normal", 5).unwrap(), C);
    assert!((moments(&narrow).1 / 1e-4 - 1.0).abs() < 0.03);
    for (name, value) in [("zeros", 0.0), ("ones", 1.0)] {
        assert_eq!(values(Initializer::matlab(name, 5).unwrap(), 3), [value; 3]);
    }
}

#[test]
fn uniform_ones_stay_within_their_limit_and_reach_it() {
    let limit = |values: Vec<f64>| values.into_iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    for (name, expected) in [("glorot_uniform", 3.0), ("he_uniform", 6.0)] {
        let expected = f64::sqrt(expected / 100.0);
        let reached = limit(values(Initializer::keras1(name, 1).unwrap(), 10_000));
        assert!(reached <= expected && reached > 0.999 * expected, "{name}: {reached}");
    }
}

#[test]
fn a_seed_is_what_decides() {
    let of = |seed| values(Initializer::keras1("he_normal", seed).unwrap(), 9);
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
    let first = values(Initializer::Uniform { low: 0.0, high: 1.0, seed: 0 }, 1);
    // SplitMix64 of seed 0 begins with e220a8397b1dcdaf.
    assert_eq!(first, [(0xe220_a839_7b1d_cdaf_u64 >> 11) as f64 / 2f64.powi(53)]);
}

#[test]
fn what_has_no_meaning_is_refused_with_both_sides() {
    let error = |e: Result<Initializer>| e.unwrap_err().to_string();
    assert_eq!(
        error(Initializer::keras1("zeros", 0)),
        "initializer: expected one of zero, one, uniform, normal, lecun_uniform, \
         glorot_uniform, glorot_normal, he_uniform, he_normal, got \"zeros\""
    );
    assert!(error(Initializer::keras1("identity", 0)).contains("matrices"));
    assert_eq!(
        error(Initializer::matlab("glorot", 0)),
        "initializer: expected one of zeros, ones, narrow-normal, got \"glorot\""
    );
    let seed = 0;
    for (bad, said) in [
        (Initializer::Constant(f64::NAN), "initializer: expected finite numbers, got NaN"),
        (
            Initializer::Uniform { low: 1.0, high: 0.0, seed },
            "initializer: expected low <= high, got 1 and 0",
        ),
        (
            Initializer::Normal { mean: 0.0, std: -1.0, seed },
            "std: expected a finite number from 0 on, got -1",
        ),
        (
            Initializer::FanNormal { gain: f64::INFINITY, seed },
            "gain: expected a finite number from 0 on, got inf",
        ),
    ] {
        assert_eq!(bad.values(3).err().unwrap().to_string(), said);
    }
}
