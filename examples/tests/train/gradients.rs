//! The example's networks against a plain one in f64, which knows nothing of gradients: central
//! differences of its loss tell them.
use approx::abs_diff_eq;
use std::collections::BTreeMap;

use batchnorm::{Cpu, Engine, Host, Reference, StateDict};

use super::example::backend::{HostBackend, Nonlinearity};
use super::example::network::{Architecture, Network};
use super::example::random::Random;

const UNITS: [usize; 5] = [6, 5, 7, 4, 3];
const LAYERS: usize = UNITS.len() - 1;
const ROWS: usize = 9;

struct Plain {
    values: BTreeMap<String, Vec<f64>>,
    nonlinearity: Nonlinearity,
    normalize: bool,
}

impl Plain {
    fn of(dict: &StateDict, architecture: &Architecture) -> Self {
        // The counter of batches is no float, and not needed.
        let floats = dict.names().filter_map(|name| {
            let (_, values) = dict.get::<f64>(name).ok()??;
            Some((name.to_string(), values))
        });
        let Architecture { nonlinearity, normalize, .. } = *architecture;
        Self { values: floats.collect(), nonlinearity, normalize }
    }

    /// Mean cross-entropy and right answers, normalized by the batch or by running statistics.
    fn loss(&self, x: &[f32], labels: &[u8], by_batch: bool) -> (f64, usize) {
        let rows = labels.len();
        let mut values: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        for layer in 1..=LAYERS {
            let (inputs, outputs) = (UNITS[layer - 1], UNITS[layer]);
            let of = |name: &str| self.values.get(&name.replace('#', &layer.to_string()));
            let (weight, bias) = (&of("layer#.weight").unwrap(), of("layer#.bias"));
            let mut y = vec![0.0; rows * outputs];
            for unit in 0..outputs {
                let mut column: Vec<f64> = (0..rows)
                    .map(|row| {
                        let x = &values[row * inputs..][..inputs];
                        let weight = &weight[unit * inputs..][..inputs];
                        let sum: f64 = x.iter().zip(weight).map(|(x, w)| x * w).sum();
                        sum + bias.map_or(0.0, |bias| bias[unit])
                    })
                    .collect();
                if layer < LAYERS && self.normalize {
                    let mut mean = column.iter().sum::<f64>() / rows as f64;
                    let squares = column.iter().map(|v| (v - mean).powi(2));
                    let mut var = squares.sum::<f64>() / rows as f64;
                    if !by_batch {
                        mean = of("bn#.running_mean").unwrap()[unit];
                        var = of("bn#.running_var").unwrap()[unit];
                    }
                    let (weight, bias) = (of("bn#.weight").unwrap(), of("bn#.bias").unwrap());
                    for v in &mut column {
                        *v = weight[unit] * (*v - mean) / (var + 1e-5).sqrt() + bias[unit];
                    }
                }
                for (row, v) in column.into_iter().enumerate() {
                    y[row * outputs + unit] = match self.nonlinearity {
                        _ if layer == LAYERS => v,
                        Nonlinearity::Sigmoid => 1.0 / (1.0 + (-v).exp()),
                        Nonlinearity::Relu => v.max(0.0),
                    };
                }
            }
            values = y;
        }
        let (mut loss, mut right) = (0.0, 0);
        for (logits, label) in values.chunks_exact(UNITS[LAYERS]).zip(labels) {
            let logit = logits[usize::from(*label)];
            loss += logits.iter().map(|v| v.exp()).sum::<f64>().ln() - logit;
            right += usize::from(logits.iter().all(|v| *v <= logit));
        }
        (loss / rows as f64, right)
    }
}

/// The largest difference between the gradients of a network and those of finite differences.
fn check<G: Engine<Memory = Host>>(engine: &G, nonlinearity: Nonlinearity, normalize: bool) {
    let what = format!("{}, {nonlinearity:?}, normalize: {normalize}", engine.name());
    let architecture = Architecture { units: UNITS.to_vec(), nonlinearity, normalize };
    let mut random = Random::new(5, 0);
    let mut network =
        Network::new(engine, &HostBackend, &architecture, [ROWS, ROWS], &mut random).unwrap();
    let x = random.normals(ROWS * UNITS[0], 1.0);
    let labels: Vec<u8> = (0..ROWS as u8).map(|row| row % 3).collect();
    // Away from where weights of normalizations are all 1 and biases all 0.
    for _ in 0..20 {
        network.step(&x, &labels, 0.3).unwrap();
    }

    let before = network.state_dict("").unwrap();
    let mut plain = Plain::of(&before, &architecture);
    let score = network.evaluate(&x, &labels).unwrap();
    let (loss, right) = plain.loss(&x, &labels, false);
    assert!(abs_diff_eq!(score.loss, loss, epsilon = 1e-5), "{what}: loss {} {loss}", score.loss);
    assert_eq!(score.accuracy, right as f64 / ROWS as f64, "{what}");

    // A step with learning rate 1 takes the gradient off.
    network.step(&x, &labels, 1.0).unwrap();
    let after = network.state_dict("").unwrap();
    let mut parameters = 0;
    for name in before.names().filter(|n| n.ends_with("weight") || n.ends_with("bias")) {
        let (_, old) = before.get::<f64>(name).unwrap().unwrap();
        let (_, new) = after.get::<f64>(name).unwrap().unwrap();
        let mut largest = 0f64;
        for i in 0..old.len() {
            let h = 1e-5;
            let mut loss_at = |value: f64| {
                plain.values.get_mut(name).unwrap()[i] = value;
                plain.loss(&x, &labels, true).0
            };
            let expected = (loss_at(old[i] + h) - loss_at(old[i] - h)) / (2.0 * h);
            loss_at(old[i]);
            let got = old[i] - new[i];
            assert!(
                abs_diff_eq!(got, expected, epsilon = 3e-6),
                "{what}, {name} {i}: {expected} {got}"
            );
            largest = largest.max(expected.abs());
        }
        assert!(largest > 1e-4, "{what}, {name}: the gradients are too small to tell");
        parameters += 1;
    }
    assert_eq!(parameters, if normalize { 4 + 1 + 2 * 3 } else { 2 * 4 });
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for nonlinearity in [Nonlinearity::Sigmoid, Nonlinearity::Relu] {
        for normalize in [true, false] {
            check(&Cpu::default(), nonlinearity, normalize);
        }
    }
}

#[test]
fn a_network_runs_on_any_engine_of_its_memory() {
    check(&Reference, Nonlinearity::Relu, true);
}
