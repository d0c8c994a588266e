//! On a CUDA device, beside the CPU.
use approx::abs_diff_eq;
use batchnorm::{Cpu, Engine, Memory};

use super::example::backend::cuda::CudaBackend;
use super::example::random::Random;
use super::example::spatial::{CudaSpatial, HostSpatial, Images, Layout, Spatial};
use super::{LAYOUTS, alike, on_cpu, steps, support};

#[test]
fn a_few_steps_are_those_of_the_cpu_and_the_loss_falls() {
    let engine = support::cuda::beside_cublas();
    let backend = CudaBackend::new(engine.memory()).unwrap();
    let spatial = CudaSpatial::new(engine.memory()).unwrap();
    for layout in LAYOUTS {
        let run = steps(&engine, (&backend, &spatial), layout, 6);
        alike(&run, &on_cpu(layout, 6));
        assert!(run.losses[4] < run.losses[0] - 0.2, "{layout:?}: {:?}", run.losses);
        assert!(run.losses[5] < run.losses[1] - 0.2, "{layout:?}: {:?}", run.losses);
    }
    support::cuda::assert_no_faults();
}

/// What every operation makes of the same numbers.
fn operations<S: Spatial>(memory: &S::Memory, spatial: &S, layout: Layout) -> Vec<Vec<f32>> {
    type Mem<S> = <S as Spatial>::Memory;
    let of = Images { count: 3, channels: 5, height: 4, width: 6, layout };
    let mut random = Random::new(9, 0);
    let mut new = |len| memory.upload(&random.normals(len, 1.0)).unwrap();
    let (x, windows) = (new(of.len()), new(of.windows().len()));
    let (mut columns, mut grad_x, mut onto) =
        (new(of.windows().len()), new(of.len()), new(of.len()));
    let (mut pooled, mut unpooled) = (new(of.pooled(2).len()), new(of.len()));
    let view = Mem::<S>::view::<f32>;
    let view_mut = Mem::<S>::view_mut::<f32>;
    spatial.im2col(of, view(&x), view_mut(&mut columns)).unwrap();
    spatial.col2im(of, view(&windows), false, view_mut(&mut grad_x)).unwrap();
    spatial.col2im(of, view(&windows), true, view_mut(&mut onto)).unwrap();
    spatial.mean_pool(of, 2, view(&x), view_mut(&mut pooled)).unwrap();
    spatial.mean_pool_backward(of, 2, view(&pooled), view_mut(&mut unpooled)).unwrap();
    [columns, grad_x, onto, pooled, unpooled].map(|buf| memory.download(view(&buf)).unwrap()).into()
}

/// What every operation says of tensors that are too short, or of squares that do not fill.
fn refusals<S: Spatial>(memory: &S::Memory, spatial: &S) -> Vec<String> {
    type Mem<S> = <S as Spatial>::Memory;
    let of = Images { count: 1, channels: 1, height: 2, width: 2, layout: Layout::Nchw };
    let (four, one) = (memory.zeros::<f32>(4).unwrap(), memory.zeros::<f32>(1).unwrap());
    let (mut to_four, mut to_one) = (memory.zeros(4).unwrap(), memory.zeros(1).unwrap());
    let mut errors = Vec::new();
    let mut refused = |result: anyhow::Result<()>| errors.push(result.unwrap_err().to_string());
    let view = Mem::<S>::view::<f32>;
    let view_mut = Mem::<S>::view_mut::<f32>;
    refused(spatial.im2col(of, view(&one), view_mut(&mut to_four)));
    refused(spatial.im2col(of, view(&four), view_mut(&mut to_four)));
    refused(spatial.col2im(of, view(&four), false, view_mut(&mut to_four)));
    refused(spatial.mean_pool(of, 2, view(&one), view_mut(&mut to_one)));
    refused(spatial.mean_pool(of, 2, view(&four), view_mut(&mut to_four)));
    refused(spatial.mean_pool(of, 0, view(&four), view_mut(&mut to_one)));
    refused(spatial.mean_pool(of, 3, view(&four), view_mut(&mut to_one)));
    refused(spatial.mean_pool_backward(of, 2, view(&four), view_mut(&mut to_four)));
    refused(spatial.mean_pool_backward(of, 2, view(&one), view_mut(&mut to_one)));
    refused(spatial.mean_pool_backward(of, 3, view(&one), view_mut(&mut to_four)));
    errors
}

#[test]
fn every_operation_is_that_of_the_cpu() {
    let engine = support::cuda::beside_cublas();
    let engines = support::cuda::of_every_target();
    for (engine, layout) in engines.iter().flat_map(|e| LAYOUTS.map(|layout| (e, layout))) {
        let spatial = CudaSpatial::new(engine.memory()).unwrap();
        let got = operations(engine.memory(), &spatial, layout);
        let expected = operations(Cpu::default().memory(), &HostSpatial, layout);
        // The same sums in the same order.
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let near = abs_diff_eq!(got[..], expected[..], epsilon = 1e-6);
            assert!(near, "{layout:?} {i}: {got:?} {expected:?}");
        }
    }
    let spatial = CudaSpatial::new(engine.memory()).unwrap();
    let got = refusals(engine.memory(), &spatial);
    assert_eq!(got, refusals(Cpu::default().memory(), &HostSpatial));
    assert!(got[1].starts_with("im2col, columns: expected 36 elements for Images"), "{got:?}");
}
