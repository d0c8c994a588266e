//! Which engine `Gpu` takes, and why.
use crate::support::cudnn::{gpu, on_device};
use crate::support::oracle::{self, judge};
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want};
use batchnorm::{Activation, Choice, DType, Engine, Gpu, Op, Request, Rule, Shape};

const REQUEST: Request = Request::new(Op::ForwardTrain, DType::F32);

fn rows() -> Shape {
    Shape::new(&[6, 8], 1).unwrap()
}

#[test]
fn without_a_measurement_our_kernels_serve_and_cudnn_is_not_loaded() {
    softcuda::install().unwrap();
    let gpu = Gpu::new(0).unwrap();
    assert!(gpu.cudnn().is_none());
    let text = gpu.explain(&rows(), REQUEST).unwrap();
    let why = "; no rule fits, which is how it is until cuDNN measures faster";
    assert!(text.starts_with("cuda: ") && text.ends_with(why), "{text}");
}

#[test]
fn the_first_rule_that_fits_decides() {
    let is_first = Rule::always(Choice::Cuda).to(47);
    let is_second = Rule::always(Choice::Cudnn).from(48).to(48);
    let of_f64 = Rule::always(Choice::Cudnn).dtype(DType::F64);
    let last = Rule::always(Choice::Cudnn).channels_last(false);
    let evaluates = Rule::always(Choice::Cudnn).op(Op::ForwardEval);
    let gpu = gpu().with_rules(&[is_first, is_second, of_f64, last, evaluates]);
    let taken = |dims: &[usize], request| {
        let text = gpu.explain(&Shape::new(dims, 1).unwrap(), request).unwrap();
        (text[..5].to_owned(), text.rsplit("; ").next().unwrap_or_default().to_owned())
    };
    let by = |engine: &str, rule: usize| (engine.to_owned(), format!("by rule {rule}"));
    assert_eq!(taken(&[47, 1], REQUEST), by("cuda:", 0));
    assert_eq!(taken(&[6, 8], REQUEST), by("cudnn", 1));
    assert_eq!(taken(&[7, 7], REQUEST.dtype(DType::F64)), by("cudnn", 2));
    assert_eq!(taken(&[7, 7, 2], REQUEST), by("cudnn", 3));
    assert_eq!(taken(&[7, 7], REQUEST.op(Op::ForwardEval)), by("cudnn", 4));
    assert_eq!(taken(&[7, 7], REQUEST).0, "cuda:");
}

#[test]
fn what_cudnn_refuses_is_said_and_served() {
    let text = |request| gpu().explain(&rows(), request).unwrap();
    let relu = REQUEST.activation(Activation::Relu);
    let why =
        "by rule 0 it would be cuDNN, but cuDNN's backward through a ReLU gives not all gradients";
    assert!(text(relu).ends_with(why), "{}", text(relu));
    let eval = text(relu.op(Op::ForwardEval));
    assert!(
        eval.ends_with("but cudnn: evaluation has nothing behind it: expected no ReLU, got one")
    );
    assert!(text(REQUEST.op(Op::Stats)).ends_with("cuDNN has no such call"));
    assert!(text(REQUEST.op(Op::Backward)).ends_with("if our kernels ran the forward"));
}

/// Its two passes, and how they cut the tensor: by channels or by columns.
#[test]
fn a_double_backward_is_explained_by_every_engine() {
    let request = Request::new(Op::DoubleBackward, DType::F16);
    let planes = Shape::new(&[16, 4, 4096], 1).unwrap();
    for (activation, shape, parts, curved) in [
        (Activation::Silu, rows(), "1 parts of 64 columns", "_curved"),
        (Activation::Relu, planes, "16 parts of 4 channels", ""),
    ] {
        let (gpu, request) = (gpu(), request.activation(activation));
        let text = gpu.cuda().explain(&shape, request).unwrap();
        let steps = format!(
            "cuda: double_backward_sums{curved}, double_backward_finalize, double_backward_apply{curved}"
        );
        assert_eq!(text, format!("{steps}; {parts}"));
        let served = gpu.explain(&shape, request).unwrap();
        assert_eq!(served, format!("{text}; cuDNN has no such call"));
        let refused = gpu.cudnn().unwrap().explain(&shape, request).unwrap_err();
        assert_eq!(refused.to_string(), "cudnn: there is no backward of a backward");
    }
}

/// The saved statistics of a plain forward by cuDNN serve gradients that only our kernels have.
#[test]
fn a_backward_follows_its_forward_and_gives_every_gradient() {
    let gpu = gpu();
    for dims in [&[6, 8][..], &[3, 5, 7]] {
        let shape = Shape::new(dims, 1).unwrap();
        let inputs = Inputs::<f32>::new(&shape, Epilogue::PLAIN, 5);
        let mode = Mode::Train(None);
        let mut saved = SavedOn::<Gpu, f32>::new();
        let forward = run::forward(&gpu, &inputs, mode, Some(&mut saved)).unwrap();
        let all = Want::all(Epilogue::PLAIN);
        for want in [
            all,
            Want { sums: false, ..all },
            Want { in_place: true, sums: false, ..all },
            Want { grad_x: false, sums: false, ..all },
        ] {
            let got = run::backward(&gpu, &inputs, want, &saved, None).unwrap();
            let right = oracle::backward(&inputs, mode, want, &forward["y"], None);
            judge(&format!("{want:?}"), DType::F32, &shape, &got, &right);
        }
        // Apart, each refuses the other's.
        let error = run::backward(gpu.cuda(), &inputs, all, &saved, None).unwrap_err();
        let expected = "saved: the forward had engine cudnn, this backward has cuda";
        assert_eq!(error.to_string(), expected);
        run::forward(gpu.cuda(), &inputs, mode, Some(&mut saved)).unwrap();
        let error = run::backward(gpu.cudnn().unwrap(), &inputs, all, &saved, None).unwrap_err();
        let expected = "saved: the forward had engine cuda, this backward has cudnn";
        assert_eq!(error.to_string(), expected);
        run::backward(&gpu, &inputs, all, &saved, None).unwrap();
    }
}

/// What cuDNN refuses only when it is called falls to our kernels.
#[test]
fn a_refusal_of_the_call_itself_is_served_by_our_kernels() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let gpu = crate::support::cudnn::gpu_on(device.ordinal()).unwrap();
    let cudnn = softcudnn::install().unwrap();
    let inputs = Inputs::<f32>::new(&rows(), Epilogue::PLAIN, 5);
    let calls =
        ["ForwardTrainingEx", "ForwardInference"].map(|c| format!("cudnnBatchNormalization{c}"));
    for (call, mode) in calls.iter().zip([Mode::Train(Some(0.1)), Mode::Eval]) {
        cudnn.fail(call, 0, 3000);
        let got = run::forward(&gpu, &inputs, mode, None).unwrap();
        judge(call, DType::F32, &rows(), &got, &oracle::forward(&inputs, mode));
    }
    let (mode, mut saved) = (Mode::Train(None), SavedOn::<Gpu, f32>::new());
    cudnn.fail(&calls[0], 0, 3000);
    let forward = run::forward(&gpu, &inputs, mode, Some(&mut saved)).unwrap();
    // It is ours now.
    let want = Want::all(Epilogue::PLAIN);
    let got = run::backward(gpu.cuda(), &inputs, want, &saved, None).unwrap();
    let right = oracle::backward(&inputs, mode, want, &forward["y"], None);
    judge("backward", DType::F32, &rows(), &got, &right);
    // A failure is no refusal.
    cudnn.fail(&calls[0], 0, 5000);
    let error = run::forward(&gpu, &inputs, mode, None).unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}: CUDNN_STATUS_EXEC", calls[0])), "{error}");
    drop(on_device(device.ordinal()).unwrap());
    gpu.prepare(&rows(), REQUEST).unwrap();
    assert_eq!(gpu.supports(&rows(), REQUEST.op(Op::MergeStats)), Ok(()));
}
