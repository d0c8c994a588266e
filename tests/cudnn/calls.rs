//! How often an operation calls cuDNN and copies, and the y that the caller keeps.
use crate::support::cudnn::on_device;
use batchnorm::cudarc::driver::{CudaContext, CudaSlice};
use batchnorm::{
    Activation, Backward, BatchNorm, Config, Cudnn, DType, Device, Element, Engine, Error,
    ForwardEval, ForwardTrain, Memory, Op, Request, Saved, Shape,
};
use half::f16;

/// A step whose memory is there: x and y, gradients of both, and what goes with channels.
struct Step<E: Element> {
    engine: Cudnn,
    shape: Shape,
    activation: Activation,
    y_is_kept: bool,
    tensors: [CudaSlice<E>; 3],
    channels: [CudaSlice<f32>; 6],
    saved: Saved<Device, f32>,
}

impl<E: Element<Acc = f32>> Step<E> {
    fn new(engine: &Cudnn, dims: &[usize], axis: usize, activation: Activation) -> Self {
        let (shape, on) = (Shape::new(dims, axis).unwrap(), engine.memory());
        let x: Vec<E> =
            (0..shape.len()).map(|i| E::narrow((i * 37 % 97) as f32 / 31.0 - 1.2)).collect();
        let tensors = [(); 3].map(|()| on.upload(&x).unwrap());
        let channels = [(); 6].map(|()| on.upload(&vec![1f32; shape.channels()]).unwrap());
        let saved = Saved::new();
        Self {
            engine: engine.clone(),
            shape,
            activation,
            y_is_kept: false,
            tensors,
            channels,
            saved,
        }
    }
    fn forward(&mut self) {
        let ([x, y, _], [weight, bias, mean, var, ..]) = (&mut self.tensors, &mut self.channels);
        let args = ForwardTrain::<Device, E>::new(x.as_view(), y.as_view_mut())
            .weight(weight.as_view())
            .bias(bias.as_view())
            .running(mean.as_view_mut(), var.as_view_mut(), 0.1)
            .activation(self.activation)
            .y_is_kept(self.y_is_kept)
            .saved(&mut self.saved);
        self.engine.forward_train(&self.shape, args).unwrap();
    }
    fn backward(&mut self) {
        let ([x, y, grad_x], [.., grad_weight, grad_bias]) =
            (&mut self.tensors, &mut self.channels);
        let mut args = Backward::<Device, E>::new(&self.saved, x.as_view(), x.as_view())
            .grad_x(grad_x.as_view_mut())
            .grad_weight(grad_weight.as_view_mut())
            .grad_bias(grad_bias.as_view_mut());
        args.y = self.y_is_kept.then(|| y.as_view());
        self.engine.backward(&self.shape, args).unwrap();
    }
    fn evaluate(&mut self) {
        let ([x, y, _], [weight, bias, mean, var, ..]) = (&mut self.tensors, &mut self.channels);
        let (x, y) = (x.as_view(), y.as_view_mut());
        let args = ForwardEval::<Device, E>::new(x, y, mean.as_view(), var.as_view())
            .weight(weight.as_view())
            .bias(bias.as_view());
        self.engine.forward_eval(&self.shape, args).unwrap();
    }
    fn results(&self) -> (Vec<E>, Vec<f32>, Vec<f32>) {
        let on = self.engine.memory();
        let [.., grad_weight, grad_bias] = &self.channels;
        let [weight, bias] =
            [grad_weight, grad_bias].map(|grad| on.download(grad.as_view()).unwrap());
        (on.download(self.tensors[2].as_view()).unwrap(), weight, bias)
    }
    /// The calls of cuDNN that this makes, and its copies on the device.
    fn calls(&mut self, operation: fn(&mut Self)) -> (Vec<String>, u64) {
        let (softcuda, cudnn) = (softcuda::install().unwrap(), softcudnn::install().unwrap());
        cudnn.reset();
        let ((), calls) = softcuda.count_calls(|| operation(self));
        (cudnn.calls(), calls.get("cuMemcpyDtoDAsync_v2").copied().unwrap_or(0))
    }
}

/// One call, and the copies of weight and bias, which an optimizer may change before the backward.
fn makes_one_call<E: Element<Acc = f32>>(engine: &Cudnn, dims: &[usize], axis: usize) {
    let mut step = Step::<E>::new(engine, dims, axis, Activation::Identity);
    let operations = [Step::forward, Step::backward, Step::evaluate];
    operations.iter().for_each(|operation| operation(&mut step));
    let calls = operations.map(|operation| step.calls(operation));
    let one = |name: &str, copies: u64| (vec![format!("cudnnBatchNormalization{name}")], copies);
    let right = [one("ForwardTrainingEx", 2), one("BackwardEx", 0), one("ForwardInference", 0)];
    assert_eq!(calls, right, "{} {dims:?}", E::DTYPE);
}

#[test]
fn an_operation_is_one_call_whatever_the_form() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    for (dims, axis) in [(&[3, 4, 5, 5][..], 1), (&[3, 5, 5, 8], 3), (&[9, 6], 1)] {
        makes_one_call::<f32>(&engine, dims, axis);
        makes_one_call::<f16>(&engine, dims, axis);
    }
    // A form that was described is not described again, by whichever engine of the stream.
    let other = Cudnn::on_stream(engine.stream().clone()).unwrap();
    let mut step = Step::<f32>::new(&other, &[3, 4, 5, 5], 1, Activation::Identity);
    assert_eq!(step.calls(Step::forward).0, ["cudnnBatchNormalizationForwardTrainingEx"]);
    assert_eq!(device.faults(), [""; 0]);
}

/// A layer's caller who keeps y.
#[test]
fn a_layer_whose_y_is_kept_copies_none() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let context = CudaContext::new(device.ordinal()).unwrap();
    on_device(device.ordinal()).unwrap();
    let engine = Cudnn::on_stream(context.default_stream()).unwrap();
    let (shape, on) = (Shape::new(&[3, 8, 5, 5], 1).unwrap(), engine.memory());
    let x: Vec<f32> = (0..shape.len()).map(|i| (i * 37 % 97) as f32 / 31.0 - 1.2).collect();
    let (x, mut y) = (on.upload(&x).unwrap(), on.zeros::<f32>(shape.len()).unwrap());
    let config = Config::default().activation(Activation::Relu);
    let [copied, kept] = [false, true].map(|keeps| {
        let mut layer = BatchNorm::<f32, _>::new(&engine, 8, config).unwrap();
        let mut saved = Saved::new();
        let mut step = || {
            let (x, y) = (x.as_view(), y.as_view_mut());
            match keeps {
                true => layer.forward_keeping_y_into(&shape, x, None, y, &mut saved),
                false => layer.forward_into(&shape, x, None, y, &mut saved),
            }
        };
        step().unwrap();
        let (done, calls) = softcuda.count_calls(step);
        done.unwrap();
        calls.get("cuMemcpyDtoDAsync_v2").copied().unwrap_or(0)
    });
    assert_eq!((copied, kept), (3, 2), "weight and bias are copied");
    assert_eq!(device.faults(), [""; 0]);
}

/// By the caller's y as by a copy of it, which then is not made and takes no memory.
#[test]
fn a_kept_y_is_not_copied() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    // cuDNN's calls lie in the order of one stream, whatever cudarc tracks.
    let context = CudaContext::new(device.ordinal()).unwrap();
    on_device(device.ordinal()).unwrap();
    let engine = Cudnn::on_stream(context.default_stream()).unwrap();
    let steps = [false, true].map(|y_is_kept| {
        let mut step = Step::<f16>::new(&engine, &[3, 5, 5, 8], 3, Activation::Relu);
        step.y_is_kept = y_is_kept;
        step.forward();
        let copies = step.calls(Step::forward).1;
        step.backward();
        (copies, step)
    });
    let [(copied, by_copy), (kept, mut by_y)] = steps;
    assert_eq!((copied, kept), (3, 2), "weight and bias are copied");
    assert_eq!(by_copy.results(), by_y.results());
    assert!(by_copy.results().0.iter().any(|g| *g != f16::ZERO));
    let request =
        Request::new(Op::ForwardTrain, DType::F16).activation(Activation::Relu).saves(true);
    let len = |kept| engine.reserve_len(&by_y.shape, request.y_is_kept(kept));
    assert!(len(false) >= len(true) + 2 * by_y.shape.len());
    // It is y that is read: what the ReLU let through is no secret of the reserve.
    let [x, _, grad_x] = &mut by_y.tensors;
    let args = Backward::<Device, f16>::new(&by_y.saved, x.as_view(), x.as_view())
        .grad_x(grad_x.as_view_mut());
    let error = engine.backward(&by_y.shape, args).unwrap_err();
    let reason = "expected that of the forward, which was told that it is kept, got none";
    assert!(matches!(error, Error::Invalid { what: "y", .. }), "{error}");
    assert!(error.to_string().ends_with(reason), "{error}");
    assert_eq!(softcudnn::install().unwrap().faults(), [""; 0]);
    assert_eq!(device.faults(), [""; 0]);
}
