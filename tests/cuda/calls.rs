//! How often an operation calls the driver: its launches and one call more where cudarc tracks no events, and
//! what its events add where it does.
use crate::support::cuda::{SPLIT, on_device, resident};
use batchnorm::cudarc::driver::{CudaContext, CudaSlice};
use batchnorm::{
    Backward, BatchNorm, Config, Cuda, Device, Engine, ForwardEval, ForwardTrain, Input,
    LayerNormBackward, LayerNormForward, LayerNormSaved, Memory, Saved, Shape, Tuning,
};
use std::collections::BTreeMap;

const C: usize = 8;

/// A step whose memory is there.
struct Step {
    engine: Cuda,
    shape: Shape,
    x: CudaSlice<f32>,
    y: CudaSlice<f32>,
    grad_x: CudaSlice<f32>,
    /// Weight, bias, running mean, running variance, gradients of weight and bias.
    channels: [CudaSlice<f32>; 6],
    saved: Saved<Device, f32>,
}

/// Calls by name.
type Calls = BTreeMap<String, u64>;

impl Step {
    fn new(engine: Cuda) -> Self {
        let shape = Shape::new(&[4, C, 6, 6], 1).unwrap();
        let on = engine.memory();
        let x: Vec<f32> = (0..shape.len()).map(|i| (i * 37 % 97) as f32).collect();
        let (x, y, grad_x) = (on.upload(&x), on.zeros(shape.len()), on.zeros(shape.len()));
        let channels = [(); 6].map(|()| on.upload(&[1f32; C]).unwrap());
        let (x, y, grad_x) = (x.unwrap(), y.unwrap(), grad_x.unwrap());
        let mut this = Self { shape, x, y, grad_x, channels, saved: Saved::new(), engine };
        // Loads kernels and makes the workspace and what is saved.
        this.forward();
        this.backward();
        this.evaluate();
        this
    }
    fn forward(&mut self) {
        let [weight, bias, mean, var, ..] = &mut self.channels;
        let args = ForwardTrain::<Device, f32>::new(self.x.as_view(), self.y.as_view_mut())
            .weight(weight.as_view())
            .bias(bias.as_view())
            .running(mean.as_view_mut(), var.as_view_mut(), 0.1)
            .saved(&mut self.saved);
        self.engine.forward_train(&self.shape, args).unwrap();
    }
    fn backward(&mut self) {
        let [.., grad_weight, grad_bias] = &mut self.channels;
        let args = Backward::<Device, f32>::new(&self.saved, self.x.as_view(), self.y.as_view())
            .grad_x(self.grad_x.as_view_mut())
            .grad_weight(grad_weight.as_view_mut())
            .grad_bias(grad_bias.as_view_mut());
        self.engine.backward(&self.shape, args).unwrap();
    }
    fn evaluate(&mut self) {
        let [weight, bias, mean, var, ..] = &self.channels;
        let (x, y) = (self.x.as_view(), self.y.as_view_mut());
        let args = ForwardEval::<Device, f32>::new(x, y, mean.as_view(), var.as_view())
            .weight(weight.as_view())
            .bias(bias.as_view());
        self.engine.forward_eval(&self.shape, args).unwrap();
    }
    /// The calls of a forward, of a backward and of an evaluation.
    fn calls(&mut self) -> [Calls; 3] {
        let softcuda = softcuda::install().unwrap();
        let operations = [Self::forward, Self::backward, Self::evaluate];
        operations.map(|operation| softcuda.count_calls(|| operation(self)).1)
    }
}

/// So many launches, and the context made current once.
fn launches(kind: &str, count: u64) -> Calls {
    [("cuCtxGetCurrent".into(), 1), (kind.into(), count)].into()
}

/// By each family: the launches of a forward, a backward and an evaluation.
fn families() -> [(Tuning, [Calls; 3]); 3] {
    let eval = || launches("cuLaunchKernel", 1);
    let [one, group] = ["cuLaunchKernel", "cuLaunchCooperativeKernel"];
    [
        (SPLIT, [launches(one, 3), launches(one, 3), eval()]),
        (resident(1), [launches(one, 1), launches(one, 1), eval()]),
        (resident(2), [launches(group, 1), launches(group, 1), eval()]),
    ]
}

/// The bars: 6 calls for a training forward, launches included, and 4 for an evaluation; 6 for a backward.
fn are_few(calls: &[Calls; 3]) {
    for ((operation, most), calls) in
        [("forward", 6), ("backward", 6), ("evaluation", 4)].iter().zip(calls)
    {
        assert!(calls.values().sum::<u64>() <= *most, "{operation}: {calls:?}");
    }
}

#[test]
fn without_events_an_operation_is_its_launches() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let untracked = CudaContext::new(device.ordinal()).unwrap();
    let stream = untracked.default_stream();
    for (tuning, right) in families() {
        let calls = Step::new(Cuda::on_stream(stream.clone()).unwrap().tuned(tuning)).calls();
        assert_eq!(calls, right, "on the default stream, {tuning:?}");
        are_few(&calls);
    }
    // SAFETY: everything here is on one stream.
    #[allow(unsafe_code)]
    unsafe {
        untracked.disable_event_tracking()
    };
    let stream = untracked.new_stream().unwrap();
    for (tuning, right) in families() {
        let calls = Step::new(Cuda::on_stream(stream.clone()).unwrap().tuned(tuning)).calls();
        assert_eq!(calls, right, "without tracking, {tuning:?}");
    }
    assert_eq!(device.faults(), [""; 0]);
}

/// A layer adds no call to those of its engine.
#[test]
fn a_layer_calls_nothing_of_its_own() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let context = CudaContext::new(device.ordinal()).unwrap();
    let engine = Cuda::on_stream(context.default_stream()).unwrap();
    let shape = Shape::new(&[4, C, 6, 6], 1).unwrap();
    let x = engine.memory().upload(&vec![0.5f32; shape.len()]).unwrap();
    let mut y = engine.memory().zeros::<f32>(shape.len()).unwrap();
    let mut layer = BatchNorm::<f32, Cuda>::new(&engine, C, Config::default()).unwrap();
    let mut saved = Saved::new();
    let mut step = || {
        layer.forward_into(&shape, x.as_view(), None, y.as_view_mut(), &mut saved).unwrap();
        layer.infer_into(&shape, Input::View(x.as_view()), None, y.as_view_mut()).unwrap();
    };
    step();
    let ((), calls) = softcuda.count_calls(step);
    let of = |name: &str| calls.get(name).copied().unwrap_or(0);
    let launched = of("cuLaunchKernel") + of("cuLaunchCooperativeKernel");
    assert_eq!(of("cuCtxGetCurrent"), 2, "{calls:?}");
    assert_eq!(calls.values().sum::<u64>(), 2 + launched, "{calls:?}");
}

/// What a layer normalization saves is one allocation, and one argument.
#[test]
fn what_rows_save_is_one_argument() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let engine = on_device(device.ordinal()).unwrap();
    let (shape, on) = (Shape::new(&[5, C], 1).unwrap(), engine.memory());
    let x = on.upload(&vec![0.5f32; shape.len()]).unwrap();
    let [mut y, mut grad_x] = [(); 2].map(|()| on.zeros::<f32>(shape.len()).unwrap());
    let mut saved = LayerNormSaved::<Device, f32>::new();
    let mut forward = || {
        let args = LayerNormForward::<Device, f32>::new(x.as_view(), y.as_view_mut());
        engine.layer_norm(&shape, args.saved(&mut saved)).unwrap();
    };
    let ((), first) = softcuda.count_calls(&mut forward);
    let allocations = |calls: &Calls| -> u64 {
        calls
            .iter()
            .filter(|(name, _)| name.starts_with("cuMemAlloc"))
            .map(|(_, count)| count)
            .sum()
    };
    let ((), calls) = softcuda.count_calls(&mut forward);
    let waits = |calls: &Calls| calls.get("cuStreamWaitEvent").copied().unwrap_or(0);
    assert_eq!(waits(&calls), 2 * 3, "x, y and what is saved: {calls:?}");
    assert_eq!(allocations(&calls), 0, "{calls:?}");
    assert_eq!(allocations(&first), 1, "{first:?}");
    let args = LayerNormBackward::<Device, f32>::new(&saved, x.as_view(), y.as_view());
    let args = args.grad_x(grad_x.as_view_mut());
    let ((), calls) = softcuda.count_calls(|| engine.layer_norm_backward(&shape, args).unwrap());
    assert_eq!(waits(&calls), 2 * 4, "x, grad_y, grad_x and what was saved: {calls:?}");
    assert_eq!(device.faults(), [""; 0]);
}

/// Two waits and a record for an argument, however many arrays a `Saved` has, and nothing for the workspace.
#[test]
fn events_are_of_arguments_alone() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    for (tuning, right) in families() {
        let calls = Step::new(on_device(device.ordinal()).unwrap().tuned(tuning)).calls();
        // x, weight, bias | y, running mean and variance, saved; x, y, saved | gradients of x, weight and
        // bias; x, weight, bias, mean, variance | y.
        let arguments = [(3, 4), (3, 3), (5, 1)];
        for ((calls, right), (read, written)) in calls.iter().zip(right).zip(arguments) {
            let mut right = right;
            right.insert("cuStreamWaitEvent".into(), 2 * (read + written));
            right.insert("cuEventRecord".into(), read + written);
            // cudarc's events make the context current, each by itself.
            right.insert("cuCtxGetCurrent".into(), 1 + 2 * read + 3 * written);
            assert_eq!(*calls, right, "{tuning:?}");
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}
