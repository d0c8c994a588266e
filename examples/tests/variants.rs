//! The `variants` example: its quick run, and its networks' gradients against differences of what they are of.
use std::path::Path;

use batchnorm::{Activation, Config, Ghost};
use clap::Parser;

use example::data::Data;
use example::loss::cross_entropy;
use example::network::Network;
use example::padding::{self, Lengths, Lines};
use example::random::Random;
use example::{Options, gather, penalty, run};

#[allow(dead_code)] // main
#[path = "../variants/main.rs"]
mod example;

/// What a run printed, but for the lines that say how long it took.
fn printed(line: &str, folder: &Path) -> String {
    let words = ["variants", "--quick", "--out"].into_iter();
    let out = folder.to_str().unwrap();
    let options =
        Options::try_parse_from(words.chain([out]).chain(line.split_whitespace())).unwrap();
    let mut printed = Vec::new();
    run(&options, &mut printed).unwrap();
    let printed = String::from_utf8(printed).unwrap();
    printed
        .lines()
        .filter(|line| !line.contains(" took "))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn every_part_has_a_table_and_a_plot_and_a_seed_is_a_seed() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("variants");
    let _ = std::fs::remove_dir_all(&folder); // of an earlier run
    let all = printed("", &folder);
    for part in ["padding", "batches", "penalty"] {
        let png = std::fs::read(folder.join(format!("{part}.png"))).unwrap();
        let svg = std::fs::read_to_string(folder.join(format!("{part}.svg"))).unwrap();
        assert!(png.starts_with(b"\x89PNG") && svg.contains("</svg>"), "{part}");
    }
    // No setting is lost, and none has numbers that are none: these print as NaN.
    assert_eq!(all.matches(" +- ").count(), 12 + 3 * (8 + 3) + 9, "{all}");
    assert!(!all.contains("NaN"), "{all}");
    let again = printed("batches", &folder);
    let (_, batches) = all.split_once("\nbatches of 4, 192").unwrap();
    let (_, batches_again) = again.split_once("\nbatches of 4, 192").unwrap();
    assert!(batches.starts_with(batches_again), "{all}{again}");
}

/// Moving all parameters along the gradient g by h changes what it is the gradient of by h |g|^2.
#[track_caller]
fn are_gradients(network: &mut Network, of: &mut dyn FnMut(&mut Network) -> f64) {
    of(network);
    let mut grads: Vec<Vec<f32>> = Vec::new();
    network.for_each_parameter(|_, grad| grads.push(grad.to_vec()));
    assert_eq!(grads.len(), 3 * 3 + 2);
    for (which, grad) in grads.iter().enumerate() {
        let square: f64 = grad.iter().map(|g| f64::from(*g).powi(2)).sum();
        assert!(square > 1e-7, "parameter {which}: {square} is too small to tell");
        let h = 2e-3 / square.sqrt();
        let mut at = |h: f64| {
            let moved = |network: &mut Network, h: f64| {
                let mut index = 0;
                network.for_each_parameter(|value, _| {
                    if index == which {
                        let pairs = value.iter_mut().zip(grad);
                        pairs.for_each(|(v, g)| *v = (f64::from(*v) + h * f64::from(*g)) as f32);
                    }
                    index += 1;
                });
            };
            moved(network, h);
            network.zero_grad();
            let value = of(network);
            moved(network, -h);
            value
        };
        let got = (at(h) - at(-h)) / (2.0 * h);
        assert!((got / square - 1.0).abs() < 0.03, "parameter {which}: {got} for {square}");
    }
}

/// With a smooth activation, as differences say little about kinks.
fn trained_a_little(config: Config) -> Network {
    let data = Data::digits().unwrap();
    let config = config.activation(Activation::Silu);
    let mut network = Network::new(config, &mut Random::new(5, 0)).unwrap();
    for step in 0..5 {
        // Away from where weights are all 1 and biases all 0.
        let (x, labels) = gather(&data.train, &(step * 16..step * 16 + 16).collect::<Vec<_>>());
        penalty::gradients(&mut network, x, &labels, 0.0).unwrap();
        network.step(0.1);
    }
    network
}

#[test]
fn the_gradients_of_a_penalty_are_those_of_differences() {
    let data = Data::digits().unwrap();
    let (x, labels) = gather(&data.train, &(100..116).collect::<Vec<_>>());
    // Nearly nothing but the penalty, and the loss with a penalty that is as large.
    for strength in [1e3, 1.0] {
        are_gradients(&mut trained_a_little(Config::default()), &mut |network| {
            penalty::gradients(network, x.clone(), &labels, strength).unwrap()
        });
    }
}

/// Of a forward and a backward of all that there is.
#[track_caller]
fn are_gradients_of_a_loss(config: Config, x: &[f32], labels: &[u8], mask: Option<&[u8]>) {
    are_gradients(&mut trained_a_little(config), &mut |network| {
        let forward = network.forward(x.to_vec(), mask).unwrap();
        let loss = cross_entropy(&forward.logits, labels);
        network.backward(&forward, mask, loss.grad, None).unwrap();
        loss.mean
    });
}

#[test]
fn the_gradients_by_a_mask_are_those_of_differences() {
    let data = Data::digits().unwrap();
    let mut random = Random::new(6, 0);
    let Lines { x, labels, places } = Lines::new(&data.train, Lengths::Mixed, 16, &mut random);
    are_gradients_of_a_loss(Config::default(), &x, &labels, Some(&places));
}

#[test]
fn the_gradients_in_groups_are_those_of_differences() {
    let data = Data::digits().unwrap();
    let (x, labels) = gather(&data.train, &(100..132).collect::<Vec<_>>());
    are_gradients_of_a_loss(Config::default().ghost(Ghost::consecutive(8)), &x, &labels, None);
}

#[test]
fn padding_moves_statistics_only_without_a_mask() {
    let data = Data::digits().unwrap();
    let (x, _) = gather(&data.train, &(0..data.train.len()).collect::<Vec<_>>());
    let drift = |slots, masked| {
        let setting = (Lengths::Alike, slots, masked);
        padding::train(&data.train, setting, 60, 1).unwrap().drift(&x).unwrap()
    };
    let [[_, little], [_, much]] = [16, 64].map(|slots| drift(slots, true));
    assert!((little - much).abs() < 1e-4 && (0.8..1.25).contains(&little), "{little} {much}");
    let [[_, little], [_, much]] = [16, 64].map(|slots| drift(slots, false));
    assert!(much < 0.9 * little, "{little} {much}");
}

#[test]
fn bad_options_say_what_was_expected() {
    let error = Options::try_parse_from(["variants", "masks"]).unwrap_err().to_string();
    assert!(error.contains("[possible values: padding, batches, penalty]"), "{error}");
}
