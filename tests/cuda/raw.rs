//! Memory that something else than cudarc has allocated, by its address.
use crate::support::cuda::on_device;
use crate::support::run::{narrow, widen};
use batchnorm::{
    Activation, Backward, Cuda, Device, Element, Engine, Error, ForwardEval, ForwardTrain, Memory,
    Plain, RawView, RawViewMut, Saved, Shape,
};
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut, result};
use half::{bf16, f16};

/// An allocation of `cuMemAlloc`'s, as another library has one, with an element more in front where it is late.
struct Theirs {
    start: u64,
    address: u64,
    len: usize,
}

impl Theirs {
    fn new<T: Plain>(values: &[T], late: usize) -> Self {
        let len = values.len();
        // SAFETY: a context is current, that of the engine which the caller has made; the memory is as long as
        // what is copied there.
        unsafe {
            let start = result::malloc_sync((len + late) * size_of::<T>()).unwrap();
            let address = start + (late * size_of::<T>()) as u64;
            result::memcpy_htod_sync(address, values).unwrap();
            Self { start, address, len }
        }
    }
    fn view<'a, T: Plain>(&'a self, on: &Device) -> RawView<'a, T> {
        // SAFETY: it lives as long as the view, and nothing else writes there meanwhile.
        unsafe { on.view_raw(self.address, self.len) }.unwrap()
    }
    fn view_mut<'a, T: Plain>(&'a mut self, on: &Device) -> RawViewMut<'a, T> {
        // SAFETY: as above, and nothing else reads there.
        unsafe { on.view_raw_mut(self.address, self.len) }.unwrap()
    }
    /// What is there once all work is done.
    fn values<T: Plain>(&self, engine: &Cuda) -> Vec<T> {
        engine.stream().synchronize().unwrap();
        let mut values = vec![T::default(); self.len];
        // SAFETY: it is as long.
        unsafe { result::memcpy_dtoh_sync(&mut values, self.address) }.unwrap();
        values
    }
    fn free(self) {
        // SAFETY: it is still there, and no work is queued on it.
        unsafe { result::free_sync(self.start) }.unwrap();
    }
}

type Of<'a, T> = CudaView<'a, T>;
type To<'a, T> = CudaViewMut<'a, T>;

/// A training step with every tensor and parameter: x, residual, grad_y; weight, bias; y, grad_x, grad_residual;
/// running mean and variance, grad_weight, grad_bias.
fn step<E: Element>(
    engine: &Cuda,
    shape: &Shape,
    [x, residual, grad_y]: [Of<'_, E>; 3],
    [weight, bias]: [Of<'_, E::Acc>; 2],
    [y, grad_x, grad_residual]: [To<'_, E>; 3],
    [mean, var, grad_weight, grad_bias]: [To<'_, E::Acc>; 4],
) {
    let mut saved = Saved::<Device, E::Acc>::new();
    let forward = ForwardTrain::<Device, E>::new(x.slice(..), y)
        .residual(residual)
        .weight(weight)
        .bias(bias)
        .activation(Activation::Relu)
        .running(mean, var, 0.1)
        .saved(&mut saved);
    engine.forward_train(shape, forward).unwrap();
    let backward = Backward::<Device, E>::new(&saved, x, grad_y)
        .grad_x(grad_x)
        .grad_residual(grad_residual)
        .grad_weight(grad_weight)
        .grad_bias(grad_bias);
    engine.backward(shape, backward).unwrap();
}

fn values<T: Element>(len: usize, seed: usize) -> Vec<T> {
    (0..len).map(|i| narrow(((i * 37 + seed * 101) % 97) as f64 / 31.0 - 1.0)).collect()
}

/// The same bits as on cudarc's memory, at the same distance from an aligned address.
fn the_same_as_on_cudarcs_memory<E: Element>(engine: &Cuda, late: usize) {
    let (shape, on) = (Shape::new(&[6, 5, 7, 9], 1).unwrap(), engine.memory());
    let (n, c) = (shape.len(), shape.channels());
    let tensors: [Vec<E>; 6] = [1, 2, 3, 4, 5, 6].map(|seed| values(n, seed));
    let channels: [Vec<E::Acc>; 6] = [1, 2, 3, 4, 5, 6].map(|seed| values(c, seed));

    let [x, residual, grad_y, mut y, mut grad_x, mut grad_residual] =
        tensors.each_ref().map(|values| upload(on, values, late));
    let [weight, bias, mut mean, mut var, mut grad_weight, mut grad_bias] =
        channels.each_ref().map(|values| upload(on, values, late));
    step::<E>(
        engine,
        &shape,
        [&x, &residual, &grad_y].map(|buf| buf.slice(late..)),
        [&weight, &bias].map(|buf| buf.slice(late..)),
        [&mut y, &mut grad_x, &mut grad_residual].map(|buf| buf.slice_mut(late..)),
        [&mut mean, &mut var, &mut grad_weight, &mut grad_bias].map(|buf| buf.slice_mut(late..)),
    );
    let download = |buf: &CudaSlice<E>| widen(&on.download(buf.slice(late..)).unwrap());
    let mut wanted = vec![download(&y), download(&grad_x), download(&grad_residual)];
    let download = |buf: &CudaSlice<E::Acc>| widen(&on.download(buf.slice(late..)).unwrap());
    wanted.extend([&mean, &var, &grad_weight, &grad_bias].map(download));

    let [x, residual, grad_y, mut y, mut grad_x, mut grad_residual] =
        tensors.each_ref().map(|values| Theirs::new(values, late));
    let [weight, bias, mut mean, mut var, mut grad_weight, mut grad_bias] =
        channels.each_ref().map(|values| Theirs::new(values, late));
    {
        let tensors = [&x, &residual, &grad_y].map(|theirs| theirs.view::<E>(on));
        let parameters = [&weight, &bias].map(|theirs| theirs.view::<E::Acc>(on));
        let mut outputs =
            [&mut y, &mut grad_x, &mut grad_residual].map(|theirs| theirs.view_mut::<E>(on));
        let mut moved = [&mut mean, &mut var, &mut grad_weight, &mut grad_bias]
            .map(|theirs| theirs.view_mut::<E::Acc>(on));
        step::<E>(
            engine,
            &shape,
            tensors.each_ref().map(RawView::as_view),
            parameters.each_ref().map(RawView::as_view),
            outputs.each_mut().map(RawViewMut::as_view_mut),
            moved.each_mut().map(RawViewMut::as_view_mut),
        );
        assert_eq!(outputs[0].as_view().len(), n);
    }
    // The views are gone, and the memory is not.
    let mut got = vec![];
    got.extend([&y, &grad_x, &grad_residual].map(|theirs| widen(&theirs.values::<E>(engine))));
    let moved = [&mean, &var, &grad_weight, &grad_bias];
    got.extend(moved.map(|theirs| widen(&theirs.values::<E::Acc>(engine))));
    assert_eq!(got, wanted, "{}, {late} late", E::DTYPE);
    [x, residual, grad_y, y, grad_x, grad_residual].into_iter().for_each(Theirs::free);
    [weight, bias, mean, var, grad_weight, grad_bias].into_iter().for_each(Theirs::free);
}

fn upload<T: Element>(on: &Device, values: &[T], late: usize) -> CudaSlice<T> {
    on.upload(&[&vec![T::default(); late], values].concat()).unwrap()
}

#[test]
fn a_step_runs_on_memory_of_another_allocator() {
    let softcuda = softcuda::install().unwrap();
    for profile in ["sm_80", "no pools"] {
        let device = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
        let engine = on_device(device.ordinal()).unwrap();
        for late in [0, 1] {
            the_same_as_on_cudarcs_memory::<f64>(&engine, late);
            the_same_as_on_cudarcs_memory::<f32>(&engine, late);
            the_same_as_on_cudarcs_memory::<f16>(&engine, late);
            the_same_as_on_cudarcs_memory::<bf16>(&engine, late);
        }
        drop(engine);
        assert_eq!(device.faults(), [""; 0]);
        assert_eq!(device.refusals(), [""; 0]);
        assert_eq!(device.leaks(), [""; 0]);
        assert_eq!(device.used(), 0);
    }
}

/// Engines on two streams by one view of each tensor: the second waits for the first, and what the first stream does
/// once the views are gone waits for the second.
#[test]
fn streams_wait_for_each_other_by_a_view() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let shape = Shape::new(&[40, 4, 90], 1).unwrap();
    for seed in 0..20 {
        device.set_seed(seed);
        let first = on_device(device.ordinal()).unwrap();
        let second = Cuda::on_stream(first.stream().context().new_stream().unwrap()).unwrap();
        let on = first.memory();
        let x = Theirs::new(&vec![2f32; shape.len()], 0);
        let [mut y, mut z] = [(); 2].map(|()| Theirs::new(&vec![-1f32; shape.len()], 0));
        let (mean, var) = (Theirs::new(&[0f32; 4], 0), Theirs::new(&[1f32; 4], 0));
        {
            let (x, mean, var) = (x.view::<f32>(on), mean.view::<f32>(on), var.view::<f32>(on));
            let (mut y, mut z) = (y.view_mut::<f32>(on), z.view_mut::<f32>(on));
            let same = |engine: &Cuda, x: CudaView<'_, f32>, y: CudaViewMut<'_, f32>| {
                let args = ForwardEval::<Device, f32>::new(x, y, mean.as_view(), var.as_view());
                engine.forward_eval(&shape, args.eps(1e-12)).unwrap();
            };
            same(&first, x.as_view(), y.as_view_mut());
            same(&second, y.as_view(), z.as_view_mut());
        }
        on.write(&vec![7f32; shape.len()], y.view_mut(on).as_view_mut()).unwrap();
        for (theirs, right) in [(&y, 7f32), (&z, 2.0)] {
            second.stream().synchronize().unwrap();
            let wrong = theirs.values::<f32>(&first).iter().filter(|v| **v != right).count();
            assert_eq!(wrong, 0, "seed {seed}: values that are not {right}");
        }
        [x, y, z, mean, var].into_iter().for_each(Theirs::free);
    }
    assert_eq!(device.faults(), [""; 0]);
}

#[test]
fn what_cannot_be_an_address_is_refused() {
    softcuda::install().unwrap();
    let engine = on_device(softcuda::ordinal("mini").unwrap()).unwrap();
    let on = engine.memory();
    // SAFETY: nothing is read or written there.
    let refused = |address: u64, len: usize| unsafe {
        let errors = [
            on.view_raw::<f32>(address, len).map(drop).unwrap_err(),
            on.view_raw_mut::<f32>(address, len).map(drop).unwrap_err(),
        ];
        assert_eq!(errors[0], errors[1]);
        let [Error::Invalid { what: "address", reason }, _] = errors else { panic!("{errors:?}") };
        reason
    };
    let (null, odd) = (refused(0, 12), refused(0x7002, 3));
    assert_eq!(null, "expected an address of the device, got 0x0 for 12 elements of 4 bytes");
    assert_eq!(odd, "expected a multiple of 4, got 0x7002 for 3 elements of 4 bytes");
    let beyond = "expected one behind which they end, got 0x1000 for";
    for len in [usize::MAX, usize::MAX / 4, usize::MAX / 4 - 0x3fe] {
        assert!(refused(0x1000, len).starts_with(beyond), "{len}");
    }
    refused(u64::MAX - 3, 1);
    // SAFETY: of bytes any address will do, and of none, no address is read.
    unsafe {
        assert_eq!(on.view_raw::<u8>(0x7003, 1).unwrap().as_view().len(), 1);
        let (x, mut y) = (on.view_raw::<f32>(0, 0).unwrap(), on.view_raw_mut(0, 0).unwrap());
        let empty = Shape::new(&[0, 3], 1).unwrap();
        let args = ForwardTrain::<Device, f32>::new(x.as_view(), y.as_view_mut());
        engine.forward_train(&empty, args).unwrap();
        // As of any other view, its length is asked for.
        let shape = Shape::new(&[4, 3], 1).unwrap();
        let args = ForwardTrain::<Device, f32>::new(x.as_view(), y.as_view_mut());
        let error = engine.forward_train(&shape, args).unwrap_err();
        assert_eq!(error, Error::Length { what: "x", expected: 12, got: 0 });
    }
    let context = engine.stream().context();
    let here = Device::new(context.per_thread_stream());
    let there = || {
        // SAFETY: of no elements nothing is read.
        unsafe { here.view_raw::<f32>(0, 0) }.map(drop).unwrap_err()
    };
    let error = std::thread::scope(|scope| scope.spawn(there).join().unwrap());
    assert!(matches!(error, Error::Invalid { what: "stream", .. }), "{error}");
}
