//! Batch normalization as the bindings call it, against the definition.
#![allow(unsafe_code)]

mod common;

use common::{
    ADD_RELU, At, BN, Mode, Norm, OK, Ops, PER_ACTIVATION, PERSISTENT, RELU, SPATIAL, cudnn,
    numbers::{Number, close},
    start, wanted,
};
use half::{bf16, f16};

const DIMS: [&[i32]; 3] = [&[3, 8, 5, 2], &[2, 4, 2, 3, 3], &[5, 8, 1, 1]];

/// What is written before it can be read.
fn clear<T: Number>(norm: &mut Norm<T>, at: At) {
    let count = norm.tensor(at).len();
    norm.put(at, &vec![f64::NAN; count]);
}

/// A training step by the calls with or without "Ex".
fn step<T: Number>(
    mode: Mode,
    ops: Ops,
    dims: &[i32],
    nhwc: bool,
    blends: [[f64; 2]; 2],
    ex: bool,
) {
    let (device, stream) = start();
    let mut norm = Norm::<T>::new(&stream, mode, ops, dims, nhwc);
    [norm.blend, norm.parameter_blend] = blends;
    if norm.blend[1] == 0.0 {
        clear(&mut norm, At::Y);
        clear(&mut norm, At::Dx);
    }
    let groups = wanted::groups(mode, dims);
    let (x, z, old) = (norm.tensor(At::X), norm.tensor(At::Z), norm.tensor(At::Y));
    let [scale, bias] = [At::Scale, At::Bias].map(|at| norm.per_group(at));
    let running = [At::RunningMean, At::RunningVar].map(|at| norm.per_group(at));
    if ex {
        let sizes = norm.make_spaces().unwrap();
        let has_spaces = mode == PERSISTENT && T::TYPE == f16::TYPE && nhwc;
        assert_eq!(sizes.map(|size| size > 0), [has_spaces; 3]);
        assert_eq!(norm.forward_ex(), OK);
    } else {
        assert_eq!(norm.forward(), OK);
    }

    let (tolerance, fine) = (T::TOLERANCE, T::Parameter::TOLERANCE);
    let mut y = vec![0.0; x.len()];
    let mut want = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for (k, group) in groups.iter().enumerate() {
        let (mean, var, m) = wanted::statistics(&x, group);
        for i in group {
            let xhat = (x[*i] - mean) / (var + norm.epsilon).sqrt();
            let mut value = scale[k] * xhat + bias[k];
            value += if ops == ADD_RELU { z[*i] } else { 0.0 };
            value = if ops == BN { value } else { value.max(0.0) };
            let kept = if norm.blend[1] == 0.0 { 0.0 } else { norm.blend[1] * old[*i] };
            y[*i] = norm.blend[0] * value + kept;
        }
        want[0].push(mean);
        want[1].push(1.0 / (var + norm.epsilon).sqrt());
        want[2].push(0.75 * running[0][k] + 0.25 * mean);
        want[3].push(0.75 * running[1][k] + 0.25 * var * m / (m - 1.0));
    }
    let got = norm.tensor(At::Y);
    close("y", &got, &y, tolerance);
    let places = [At::SavedMean, At::SavedInverse, At::RunningMean, At::RunningVar];
    for (at, want) in places.into_iter().zip(&want) {
        close(&format!("{at:?}"), &norm.per_group(at), want, fine);
    }

    let mut dy = norm.tensor(At::Dy);
    let (old_dx, old_dscale) = (norm.tensor(At::Dx), norm.per_group(At::Dscale));
    assert_eq!(if ex { norm.backward_ex() } else { norm.backward() }, OK);
    if ops != BN {
        dy.iter_mut().zip(&got).filter(|(_, y)| **y <= 0.0).for_each(|(dy, _)| *dy = 0.0);
    }
    let (mut dx, mut dscale, dbias) = wanted::gradients(&x, &dy, &groups, &scale, norm.epsilon);
    let blend = |[alpha, beta]: [f64; 2], new: &mut [f64], old: &[f64]| {
        for (new, old) in new.iter_mut().zip(old) {
            *new = alpha * *new + if beta == 0.0 { 0.0 } else { beta * old };
        }
    };
    blend(norm.blend, &mut dx, &old_dx);
    blend(norm.parameter_blend, &mut dscale, &old_dscale);
    // The saved statistics are rounded, which counts as the square of what they are multiplied by.
    let tolerance = tolerance.max(fine / norm.epsilon);
    close("dx", &norm.tensor(At::Dx), &dx, tolerance);
    close("dscale", &norm.per_group(At::Dscale), &dscale, 10.0 * fine);
    if norm.parameter_blend == [1.0, 0.0] {
        close("dbias", &norm.per_group(At::Dbias), &dbias, 10.0 * fine);
    }
    if ops == ADD_RELU {
        assert_eq!(norm.tensor(At::Dz), dy);
    }
    drop(norm);
    assert_eq!(cudnn().refusals(), [""; 0]);
    assert_eq!(cudnn().faults(), [""; 0]);
    assert_eq!(cudnn().live(), [""; 0]);
    assert_eq!(device.faults(), [""; 0]);
    drop(stream);
    assert_eq!(device.leaks(), [""; 0]);
}

fn steps<T: Number>() {
    let plain = [[1.0, 0.0], [1.0, 0.0]];
    for mode in [PER_ACTIVATION, SPATIAL, PERSISTENT] {
        for dims in DIMS {
            for nhwc in [false, true] {
                step::<T>(mode, BN, dims, nhwc, plain, false);
                step::<T>(mode, BN, dims, nhwc, plain, true);
            }
        }
        step::<T>(mode, BN, DIMS[0], true, [[0.5, -2.0], [-1.0, 0.5]], false);
    }
}

#[test]
fn steps_in_f32() {
    steps::<f32>();
}

#[test]
fn steps_in_f64() {
    steps::<f64>();
}

#[test]
fn steps_in_f16() {
    steps::<f16>();
}

#[test]
fn steps_in_bf16() {
    steps::<bf16>();
}

#[test]
fn steps_with_an_activation() {
    for ops in [RELU, ADD_RELU] {
        for dims in DIMS {
            step::<f16>(PERSISTENT, ops, dims, true, [[1.0, 0.0], [1.0, 0.0]], true);
            step::<f16>(PERSISTENT, ops, dims, true, [[1.0, 0.0], [0.5, 3.0]], true);
        }
    }
    step::<f16>(PERSISTENT, RELU, &[3, 7, 2, 2], true, [[1.0, 0.0], [1.0, 0.0]], true);
}

fn inference<T: Number>() {
    let (device, stream) = start();
    for (mode, nhwc, blend) in [
        (SPATIAL, false, [1.0, 0.0]),
        (SPATIAL, true, [1.0, 0.0]),
        (PER_ACTIVATION, true, [0.5, 2.0]),
    ] {
        let mut norm = Norm::<T>::new(&stream, mode, BN, DIMS[0], nhwc);
        norm.blend = blend;
        if blend[1] == 0.0 {
            clear(&mut norm, At::Y);
        }
        let (x, old) = (norm.tensor(At::X), norm.tensor(At::Y));
        let values = [At::Scale, At::Bias, At::RunningMean, At::RunningVar];
        let [scale, bias, mean, var] = values.map(|at| norm.per_group(at));
        assert_eq!(norm.infer(), OK);
        let mut y = old.clone();
        for (k, group) in wanted::groups(mode, DIMS[0]).iter().enumerate() {
            for i in group {
                let xhat = (x[*i] - mean[k]) / (var[k] + norm.epsilon).sqrt();
                let kept = if blend[1] == 0.0 { 0.0 } else { blend[1] * old[*i] };
                y[*i] = blend[0] * (scale[k] * xhat + bias[k]) + kept;
            }
        }
        close("y", &norm.tensor(At::Y), &y, T::TOLERANCE);
    }
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn inference_in_all_types() {
    inference::<f32>();
    inference::<f64>();
    inference::<f16>();
    inference::<bf16>();
}

#[test]
fn statistics_need_not_be_saved_nor_kept() {
    let (device, stream) = start();
    let mut norm = Norm::<f32>::new(&stream, SPATIAL, BN, DIMS[0], false);
    assert_eq!(norm.forward(), OK);
    assert_eq!(norm.backward(), OK);
    let (y, dx) = (norm.tensor(At::Y), norm.tensor(At::Dx));
    let running = norm.per_group(At::RunningMean);
    for at in [At::RunningMean, At::RunningVar, At::SavedMean, At::SavedInverse] {
        norm.at[at as usize] = 0;
    }
    norm.factor = f64::NAN; // of no use without running statistics
    clear(&mut norm, At::Y);
    clear(&mut norm, At::Dx);
    assert_eq!(norm.forward(), OK);
    assert_eq!(norm.backward(), OK);
    assert_eq!(norm.tensor(At::Y), y);
    close("dx", &norm.tensor(At::Dx), &dx, 1e-6);
    assert_eq!(norm.per_group(At::RunningMean), running);
    assert_eq!(device.faults(), [""; 0]);
}
