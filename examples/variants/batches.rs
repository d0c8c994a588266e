//! Batches of 4 images, plain and renormalized, shuffled and of two classes each; and large batches, whole and in
//! groups.
use std::io::Write;

use anyhow::Result;
use batchnorm::{Config, Ghost, Momentum, Renorm, RenormClip};

use super::data::{CLASSES, Data, Sampler};
use super::loss::cross_entropy;
use super::network::{self, Network};
use super::plot::{Axis, Panel, Series};
use super::random::Random;
use super::{Options, accuracy, falling, gather, mean, spread, tested};

/// Of a curve.
const POINTS: u64 = 25;

/// One kind of batches, and what is trained on them: the first is what others are compared with.
struct Comparison {
    title: &'static str,
    batch: usize,
    /// Images of two classes in a batch, the same number of each; of all in any order where not.
    two_classes: bool,
    steps: u64,
    layers: Vec<Layers>,
    /// The least accuracy that the plot shows.
    from: f64,
}

/// How all layers of a network are set up, and the learning rate at first.
type Layers = (&'static str, Config, f32);

fn comparisons() -> [Comparison; 3] {
    // The weight of a batch in the running statistics is smaller for smaller batches.
    let slow = network::plain().momentum(Momentum::Exponential(0.01));
    let small = || {
        // As plain ones at first: see `bounds`.
        let renormalized = slow.renorm(Renorm::paper(1.0, 0.0));
        vec![
            ("plain", slow, 0.1),
            ("renormalized", renormalized, 0.1),
            ("plain, a fifth of the rate", slow, 0.02),
            ("renormalized, a fifth", renormalized, 0.02),
        ]
    };
    let large = network::plain();
    let ghost = |size| large.ghost(Ghost::consecutive(size));
    let groups = vec![
        ("whole", large, 1.0),
        ("in groups of 64", ghost(64), 1.0),
        ("in groups of 16", ghost(16), 1.0),
        ("in groups of 4", ghost(4), 1.0),
    ];
    let of_4 = |title, two_classes, from| Comparison {
        title,
        batch: 4,
        two_classes,
        steps: 9600,
        layers: small(),
        from,
    };
    [
        of_4("batches of 4", false, 90.0),
        of_4("batches of 4, of two classes each", true, 70.0),
        Comparison {
            title: "batches of 512",
            batch: 512,
            two_classes: false,
            steps: 250,
            layers: groups,
            from: 95.0,
        },
    ]
}

/// Renormalization as in the paper: none in the first twentieth of a run, r up to 3 and d up to 5 from its first
/// quarter on, and in a line between.
fn bounds(step: u64, steps: u64) -> RenormClip {
    let done = step as f64 / steps as f64;
    let share = ((done - 0.05) / 0.2).clamp(0.0, 1.0);
    RenormClip::paper(1.0 + 2.0 * share, 5.0 * share)
}

/// Random images of two random classes.
fn of_two_classes(labels: &[u8], batch: usize, random: &mut Random) -> Vec<usize> {
    let mut classes: Vec<u8> = (0..CLASSES as u8).collect();
    random.shuffle(&mut classes);
    let mut image = |class| loop {
        let i = random.below(labels.len());
        if labels[i] == class {
            return i;
        }
    };
    (0..batch).map(|i| image(classes[i % 2])).collect()
}

/// The test accuracy of a run, `POINTS` times at equal distances, the last at its end.
fn curve(
    data: &Data,
    of: &Comparison,
    (_, config, rate): Layers,
    steps: u64,
    seed: u64,
) -> Result<Vec<f64>> {
    let mut network = Network::new(config, &mut Random::new(seed, 0))?;
    let (x_tested, tested) = tested(data);
    // Epochs have the purposes from 1 on, and there are fewer than this.
    let mut random = Random::new(seed, 1 << 32);
    let mut sampler = Sampler::new(seed, data.train.len(), of.batch);
    let (mut curve, mut due) = (Vec::new(), 1);
    for step in 0..steps {
        if config.renorm.is_some() {
            network.set_renorm_clip(bounds(step, steps))?;
        }
        let (x, labels) = if of.two_classes {
            let two = of_two_classes(data.train.labels(), of.batch, &mut random);
            gather(&data.train, &two)
        } else {
            gather(&data.train, sampler.batch(step))
        };
        let forward = network.forward(x, None)?;
        let loss = cross_entropy(&forward.logits, &labels);
        network.backward(&forward, None, loss.grad, None)?;
        network.step(falling(rate, step, steps));
        while due <= POINTS && (step + 1) * POINTS >= due * steps {
            curve.push(accuracy(&network, &x_tested, &tested)?);
            due += 1;
        }
    }
    Ok(curve)
}

pub fn run(data: &Data, options: &Options, to: &mut impl Write) -> Result<Vec<Panel>> {
    let mut panels = Vec::new();
    for of in comparisons() {
        let steps = options.steps(of.steps);
        writeln!(
            to,
            "\n{}, {steps} steps\n{:<26} {:>15} {:>15} {:>20}",
            of.title, "", "after a fifth", "at the end", "more than the first"
        )?;
        let (mut series, mut first): (Vec<Series>, Option<Vec<f64>>) = (Vec::new(), None);
        for &layers in &of.layers {
            let name = layers.0;
            let curves = options.of_seeds(|seed| curve(data, &of, layers, steps, seed))?;
            let at = |point: u64| curves.iter().map(move |c| c[point as usize - 1]);
            let (early, end): (Vec<f64>, Vec<f64>) =
                (at(POINTS / 5).collect(), at(POINTS).collect());
            write!(to, "{name:<26} {:>15} {:>15}", spread(&early), spread(&end))?;
            let first = first.get_or_insert_with(|| end.clone());
            if series.is_empty() {
                writeln!(to)?;
            } else {
                // Of the same seed: the same weights at first, and the same batches.
                let more: Vec<f64> =
                    end.iter().zip(first).map(|(end, first)| end - *first).collect();
                writeln!(to, " {:>20}", spread(&more))?;
            }
            let points = (1..=POINTS).map(|i| ((i * steps) as f64 / POINTS as f64, mean(at(i))));
            series.push(Series { name: name.into(), points: points.collect() });
        }
        panels.push(Panel {
            title: format!("Test accuracy by {}", of.title),
            x: Axis::new("training steps", 0.0, steps as f64),
            y: Axis::new("test accuracy (%)", of.from, 100.0),
            series,
            falls: false,
        });
    }
    Ok(panels)
}
