//! What is run, on any device.
use crate::support::batchnorm::{Dims, Inputs, backward, forward};
use crate::support::cooperative::{self, Plan};
use crate::support::device::Device;
use crate::support::element::Element;
use crate::support::exact;
use crate::support::output::Output;
use crate::support::split;
use anyhow::Result;
use half::{bf16, f16};

/// Every test kernel, the exact ones first.
pub fn run(device: &Device) -> Result<Vec<Output>> {
    let mut outputs: Vec<_> = exact::run(device)?.into_iter().map(|check| check.output).collect();
    outputs.push(exact::floats::approximate(device)?.0);
    batchnorm::<f64>(device, &mut outputs)?;
    batchnorm::<f32>(device, &mut outputs)?;
    batchnorm::<f16>(device, &mut outputs)?;
    batchnorm::<bf16>(device, &mut outputs)?;
    statistics::<f32>(device, &mut outputs)?;
    statistics::<f16>(device, &mut outputs)?;
    statistics::<bf16>(device, &mut outputs)?;
    Ok(outputs)
}

/// One unit of the last place of the type, and what sums may lose in theirs.
fn rounding<T: Element>() -> f64 {
    2.0 * T::UNIT + 32.0 * T::Acc::UNIT
}

/// Planes that are whole vectors, and planes that are not.
const DIMS: [Dims; 2] = [Dims::new(5, 4, 256), Dims::new(3, 5, 77)];

fn batchnorm<T: Element>(device: &Device, outputs: &mut Vec<Output>) -> Result<()> {
    for dims in DIMS {
        let inputs = Inputs::<T>::new(dims);
        let there = forward(device, &inputs)?;
        let back = backward(device, &inputs, &there.mean, &there.invstd)?;
        let name = |kernel: &str, what: &str| {
            format!("{kernel}_{}/{}x{}x{}/{what}", T::NAME, dims.images, dims.channels, dims.plane)
        };
        let (elements, sums) = (rounding::<T>(), rounding::<T::Acc>());
        outputs.extend([
            Output::within(elements, name("forward", "y"), &there.y),
            Output::within(sums, name("forward", "mean"), &there.mean),
            Output::within(sums, name("forward", "invstd"), &there.invstd),
            Output::within(sums, name("forward", "running_mean"), &there.running_mean),
            Output::within(sums, name("forward", "running_var"), &there.running_var),
            Output::within(elements, name("backward", "grad_x"), &back.grad_x),
            Output::within(sums, name("backward", "grad_weight"), &back.grad_weight),
            Output::within(sums, name("backward", "grad_bias"), &back.grad_bias),
        ]);
    }
    Ok(())
}

fn statistics<T: Element<Acc = f32>>(device: &Device, outputs: &mut Vec<Output>) -> Result<()> {
    let dims = Dims::new(3, 4, 500);
    let inputs = Inputs::<T>::new(dims);
    let [_, split::Statistics { mean, var }] = split::statistics(device, &inputs.x, dims, 6)?;
    let name = |what: &str| format!("split_stats_{}/{what}", T::NAME);
    let sums = rounding::<f32>();
    outputs.push(Output::within(sums, name("mean"), &mean));
    outputs.push(Output::within(sums, name("var"), &var));

    // 250 rows of 64 channels: whole in shared memory, and half of it.
    let inputs = Inputs::<T>::new(Dims::new(250, 64, 1));
    let resident = Plan::resident::<T>(250, 64, 4);
    for plan in [resident, Plan { tile_rows: Plan::thread_rows::<T>(64), ..resident }] {
        let got = cooperative::normalize(device, plan, &inputs.x, &inputs.weight, &inputs.bias, 2)?;
        let name = |what: &str| {
            format!("normalize_grid_{}/{} rows in shared memory/{what}", T::NAME, plan.tile_rows)
        };
        outputs.push(Output::within(rounding::<T>(), name("y"), &got.y));
        outputs.push(Output::within(sums, name("mean"), &got.mean));
        outputs.push(Output::within(sums, name("var"), &got.var));
    }
    Ok(())
}
