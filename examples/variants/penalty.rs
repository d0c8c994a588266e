//! A penalty on the gradient of the loss with respect to the images (Drucker and LeCun's double backpropagation,
//! 1992), and what it does for images that are changed a little.
use std::io::Write;

use anyhow::Result;

use super::data::{Data, Sampler};
use super::loss::cross_entropy;
use super::network::{self, Network, add};
use super::plot::{Axis, Panel, Series};
use super::random::Random;
use super::{Options, accuracy, falling, gather, mean, spread, tested};

const BATCH: usize = 60;
const STEPS: u64 = 1500;
const RATE: f32 = 0.1;
/// Of the penalty; the first is none.
const STRENGTHS: [f32; 3] = [0.0, 0.1, 1.0];
/// Deviations of Gaussian noise, where black is 0 and white 1.
const NOISE: [f64; 6] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5];
/// By which every pixel is moved to where the loss grows (the fast gradient sign method).
const MOVED: [f32; 6] = [0.0, 0.02, 0.05, 0.1, 0.15, 0.2];

/// Adds the gradients of the mean loss over a batch, and of `strength / 2` times the mean square of the gradient of
/// an image's loss with respect to that image. What both are together comes back.
pub fn gradients(network: &mut Network, x: Vec<f32>, labels: &[u8], strength: f32) -> Result<f64> {
    let rows = labels.len() as f32;
    let forward = network.forward(x, None)?;
    let loss = cross_entropy(&forward.logits, labels);
    let backward = network.backward(&forward, None, loss.grad.clone(), None)?;
    if strength == 0.0 {
        return Ok(loss.mean);
    }
    // The parameters' gradients come again, with the penalty's.
    network.zero_grad();
    // The gradient of the batch's mean loss is that of an image's own loss, divided by the images.
    let penalty = 0.5 * strength * rows * backward.x.iter().map(|g| g * g).sum::<f32>();
    let v = backward.x.iter().map(|g| strength * rows * g).collect();
    let second = network.double_backward(&forward, &backward, v)?;
    let mut logits = loss.double_backward(&second.grad_logits);
    add(&mut logits, &loss.grad);
    network.backward(&forward, None, logits, Some(&second))?;
    Ok(loss.mean + f64::from(penalty))
}

/// Of one run: the accuracy by noise, and that by images that were moved.
fn scores(data: &Data, strength: f32, steps: u64, seed: u64) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut network = Network::new(network::plain(), &mut Random::new(seed, 0))?;
    let mut sampler = Sampler::new(seed, data.train.len(), BATCH);
    for step in 0..steps {
        let (x, labels) = gather(&data.train, sampler.batch(step));
        gradients(&mut network, x, &labels, strength)?;
        network.step(falling(RATE, step, steps));
    }
    let (x, labels) = tested(data);
    let noisy = NOISE.iter().map(|&noise| {
        let mut noisy = x.clone();
        // Epochs have the purposes from 1 on, and there are fewer than this.
        add(&mut noisy, &Random::new(seed, 1 << 32).normals(x.len(), noise));
        accuracy(&network, &noisy, &labels)
    });
    let noisy = noisy.collect::<Result<_>>()?;
    // In evaluation: through running statistics, which no image moves.
    network.train(false);
    let forward = network.forward(x.clone(), None)?;
    let loss = cross_entropy(&forward.logits, &labels);
    let to_x = network.backward(&forward, None, loss.grad, None)?.x;
    let moved = MOVED.iter().map(|by| {
        let x: Vec<f32> = x.iter().zip(&to_x).map(|(x, grad)| x + by * grad.signum()).collect();
        accuracy(&network, &x, &labels)
    });
    let moved = moved.collect::<Result<_>>()?;
    Ok((noisy, moved))
}

pub fn run(data: &Data, options: &Options, to: &mut impl Write) -> Result<Vec<Panel>> {
    let steps = options.steps(STEPS);
    writeln!(
        to,
        "\npenalty on the gradient of the images: batches of {BATCH}, {steps} steps\n\
         {:>8} {:>15} {:>15} {:>18}",
        "strength", "accuracy", "noise of 0.3", "pixels by 0.1"
    )?;
    let (mut noisy, mut moved) = (Vec::new(), Vec::new());
    for strength in STRENGTHS {
        let all = options.of_seeds(|seed| scores(data, strength, steps, seed))?;
        let of_noise = |i: usize| all.iter().map(move |(noisy, _)| noisy[i]);
        let of_moved = |i: usize| all.iter().map(move |(_, moved)| moved[i]);
        let show = |values: &mut dyn Iterator<Item = f64>| spread(&values.collect::<Vec<_>>());
        let [clean, noise, by] =
            [show(&mut of_noise(0)), show(&mut of_noise(3)), show(&mut of_moved(3))];
        writeln!(to, "{strength:>8} {clean:>15} {noise:>15} {by:>18}")?;
        let name =
            if strength == 0.0 { "no penalty".into() } else { format!("penalty, {strength}") };
        let points = NOISE.iter().enumerate().map(|(i, &at)| (at, mean(of_noise(i)))).collect();
        noisy.push(Series { name: name.clone(), points });
        let at = |by: f32| f64::from((by * 100.0).round()) / 100.0;
        let points = MOVED.iter().enumerate().map(|(i, &by)| (at(by), mean(of_moved(i)))).collect();
        moved.push(Series { name, points });
    }
    let panel = |title: &str, x, series| Panel {
        title: title.into(),
        x,
        y: Axis::new("test accuracy (%)", 0.0, 100.0),
        series,
        falls: true,
    };
    Ok(vec![
        panel("Images with Gaussian noise", Axis::new("deviation of the noise", 0.0, 0.5), noisy),
        panel("Every pixel moved against the network", Axis::new("by", 0.0, 0.2), moved),
    ])
}
