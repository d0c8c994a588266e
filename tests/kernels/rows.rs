//! Layer normalization by its kernels: teams of either size, more rows than teams, every cut into chunks.
use crate::launch::{Arg, Device, Grid, LayerNorm, Mem, Rows};
use crate::step::Kernels;
use crate::support::rows::{Inputs, RULES, near};
use crate::support::run::{Outcome, narrow, same_bits, widen};
use batchnorm::{DType, EpsRule};
use half::{bf16, f16};

const BLOCK: u32 = 256;

/// Who takes the rows.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Threads of a row.
    team: u32,
    /// Blocks of the passes over rows.
    blocks: usize,
    /// Rows whose sums are one partial.
    chunk: usize,
}

/// Forward and backward. Tensors lie an element behind an aligned address.
fn step<E: Kernels>(device: &Device, inputs: &Inputs, cut: Cut) -> Outcome {
    fn upload<T: Kernels>(device: &Device, values: &[f64]) -> Mem<T> {
        device.upload(&values.iter().map(|&v| narrow::<T>(v)).collect::<Vec<_>>(), 1)
    }
    let Inputs { rows, features, .. } = *inputs;
    let (x, grad_y) = (upload::<E>(device, &inputs.x), upload::<E>(device, &inputs.grad_y));
    let parameter = |values: &[f64]| {
        device.upload(&values.iter().map(|&v| narrow::<E::Acc>(v)).collect::<Vec<_>>(), 0)
    };
    let (weight, bias) = (parameter(&inputs.weight), parameter(&inputs.bias));
    let given = |mem: &Mem<E::Acc>, values: &[f64]| {
        Arg::Pointer(if values.is_empty() { 0 } else { mem.ptr() })
    };
    let [y, grad_x] = [(); 2].map(|()| device.unwritten::<E>(rows * features, 1));
    let saved = [(); 3].map(|()| device.unwritten::<E::Acc>(rows, 0));
    let saved_weight = device.unwritten::<E::Acc>(features, 0);
    let nonfinite = device.upload(&[0u32], 0);
    let rule = RULES.iter().position(|rule| *rule == inputs.rule).unwrap() as u32;
    let by = Arg::LayerNorm(LayerNorm {
        rows: rows as u64,
        features: features as u64,
        eps: inputs.eps,
        rule,
        team: cut.team,
    });
    let (ptr, saved) = (Arg::Pointer, Arg::Rows(Rows(saved.each_ref().map(Mem::ptr))));
    let launch = |kernel: &str, blocks: usize, args: &[Arg]| {
        device.launch("layer_norm", kernel, Grid::of(blocks, BLOCK), args);
    };
    let tensor = |kernel: &str| format!("{kernel}_{}", E::NAME);
    let (to_weight, flag) = (ptr(saved_weight.ptr()), ptr(nonfinite.ptr()));
    let parameters = [given(&weight, &inputs.weight), given(&bias, &inputs.bias)];
    let args =
        [&[by, ptr(x.ptr())], &parameters[..], &[ptr(y.ptr()), saved, to_weight, flag]].concat();
    launch(&tensor("layer_norm"), cut.blocks, &args);
    let told = device.download(&nonfinite)[0];
    let tensors = [ptr(x.ptr()), ptr(grad_y.ptr())];
    let args = [&[by, saved, to_weight], &tensors[..], &[ptr(grad_x.ptr())]].concat();
    launch(&tensor("layer_norm_backward"), cut.blocks, &args);

    let chunks = rows.div_ceil(cut.chunk);
    let partials = device.unwritten::<f64>(2 * chunks * features, 0);
    let first = [by, Arg::U64(cut.chunk as u64), saved];
    let args = [&first, &tensors[..], &[ptr(partials.ptr())]].concat();
    launch(&tensor("layer_norm_sums"), chunks * features.div_ceil(32), &args);
    let before = vec![narrow::<E::Acc>(inputs.before.unwrap_or(f64::NAN)); features];
    let gradients = [(); 2].map(|()| device.upload(&before, 0));
    let [to_weight, to_bias] = gradients.each_ref().map(|mem| ptr(mem.ptr()));
    let accumulate = Arg::U32(inputs.before.is_some().into());
    let first = [Arg::U64(features as u64), Arg::U32(chunks as u32), ptr(partials.ptr())];
    let args = [&first[..], &[accumulate, to_weight, to_bias, flag]].concat();
    let parameter = if E::DTYPE == DType::F64 { "f64" } else { "f32" };
    let kernel = format!("layer_norm_finalize_{parameter}");
    launch(&kernel, features.div_ceil(BLOCK as usize), &args);

    let [grad_weight, grad_bias] = gradients.each_ref().map(|mem| widen(&device.download(mem)));
    Outcome::from([
        ("y", widen(&device.download(&y))),
        ("grad_x", widen(&device.download(&grad_x))),
        ("grad_weight", grad_weight),
        ("grad_bias", grad_bias),
        ("saved_weight", widen(&device.download(&saved_weight))),
        // After the forward, and after the backward.
        ("nonfinite", [told, device.download(&nonfinite)[0]].map(f64::from).to_vec()),
    ])
}

fn agrees<E: Kernels>(profile: &str) {
    // Features of one column and of several, more of them than a block has threads; more rows than are staged.
    for (k, (rows, features)) in
        [(1, 1), (9, 33), (300, 5), (4, 300), (21, 64)].into_iter().enumerate()
    {
        for (team, blocks, chunk) in
            [(32, 1, 1), (32, 3, 7), (256, 2, 256), (256, 5, 300), (32, 64, 1000)]
        {
            let cut = Cut { team, blocks, chunk };
            let mut inputs = Inputs::new(rows, features, RULES[k % 3]).rounded::<E>();
            inputs.before = (chunk > 7).then_some(0.75);
            if k == 1 {
                inputs.weight.clear();
            }
            if k == 2 {
                inputs.bias.clear();
            }
            let what = format!("{}, {rows} x {features}, {cut:?}", E::DTYPE);
            let device = Device::new(profile);
            let mut got = step::<E>(&device, &inputs, cut);
            device.finish(&what);
            assert_eq!(got.remove("nonfinite").unwrap(), [0.0; 2], "{what}");
            let ones = vec![1.0; features];
            let weight = if inputs.weight.is_empty() { &ones } else { &inputs.weight };
            assert_eq!(&got.remove("saved_weight").unwrap(), weight, "{what}");
            near(E::DTYPE, rows, &got, &inputs.expected(), &what);
        }
    }
}

#[test]
fn f64_agrees() {
    agrees::<f64>("sm_90");
}

#[test]
fn f32_agrees() {
    agrees::<f32>("mini");
}

#[test]
fn f16_and_bf16_agree_on_every_target() {
    agrees::<f16>("sm_90");
    agrees::<f16>("sm_75");
    agrees::<bf16>("sm_80");
    agrees::<bf16>("sm_75");
}

/// Neither the order of blocks and warps nor their number changes a bit; teams and chunks say how sums are
/// made.
#[test]
fn blocks_and_seeds_change_no_bit() {
    let inputs = Inputs::new(70, 40, EpsRule::Both).rounded::<f32>();
    for team in [32, 256] {
        let outcomes = [(1, 1), (2, 5), (3, 70)].map(|(seed, blocks)| {
            let device = Device::new("sm_90");
            device.set_seed(seed);
            let got = step::<f32>(&device, &inputs, Cut { team, blocks, chunk: 16 });
            device.finish("seeds");
            got
        });
        assert!(outcomes.iter().all(|outcome| same_bits(outcome, &outcomes[0])), "{team}");
    }
}

/// A value that is not finite is told, in a row of the last team, and of a gradient alone.
#[test]
fn what_is_not_finite_is_told() {
    let inputs = Inputs::new(33, 5, EpsRule::Variance).rounded::<f32>();
    let cut = Cut { team: 32, blocks: 2, chunk: 10 };
    let told = |inputs: &Inputs| {
        let device = Device::new("sm_90");
        let got = step::<f32>(&device, inputs, cut);
        device.finish("nonfinite");
        got["nonfinite"].clone()
    };
    assert_eq!(told(&inputs), [0.0; 2]);
    let mut of_x = inputs.clone();
    *of_x.x.last_mut().unwrap() = f64::INFINITY;
    let mut of_gradient = inputs;
    *of_gradient.grad_y.last_mut().unwrap() = f64::NAN;
    assert_eq!([told(&of_x), told(&of_gradient)], [[1.0; 2], [0.0, 1.0]]);
}
