//! A process of its own: what it has in memory is what the steps leave.
use anyhow::Result;
use batchnorm_candle::{Activation, batch_norm};
use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};

/// Bytes of this process that are in memory.
#[cfg(target_os = "linux")]
fn resident() -> Result<usize> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    Ok(pages.split_whitespace().nth(1).unwrap().parse::<usize>()? * 4096)
}

#[cfg(target_os = "linux")]
#[test]
fn does_not_grow_in_10_000_steps() -> Result<()> {
    let vars = VarMap::new();
    let bn = batch_norm(64, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
    let bn = bn.with_activation(Activation::Relu);
    let x = Var::from_tensor(&Tensor::randn(0f32, 1.0, (4, 64, 3), &Device::Cpu)?)?;
    let step = || -> Result<()> {
        bn.forward_add(&x, &x, true)?.sqr()?.sum_all()?.backward()?;
        Ok(())
    };
    (0..500).try_for_each(|_| step())?;
    let before = resident()?;
    (0..10_000).try_for_each(|_| step())?;
    let grown = resident()?.saturating_sub(before);
    // 100 bytes of a step that stay would make this much.
    assert!(grown < 1 << 20, "{grown} bytes");
    Ok(())
}
