//! candle's CUDA backend on the software device: its own kernels, and this layer beside itself on the CPU. The program is
//! linked with the software libraries: `scripts/check-candle-softcuda.sh` builds and runs it.
#![cfg(feature = "cuda")]

#[allow(unsafe_code)]
mod device;

use anyhow::{Result, ensure};
use batchnorm_candle::{Activation, BatchNorm, batch_norm};
use candle_core::{DType, Device, Tensor, Var, backprop::GradStore};
use candle_nn::{ModuleT, Optimizer, SGD, VarBuilder, VarMap};
use device::count_calls;

const ORDINAL: usize = 0;

/// Runs a test on the device, in a thread of its own: with that end its engines. Nothing may be left then.
fn on_device(test: impl FnOnce(&device::Device, &Device) -> Result<()> + Send) -> Result<()> {
    let soft = device::Device::exclusive(ORDINAL);
    let run = || test(&soft, &Device::new_cuda(ORDINAL)?);
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())?;
    assert_eq!(soft.complaints(), [""; 0]);
    assert_eq!(soft.used(), 0);
    Ok(())
}

/// Numbers that repeat nowhere.
fn wave(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    let len: usize = dims.iter().product();
    let values: Vec<f64> = (0..len).map(|i| (i as f64 * 0.7391).sin() * 2.0 + 0.4).collect();
    Ok(Tensor::from_vec(values, dims, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

/// The largest difference, by the CPU.
fn apart(a: &Tensor, b: &Tensor) -> Result<f64> {
    ensure!(a.dims() == b.dims(), "{:?} beside {:?}", a.dims(), b.dims());
    let on_cpu = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    Ok((on_cpu(a)? - on_cpu(b)?)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?)
}

/// How far results of one type may be apart that differ in the order of sums.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-11,
        DType::F32 => 2e-5,
        DType::F16 => 8e-3,
        _ => 6e-2,
    }
}

/// A layer over values that are not 1 and 0, and what has them.
fn layer(channels: usize, dtype: DType, device: &Device) -> Result<(VarMap, BatchNorm)> {
    let vars = VarMap::new();
    let bn = batch_norm(channels, 1e-5, VarBuilder::from_varmap(&vars, dtype, device).pp("bn"))?;
    for (k, name) in ["weight", "bias", "running_mean", "running_var"].iter().enumerate() {
        let (scale, shift) = [(0.5, 1.0), (0.3, -0.2), (0.1, 0.05), (0.2, 1.5)][k];
        let of = bn.running_mean().dtype();
        let value = wave(&[channels], of, device)?.affine(scale, shift)?;
        if let Some(var) = vars.data().lock().unwrap().get(&format!("bn.{name}")) {
            var.set(&value)?;
        }
    }
    Ok((vars, bn))
}

/// All that a training step and an inference make of one layer.
fn results(dims: &[usize], dtype: DType, relu: bool, device: &Device) -> Result<Vec<Tensor>> {
    let (vars, bn) = layer(dims[1], dtype, device)?;
    let bn = if relu { bn.with_activation(Activation::Relu) } else { bn };
    let x = Var::from_tensor(&wave(dims, dtype, device)?)?;
    let residual = Var::from_tensor(&wave(dims, dtype, device)?.affine(-0.3, 0.2)?)?;
    let y = match relu {
        true => bn.forward_add(&x, &residual, true)?,
        false => bn.forward_t(&x, true)?,
    };
    let weights = wave(dims, dtype, device)?.affine(0.7, 0.1)?;
    let grads: GradStore = (&y * &weights)?.to_dtype(DType::F32)?.sum_all()?.backward()?;
    let mut all = vec![y.detach(), bn.running_mean().copy()?, bn.running_var().copy()?];
    let data = vars.data().lock().unwrap();
    for var in [&x, &data["bn.weight"], &data["bn.bias"]] {
        all.push(grads.get(var).cloned().ok_or_else(|| anyhow::anyhow!("no gradient"))?);
    }
    if relu {
        all.push(grads.get(&residual).cloned().ok_or_else(|| anyhow::anyhow!("no gradient"))?);
    }
    all.push(bn.forward_t(&x, false)?.detach());
    Ok(all)
}

/// Every type, channels alone and with pixels, with and without an activation and what is added.
#[test]
fn the_layer_gives_what_it_gives_on_the_cpu() -> Result<()> {
    on_device(|_, cuda| every_case(cuda))
}

fn every_case(cuda: &Device) -> Result<()> {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        for dims in [&[6, 5][..], &[3, 4, 5, 7]] {
            for relu in [false, true] {
                let here = results(dims, dtype, relu, &Device::Cpu)?;
                let there = results(dims, dtype, relu, cuda)?;
                for (i, (a, b)) in here.iter().zip(&there).enumerate() {
                    let off = apart(a, b)?;
                    // Sums over a batch are as many times as large.
                    let most = tolerance(dtype) * 20.0;
                    ensure!(off <= most, "{dtype:?} {dims:?} relu {relu}, result {i}: {off}");
                }
            }
        }
    }
    Ok(())
}

/// A small program of candle's own operations: random values, products, reductions, indices.
#[test]
fn candles_own_kernels_give_what_its_cpu_gives() -> Result<()> {
    on_device(|_, cuda| own_kernels(cuda))
}

fn own_kernels(cuda: &Device) -> Result<()> {
    let program = |device: &Device| -> Result<Vec<Tensor>> {
        let a = wave(&[6, 8], DType::F32, device)?;
        let b = wave(&[8, 5], DType::F32, device)?;
        let product = a.matmul(&b)?;
        let rows = Tensor::new(&[4u32, 0, 4], device)?;
        let picked = product.index_select(&rows, 0)?;
        let softmax = candle_nn::ops::softmax(&product, 1)?;
        let positive = product.gt(0f32)?;
        Ok(vec![
            product.relu()?.exp()?.sum_keepdim(1)?,
            softmax,
            picked,
            positive.where_cond(&product, &product.neg()?)?,
            product.t()?.contiguous()?.max(0)?,
            product.gelu()?.to_dtype(DType::F16)?.sqr()?,
            product.argmax(1)?.to_dtype(DType::F32)?,
            Tensor::cat(&[&product, &product.affine(2.0, 1.0)?], 0)?,
            product.to_dtype(DType::F64)?.tanh()?.mean_all()?,
            product.broadcast_add(&product.narrow(0, 2, 1)?)?,
        ])
    };
    for (i, (a, b)) in program(&Device::Cpu)?.iter().zip(program(cuda)?).enumerate() {
        let off = apart(a, &b)?;
        ensure!(off <= 2e-3 * (1.0 + apart(a, &a.zeros_like()?)?), "result {i}: {off}");
    }
    cuda.set_seed(7)?;
    let x = Tensor::randn(1f32, 0.5, (1000,), cuda)?;
    let mean = x.mean_all()?.to_scalar::<f32>()?;
    ensure!((mean - 1.0).abs() < 0.1, "{mean}");
    cuda.set_seed(7)?;
    ensure!(apart(&x, &Tensor::randn(1f32, 0.5, (1000,), cuda)?)? == 0.0);
    let u = Tensor::rand(0f32, 2.0, (1001,), cuda)?.to_vec1::<f32>()?;
    ensure!(u.iter().all(|u| (0.0..=2.0).contains(u)));
    Ok(())
}

/// The layer works on candle's memory: no call copies, and its kernels read and write no more than the sizes of what they
/// are given.
#[test]
fn nothing_is_copied() -> Result<()> {
    on_device(copies)
}

fn copies(soft: &device::Device, cuda: &Device) -> Result<()> {
    let dims = [8, 16, 12, 12];
    let (_vars, bn) = layer(16, DType::F32, cuda)?;
    let x = Var::from_tensor(&wave(&dims, DType::F32, cuda)?)?;
    let again = |_: ()| bn.forward_t(&x, true);
    again(())?; // loads modules, makes an engine
    cuda.synchronize()?;
    let before = soft.launches();
    let (y, calls) = count_calls(|| again(()));
    cuda.synchronize()?;
    let copies: Vec<_> = calls.keys().filter(|call| call.starts_with("cuMemcpy")).collect();
    assert!(copies.is_empty(), "{calls:?}");
    let moved = soft.traffic(before);
    let bytes = (dims.iter().product::<usize>() * 4) as u64;
    // Statistics read x, the normalization reads it again and writes y: beside them a few values per channel.
    assert!(moved.0 >= bytes && moved.0 < 2 * bytes + bytes / 4, "{moved:?}, {bytes} bytes of x");
    assert!(moved.1 >= bytes && moved.1 < bytes + bytes / 4, "{moved:?}, {bytes} bytes of x");
    drop(y?);
    Ok(())
}

/// A few steps of training end with the values that they end with on the CPU.
#[test]
fn training_ends_as_on_the_cpu() -> Result<()> {
    on_device(|_, cuda| training(cuda))
}

fn training(cuda: &Device) -> Result<()> {
    let train = |device: &Device| -> Result<Vec<Tensor>> {
        let (vars, bn) = layer(5, DType::F32, device)?;
        let vb = VarBuilder::from_varmap(&vars, DType::F32, device);
        let linear = candle_nn::linear(5, 3, vb.pp("linear"))?;
        for (name, var) in vars.data().lock().unwrap().iter() {
            if name.starts_with("linear") {
                var.set(&wave(var.dims(), DType::F32, device)?)?;
            }
        }
        let mut sgd = SGD::new(vars.all_vars(), 0.05)?;
        let x = wave(&[12, 5], DType::F32, device)?;
        for _ in 0..4 {
            let y = bn.forward_t(&x, true)?.apply(&linear)?;
            sgd.backward_step(&y.sqr()?.mean_all()?)?;
        }
        let data = vars.data().lock().unwrap();
        let mut names: Vec<_> = data.keys().cloned().collect();
        names.sort();
        Ok(names.iter().map(|name| data[name].as_tensor().copy()).collect::<Result<_, _>>()?)
    };
    let here = train(&Device::Cpu)?;
    for (a, b) in here.iter().zip(&train(cuda)?) {
        ensure!(apart(a, b)? < 1e-4, "{a} beside {b}");
    }
    Ok(())
}

/// candle gives each thread the stream of its own; a layer made in one thread works in all, at the same time.
#[test]
fn threads_have_streams_of_their_own() -> Result<()> {
    on_device(threads)
}

fn threads(soft: &device::Device, cuda: &Device) -> Result<()> {
    let (_vars, bn) = layer(8, DType::F32, cuda)?;
    let (_on_cpu, expected) = layer(8, DType::F32, &Device::Cpu)?;
    // No other stream waits for this thread's.
    cuda.synchronize()?;
    for seed in 1..5 {
        soft.set_seed(seed);
        std::thread::scope(|scope| -> Result<()> {
            let threads: Vec<_> = (0..3)
                .map(|i| {
                    let (bn, expected) = (&bn, &expected);
                    scope.spawn(move || -> Result<()> {
                        for k in 0..3 {
                            let dims = [4 + i, 8, 3 + k];
                            let x = wave(&dims, DType::F32, &Device::Cpu)?;
                            let there = bn.forward_t(&x.to_device(cuda)?, false)?;
                            let here = expected.forward_t(&x, false)?;
                            ensure!(apart(&here, &there)? < 1e-5, "thread {i}, call {k}");
                        }
                        Ok(())
                    })
                })
                .collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap())
        })?;
    }
    Ok(())
}
