//! Lines of digits, padded to one length, as programs are that want one shape: statistics of all places, or of
//! those that hold a digit.
use std::io::Write;

use anyhow::Result;

use super::data::{Data, Images};
use super::loss::{PADDING, cross_entropy};
use super::network::{self, Network};
use super::plot::{Axis, Panel, Series};
use super::random::Random;
use super::{Options, accuracy, falling, gather, mean, spread, tested};

/// In a batch.
const LINES: usize = 8;
/// Digits of the longest line.
const LONGEST: usize = 16;
const STEPS: u64 = 600;
const RATE: f32 = 0.1;

/// Which lines are in one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// Those of one length, as where data is sorted into buckets by length.
    Alike,
    /// Any.
    Mixed,
}

/// Rows of a network: those of every line, padding behind them.
pub struct Lines {
    pub x: Vec<f32>,
    /// [`PADDING`] for a row that is none.
    pub labels: Vec<u8>,
    /// The mask.
    pub places: Vec<u8>,
}

impl Lines {
    /// Of random images, in so many slots.
    pub fn new(images: &Images, lengths: Lengths, slots: usize, random: &mut Random) -> Self {
        let (mut x, mut labels, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let first = 1 + random.below(LONGEST);
        for line in 0..LINES {
            let again = line > 0 && lengths == Lengths::Mixed;
            let length = if again { 1 + random.below(LONGEST) } else { first };
            for slot in 0..slots {
                let is_digit = slot < length;
                if is_digit {
                    let i = random.below(images.len());
                    x.extend(images.image(i));
                    labels.push(images.labels()[i]);
                } else {
                    x.extend(std::iter::repeat_n(0.0, images.inputs));
                    labels.push(PADDING);
                }
                places.push(u8::from(is_digit));
            }
        }
        Self { x, labels, places }
    }
}

/// A network after these steps, from seed 1 on the same digits whatever they are padded to.
pub fn train(
    images: &Images,
    (lengths, slots, masked): (Lengths, usize, bool),
    steps: u64,
    seed: u64,
) -> Result<Network> {
    let mut network = Network::new(network::plain(), &mut Random::new(seed, 0))?;
    let mut random = Random::new(seed, 1);
    for step in 0..steps {
        let Lines { x, labels, places } = Lines::new(images, lengths, slots, &mut random);
        let mask = masked.then_some(&places[..]);
        let forward = network.forward(x, mask)?;
        let loss = cross_entropy(&forward.logits, &labels);
        network.backward(&forward, mask, loss.grad, None)?;
        network.step(falling(RATE, step, steps));
    }
    Ok(network)
}

pub fn run(data: &Data, options: &Options, to: &mut impl Write) -> Result<Vec<Panel>> {
    let steps = options.steps(STEPS);
    writeln!(
        to,
        "\npadding: {LINES} lines of 1 to {LONGEST} digits in a batch, {steps} steps; tested on digits alone\n\
         {:<13} {:>5} {:<10} {:>15} {:>18}",
        "lines", "slots", "statistics", "accuracy", "running deviation"
    )?;
    let (x, labels) = tested(data);
    let (trained, _) = gather(&data.train, &(0..data.train.len()).collect::<Vec<_>>());
    let (mut accuracies, mut deviations) = (Vec::new(), Vec::new());
    for (lengths, name) in [(Lengths::Alike, "of one length"), (Lengths::Mixed, "mixed")] {
        for (masked, statistics) in [(false, "of all"), (true, "masked")] {
            let (mut accuracy_of, mut deviation_of) = (Vec::new(), Vec::new());
            for slots in [LONGEST, 2 * LONGEST, 4 * LONGEST] {
                let all = options.of_seeds(|seed| {
                    let setting = (lengths, slots, masked);
                    let network = train(&data.train, setting, steps, seed)?;
                    let [_, deviation] = network.drift(&trained)?;
                    Ok((accuracy(&network, &x, &labels)?, deviation))
                })?;
                let (scores, drifts): (Vec<f64>, Vec<f64>) = all.into_iter().unzip();
                let (score, drift) = (spread(&scores), mean(drifts));
                writeln!(to, "{name:<13} {slots:>5} {statistics:<10} {score:>15} {drift:>18.2}")?;
                accuracy_of.push((slots as f64, mean(scores)));
                deviation_of.push((slots as f64, drift));
            }
            let name = format!("lines {name}, statistics {statistics}");
            accuracies.push(Series { name: name.clone(), points: accuracy_of });
            deviations.push(Series { name, points: deviation_of });
        }
    }
    let slots =
        || Axis::new("slots that lines are padded to", LONGEST as f64, 4.0 * LONGEST as f64);
    Ok(vec![
        Panel {
            title: "Padding: test accuracy on digits alone".into(),
            x: slots(),
            y: Axis::new("test accuracy (%)", 94.0, 99.0),
            series: accuracies,
            falls: true,
        },
        Panel {
            title: "Running deviation, 1: that of the digits".into(),
            x: slots(),
            y: Axis::new("multiple of the digits' deviation", 0.0, 1.2),
            series: deviations,
            falls: true,
        },
    ])
}
