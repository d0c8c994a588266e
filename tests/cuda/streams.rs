//! Readers of one tensor on several streams, and who writes or drops it after them.
use crate::support::cuda::on_device;
use batchnorm::{Cuda, Device, Engine, ForwardEval, Memory, Shape};
use cudarc::driver::CudaSlice;

const C: usize = 4;

/// One per stream; the first owns the memory.
struct Readers {
    engines: Vec<Cuda>,
    shape: Shape,
    mean: CudaSlice<f32>,
    var: CudaSlice<f32>,
}

impl Readers {
    fn new(ordinal: usize) -> Self {
        let first = on_device(ordinal).unwrap();
        let context = first.stream().context().clone();
        let other = || Cuda::on_stream(context.new_stream().unwrap()).unwrap();
        let (a, b) = (other(), other());
        let memory = first.memory();
        let (mean, var) = (memory.zeros(C).unwrap(), memory.upload(&[1f32; C]).unwrap());
        let shape = Shape::new(&[40, C, 90], 1).unwrap();
        Self { engines: vec![first, a, b], shape, mean, var }
    }
    fn memory(&self) -> &Device {
        self.engines[0].memory()
    }
    /// y of x, which is x but for eps.
    fn read(&self, engine: usize, x: &CudaSlice<f32>) -> CudaSlice<f32> {
        let engine = &self.engines[engine];
        let mut y = engine.memory().zeros(self.shape.len()).unwrap();
        let args = ForwardEval::<Device, f32>::new(
            x.as_view(),
            y.as_view_mut(),
            self.mean.as_view(),
            self.var.as_view(),
        )
        .eps(1e-12);
        engine.forward_eval(&self.shape, args).unwrap();
        y
    }
}

/// The second reader's event stands for the first one, too, whoever it is: an engine on another stream
/// or a download.
#[test]
fn what_several_streams_read_is_written_and_dropped_after_them() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    for seed in 0..20 {
        device.set_seed(seed);
        let readers = Readers::new(device.ordinal());
        let (memory, n) = (readers.memory(), readers.shape.len());
        for download in [false, true] {
            let mut x = memory.upload(&vec![2f32; n]).unwrap();
            let first = readers.read(1, &x);
            let second = match download {
                true => memory.upload(&memory.download(x.as_view()).unwrap()).unwrap(),
                false => readers.read(2, &x),
            };
            memory.write(&vec![7f32; n], x.as_view_mut()).unwrap();
            let third = readers.read(1, &x);
            let fourth = readers.read(2, &x);
            drop(x);
            // What is freed is given out again.
            let again = memory.upload(&vec![-1f32; n]).unwrap();
            for (y, right) in [(first, 2f32), (second, 2.0), (third, 7.0), (fourth, 7.0)] {
                let y = memory.download(y.as_view()).unwrap();
                let wrong = y.iter().filter(|y| **y != right).count();
                assert_eq!(wrong, 0, "seed {seed}: values that are not {right}");
            }
            drop(again);
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}
