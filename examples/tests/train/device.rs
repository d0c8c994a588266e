//! The example on a CUDA device, beside the CPU.
use approx::{abs_diff_eq, relative_eq};
use batchnorm::{Cpu, Cuda, Engine, Memory, StateDict};

use super::example::backend::cuda::CudaBackend;
use super::example::backend::{Backend, HostBackend, Nonlinearity, Operand};
use super::example::data::Data;
use super::example::experiment::Experiment;
use super::example::random::Random;
use super::example::{checkpoint, network::Score};
use super::{options, support};

fn cuda() -> (Cuda, CudaBackend) {
    let engine = support::cuda::beside_cublas();
    let backend = CudaBackend::new(engine.memory()).unwrap();
    (engine, backend)
}

/// Equal within `bar` of the larger of 1 and what is expected; the same where that is not finite.
#[track_caller]
fn close(what: &str, got: &[f32], expected: &[f32], bar: f32) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let near = relative_eq!(got, expected, epsilon = bar, max_relative = bar);
        let same = got == expected || got.is_nan() && expected.is_nan();
        assert!(near && expected.is_finite() || same, "{what} {i}: {got} for {expected}");
    }
}

/// What every operation of a backend makes of the same numbers.
fn operations<B: Backend>(memory: &B::Memory, backend: &B) -> Vec<(String, Vec<f32>)> {
    type Mem<B> = <B as Backend>::Memory;
    let mut random = Random::new(11, 0);
    let mut results = Vec::new();
    let mut done = |what: &str, buf: &<Mem<B> as Memory>::Buf<f32>| {
        results.push((what.into(), memory.download(Mem::<B>::view(buf)).unwrap()));
    };
    let view = Mem::<B>::view::<f32>;
    let view_mut = Mem::<B>::view_mut::<f32>;

    // More than a block of threads, and no multiple of one.
    const ROWS: usize = 37;
    const COLUMNS: usize = 11;
    let (m, k, n) = (5, 7, 3);
    for (times_a, times_b, count) in [(1, 1, 1), (4, 1, 4), (1, 4, 4), (4, 4, 4)] {
        let a = memory.upload(&random.normals(times_a * m * k, 1.0)).unwrap();
        let b = memory.upload(&random.normals(times_b * k * n, 1.0)).unwrap();
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            let operand = |buf, transposed| match transposed {
                false => Operand::Plain(view(buf)),
                true => Operand::Transposed(view(buf)),
            };
            let mut c = memory.zeros(count * m * n).unwrap();
            let (a, b) = (operand(&a, transposed[0]), operand(&b, transposed[1]));
            backend.matmul([m, k, n], a, b, view_mut(&mut c)).unwrap();
            done(&format!("matmul {times_a} x {times_b}, {transposed:?}"), &c);
        }
    }

    let mut values = random.normals(ROWS * COLUMNS, 3.0);
    values[..4].copy_from_slice(&[0.0, -0.0, f32::NAN, -100.0]);
    let bias = memory.upload(&random.normals(COLUMNS, 1.0)).unwrap();
    let (mut y, mut sums) = (memory.upload(&values).unwrap(), memory.zeros(COLUMNS).unwrap());
    backend.add_bias(view(&bias), view_mut(&mut y)).unwrap();
    done("add_bias", &y);
    let rows = memory.upload(&values[COLUMNS..]).unwrap();
    backend.sum_rows(view(&rows), view_mut(&mut sums)).unwrap();
    done("sum_rows", &sums);
    backend
        .sgd(0.3, view(&rows), view_mut(&mut memory.zeros(values.len() - COLUMNS).unwrap()))
        .unwrap();
    let mut value = memory.upload(&values).unwrap();
    backend.sgd(0.3, view(&y), view_mut(&mut value)).unwrap();
    done("sgd", &value);
    for kind in [Nonlinearity::Sigmoid, Nonlinearity::Relu] {
        let mut y = memory.upload(&values).unwrap();
        backend.activate(kind, view_mut(&mut y)).unwrap();
        done(&format!("{kind:?}"), &y);
        let mut grad = memory.upload(&random.normals(values.len(), 1.0)).unwrap();
        backend.activate_backward(kind, view(&y), view_mut(&mut grad)).unwrap();
        done(&format!("{kind:?} backward"), &grad);
    }

    // Ties, of which the first counts, a NaN, and infinities; then more rows than threads.
    let special = [1.0, 1.0, 0.5, 2.0, f32::NAN, 1.0, f32::NEG_INFINITY, 3.0, 0.0, 0.5, 9.0, 9.0];
    let many = random.normals(200 * 3, 30.0);
    for logits in [&special[..3], &special[3..6], &special[6..9], &special, &many] {
        let labels: Vec<u8> = (0..logits.len() / 3).map(|row| (row % 3) as u8).collect();
        let labels = memory.upload(&labels).unwrap();
        let (mut scores, mut grad) = (memory.zeros(2).unwrap(), memory.upload(logits).unwrap());
        let logits = memory.upload(logits).unwrap();
        let labels = || Mem::<B>::view(&labels);
        let to = Some(view_mut(&mut grad));
        backend.cross_entropy(view(&logits), labels(), view_mut(&mut scores), to).unwrap();
        done("cross_entropy, scores", &scores);
        done("cross_entropy, grad", &grad);
        let mut alone = memory.zeros(2).unwrap();
        backend.cross_entropy(view(&logits), labels(), view_mut(&mut alone), None).unwrap();
        done("cross_entropy without a gradient", &alone);
        done("cross_entropy, logits", &logits);
    }
    results
}

#[test]
fn every_operation_is_that_of_the_cpu() {
    let expected = operations(Cpu::default().memory(), &HostBackend);
    for engine in support::cuda::of_every_target() {
        let backend = CudaBackend::new(engine.memory()).unwrap();
        let got = operations(engine.memory(), &backend);
        assert_eq!(got.len(), expected.len());
        for ((what, got), (_, expected)) in got.iter().zip(&expected) {
            close(what, got, expected, 4e-6);
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    fn refusals<B: Backend>(memory: &B::Memory, backend: &B) -> Vec<String> {
        type Mem<B> = <B as Backend>::Memory;
        let buf = |len| memory.zeros::<f32>(len).unwrap();
        let (six, mut five, mut two) = (buf(6), buf(5), buf(2));
        let labels = memory.zeros::<u8>(3).unwrap();
        let view = Mem::<B>::view::<f32>;
        let mut errors = Vec::new();
        let mut refused = |result: anyhow::Result<()>| {
            errors.push(format!("{:#}", result.unwrap_err()));
        };
        let plain = |buf| Operand::Plain(view(buf));
        let kind = Nonlinearity::Relu;
        refused(backend.matmul([2, 3, 2], plain(&six), plain(&six), Mem::<B>::view_mut(&mut five)));
        refused(backend.matmul([1, 4, 1], plain(&six), plain(&six), Mem::<B>::view_mut(&mut two)));
        refused(backend.add_bias(view(&six), Mem::<B>::view_mut(&mut five)));
        refused(backend.sum_rows(view(&six), Mem::<B>::view_mut(&mut five)));
        refused(backend.activate_backward(kind, view(&six), Mem::<B>::view_mut(&mut five)));
        refused(backend.sgd(0.1, view(&six), Mem::<B>::view_mut(&mut five)));
        let classes = Mem::<B>::view(&labels);
        refused(backend.cross_entropy(view(&six), classes, Mem::<B>::view_mut(&mut five), None));
        let (classes, grad) = (Mem::<B>::view(&labels), Some(Mem::<B>::view_mut(&mut five)));
        refused(backend.cross_entropy(view(&six), classes, Mem::<B>::view_mut(&mut two), grad));
        errors
    }
    let (engine, backend) = cuda();
    let got = refusals(engine.memory(), &backend);
    assert_eq!(got, refusals(Cpu::default().memory(), &HostBackend));
    assert_eq!(got[0], "matmul, c: expected a multiple of 4 elements, got 5");
    assert_eq!(got[1], "matmul, a: expected 1 or 2 times 4 elements, got 6");
}

#[test]
fn the_curve_is_that_of_the_cpu_and_falls() {
    let data = Data::digits().unwrap();
    let (engine, backend) = cuda();
    for activation in ["sigmoid", "relu"] {
        let settings = options(&format!("--activation {activation} --test-every 4")).settings();
        let mut here = Experiment::new(&Cpu::default(), &HostBackend, settings, &data).unwrap();
        let mut there = Experiment::new(&engine, &backend, settings, &data).unwrap();
        for _ in 0..8 {
            here.step().unwrap();
            here.record().unwrap();
            there.step().unwrap();
            there.record().unwrap();
        }
        assert_eq!(there.curve.len(), 2);
        for (got, expected) in there.curve.iter().zip(&here.curve) {
            for (got, expected) in [(got.with, expected.with), (got.without, expected.without)] {
                near(got, expected);
            }
        }
        assert!(there.curve[1].with.loss < there.curve[0].with.loss - 0.1, "{:?}", there.curve);
        alike(&there.with.state_dict("").unwrap(), &here.with.state_dict("").unwrap());
        alike(&there.without.state_dict("").unwrap(), &here.without.state_dict("").unwrap());
    }
    support::cuda::assert_no_faults();
}

/// Rounding may turn one image of the 500 over.
#[track_caller]
fn near(got: Score, expected: Score) {
    let loss = relative_eq!(got.loss, expected.loss, epsilon = 0.0, max_relative = 1e-4);
    let accuracy = abs_diff_eq!(got.accuracy, expected.accuracy, epsilon = 0.003);
    assert!(loss && accuracy, "{got:?} {expected:?}");
}

#[track_caller]
fn alike(got: &StateDict, expected: &StateDict) {
    assert!(got.names().eq(expected.names()));
    for name in expected.names().filter(|name| !name.ends_with("num_batches_tracked")) {
        let of = |dict: &StateDict| dict.get::<f32>(name).unwrap().unwrap().1;
        close(name, &of(got), &of(expected), 1e-4);
    }
}

#[test]
fn a_run_is_resumed_bit_for_bit_and_not_elsewhere() {
    let data = Data::digits().unwrap();
    let (engine, backend) = cuda();
    let settings = options("--batch 20 --test-every 100").settings();
    let run = || Experiment::new(&engine, &backend, settings, &data).unwrap();
    let mut whole = run();
    (0..3).for_each(|_| whole.step().unwrap());
    let part = checkpoint::to_bytes(&whole).unwrap();
    (0..2).for_each(|_| whole.step().unwrap());
    let mut resumed = run();
    checkpoint::load(&part, &mut resumed).unwrap();
    (0..2).for_each(|_| resumed.step().unwrap());
    assert!(checkpoint::to_bytes(&resumed).unwrap() == checkpoint::to_bytes(&whole).unwrap());

    let mut cpu = Experiment::new(&Cpu::default(), &HostBackend, settings, &data).unwrap();
    let error = checkpoint::load(&part, &mut cpu).unwrap_err().to_string();
    let expected = "the checkpoint has \"engine: cuda\", this run has \"engine: cpu\"";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn a_call_that_cublas_refuses_is_an_error_that_names_it() {
    let (engine, backend) = cuda();
    if support::cuda::is_real() {
        return println!("skipped: cuBLAS fails when asked to on the software device alone");
    }
    let cublas = softcublas::install().unwrap();
    let memory = engine.memory();
    let (a, mut c) = (memory.upload(&[2f32; 4]).unwrap(), memory.zeros(4).unwrap());
    let mut product = |size| {
        let view = || Operand::Plain(a.as_view());
        backend.matmul(size, view(), view(), c.as_view_mut())
    };
    for (call, size) in [("cublasSgemm", [2, 2, 2]), ("cublasSgemmStridedBatched", [1, 1, 1])] {
        let symbol = if size == [2, 2, 2] { "cublasSgemm_v2" } else { call };
        cublas.fail(symbol, 0, 13);
        let error = format!("{:#}", product(size).unwrap_err());
        assert!(error.starts_with(call) && error.contains("EXECUTION_FAILED"), "{error}");
        product(size).unwrap();
    }
    cublas.fail("cublasCreate_v2", 0, 3);
    let error = format!("{:#}", CudaBackend::new(memory).err().unwrap());
    assert!(error.starts_with("cublasCreate") && error.contains("ALLOC_FAILED"), "{error}");
    cublas.reset();
}
