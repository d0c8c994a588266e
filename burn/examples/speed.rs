//! Times this layer beside burn's own: both in this process, by turns, on the shapes of ResNet-50.
//!
//! `cargo run --release --manifest-path burn/Cargo.toml --example speed [BATCH]`
use anyhow::Result;
use burn::tensor::{Device, Distribution, Tensor};
use std::time::Instant;

/// Channels, and height and width.
const SHAPES: [(usize, usize); 9] = [
    (64, 112),
    (64, 56),
    (256, 56),
    (128, 28),
    (512, 28),
    (256, 14),
    (1024, 14),
    (512, 7),
    (2048, 7),
];
const TURNS: usize = 5;

fn main() -> Result<()> {
    let batch = std::env::args().nth(1).map_or(Ok(32), |text| text.parse())?;
    println!(
        "{:>18} {:>26} {:>26} {:>26}",
        "ms: ours, burn's", "forward", "backward", "of burn's tape alone"
    );
    let device = Device::flex().autodiff();
    let (mut means, mut sums) = ([0.0f64; 2], [[0.0; 2]; 2]);
    for (channels, side) in SHAPES {
        let ours = batchnorm_burn::BatchNormConfig::new(channels).init(&device);
        let burns = burn::nn::BatchNormConfig::new(channels).init(&device);
        let layers: [&dyn Fn(Tensor<4>) -> Tensor<4>; 2] =
            [&|x| ours.forward(x), &|x| burns.forward(x)];
        let dims = [batch, channels, side, side];
        let x = Tensor::<4>::random(dims, Distribution::Normal(0.0, 1.0), &device).require_grad();
        let mut best = [[f64::INFINITY; 2]; 2];
        let mut tape = f64::INFINITY;
        for _ in 0..TURNS {
            for (layer, best) in layers.iter().zip(&mut best) {
                let start = Instant::now();
                let y = layer(x.clone());
                best[0] = best[0].min(start.elapsed().as_secs_f64());
                // burn starts from ones of y's shape.
                let start = Instant::now();
                let grads = y.backward();
                best[1] = best[1].min(start.elapsed().as_secs_f64());
                drop(grads);
            }
            // What burn does around any operation of this size: a gradient of ones.
            let y = x.clone().reshape([batch * channels, side * side]);
            let start = Instant::now();
            drop(y.backward());
            tape = tape.min(start.elapsed().as_secs_f64());
        }
        let ms = |s: f64| s * 1e3;
        let [[f, b], [bf, bb]] = best;
        println!(
            "{:>18} {:>8.2} {:>8.2} {:>7.1}x {:>8.2} {:>8.2} {:>7.1}x {:>8.2} {:>8.1}x",
            format!("{batch}x{channels}x{side}x{side}"),
            ms(f),
            ms(bf),
            bf / f,
            ms(b),
            ms(bb),
            bb / b,
            ms(tape),
            (bb - tape) / (b - tape).max(1e-9)
        );
        for (sums, best) in sums.iter_mut().zip(best) {
            (0..2).for_each(|k| sums[k] += ms(best[k]));
        }
        means[0] += (bf / f).ln();
        means[1] += (bb / b).ln();
    }
    let [f, b] = means.map(|sum| (sum / SHAPES.len() as f64).exp());
    let [[of, ob], [tf, tb]] = sums;
    println!("all shapes, ms: forward {of:.0} beside {tf:.0}, backward {ob:.0} beside {tb:.0}");
    println!(
        "geometric means: forward {f:.1} times, backward {b:.1} times as fast as burn's layer"
    );
    Ok(())
}
