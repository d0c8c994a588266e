//! Times this layer beside candle's own: both in this process, by turns, on the shapes of ResNet-50.
//!
//! `cargo run --release -p batchnorm-candle --example speed [BATCH]`
use anyhow::Result;
use batchnorm_candle::batch_norm;
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{ModuleT, VarBuilder, VarMap};
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
        "ms: ours, candle's", "forward", "backward", "of candle's tape alone"
    );
    let mut means = [0.0f64; 2];
    for (channels, side) in SHAPES {
        let vb = || VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
        let ours = batch_norm(channels, 1e-5, vb())?;
        let candles = candle_nn::batch_norm(channels, 1e-5, vb())?;
        let layers: [&dyn ModuleT; 2] = [&ours, &candles];
        let dims = (batch, channels, side, side);
        let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, dims, &Device::Cpu)?)?;
        let mut best = [[f64::INFINITY; 2]; 2];
        let mut tape = f64::INFINITY;
        for _ in 0..TURNS {
            for (layer, best) in layers.iter().zip(&mut best) {
                let start = Instant::now();
                let y = layer.forward_t(&x, true)?;
                best[0] = best[0].min(start.elapsed().as_secs_f64());
                let start = Instant::now();
                y.backward()?;
                best[1] = best[1].min(start.elapsed().as_secs_f64());
            }
            // What candle does around any operation of this size: a gradient of ones, and a sum of gradients.
            let y = x.apply_op1(Nothing)?;
            let start = Instant::now();
            y.backward()?;
            tape = tape.min(start.elapsed().as_secs_f64());
        }
        let ms = |s: f64| s * 1e3;
        let [[f, b], [cf, cb]] = best;
        println!(
            "{:>18} {:>8.2} {:>8.2} {:>7.1}x {:>8.2} {:>8.2} {:>7.1}x {:>8.2} {:>8.1}x",
            format!("{batch}x{channels}x{side}x{side}"),
            ms(f),
            ms(cf),
            cf / f,
            ms(b),
            ms(cb),
            cb / b,
            ms(tape),
            (cb - tape) / (b - tape).max(1e-9)
        );
        means[0] += (cf / f).ln();
        means[1] += (cb / b).ln();
    }
    let [f, b] = means.map(|sum| (sum / SHAPES.len() as f64).exp());
    println!(
        "geometric means: forward {f:.1} times, backward {b:.1} times as fast as candle's layer"
    );
    Ok(())
}

/// An operation that costs nothing: its gradient is the one it is given.
struct Nothing;

impl candle_core::CustomOp1 for Nothing {
    fn name(&self) -> &'static str {
        "nothing"
    }
    fn cpu_fwd(
        &self,
        _: &candle_core::CpuStorage,
        layout: &candle_core::Layout,
    ) -> candle_core::Result<(candle_core::CpuStorage, candle_core::Shape)> {
        let memory = candle_core::CpuStorage::F32(vec![0.0; layout.shape().elem_count()]);
        Ok((memory, layout.shape().clone()))
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(grad.clone()))
    }
}
