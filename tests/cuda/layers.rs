//! What steps of a layer read and write of global memory beside a plain step: ghost batches and renormalization.
use crate::support::cuda::{self, on_device};
use crate::support::run;
use batchnorm::{
    Activation, BatchNorm, Config, Cuda, Device, Element, Engine, Family, Ghost, GhostUpdate,
    Input, Memory, Reference, Renorm, Saved, Shape, Tuning,
};
use half::{bf16, f16};
use std::num::NonZero;

const SPLIT: (&str, Tuning) = ("mini", cuda::SPLIT);
const RESIDENT: (&str, Tuning) = ("sm_90", Tuning::new(Family::Resident { blocks: None }));

/// What a step has taken: tensors read and written, and launches.
#[derive(Debug, Clone, Copy)]
struct Taken {
    forward: f64,
    step: f64,
    launches: usize,
}

/// The second step of a layer, which makes no memory.
fn taken((profile, tuning): (&str, Tuning), shape: &Shape, config: Config) -> Taken {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
    let engine = on_device(device.ordinal()).unwrap().tuned(tuning);
    let config = config.activation(Activation::Relu);
    let mut bn = BatchNorm::<f32, Cuda>::new(&engine, shape.channels(), config).unwrap();
    let values: Vec<f32> = (0..shape.len()).map(|i| (i * 37 % 97) as f32 / 31.0 - 1.0).collect();
    let on = bn.engine().memory().clone();
    let (x, grad_y) = (on.upload(&values).unwrap(), on.upload(&values).unwrap());
    let (mut y, mut grad_x) = (on.upload(&values).unwrap(), on.upload(&values).unwrap());
    let mut saved = Saved::<Device, f32>::new();
    let mut seen = 0;
    let mut all = [(0.0, 0); 2];
    for _ in 0..2 {
        for (k, taken) in all.iter_mut().enumerate() {
            match k {
                0 => {
                    bn.forward_into(shape, x.as_view(), None, y.as_view_mut(), &mut saved).unwrap()
                }
                _ => {
                    let (grad_y, to) = (Input::View(grad_y.as_view()), grad_x.as_view_mut());
                    bn.backward_into(&saved, x.as_view(), None, grad_y, Some(to), None).unwrap();
                }
            }
            engine.stream().synchronize().unwrap();
            let launches = device.launches().split_off(seen);
            seen += launches.len();
            let bytes = launches.iter().map(|launch| {
                let counts = &launch.counts;
                counts.global_loads.bytes + counts.global_stores.bytes
            });
            *taken = (bytes.sum::<u64>() as f64 / (4 * shape.len()) as f64, launches.len());
        }
    }
    assert_eq!(device.faults(), [""; 0]);
    let [(forward, first), (backward, second)] = all;
    Taken { forward, step: forward + backward, launches: first + second }
}

/// NCHW, NHWC, N x C, and rows of a ghost batch: so many that vectors of a value per channel, and records of six, are
/// small beside tensors. Without further axes a step of 8 rows takes more for these than for its tensors.
fn shapes() -> [(Shape, usize); 3] {
    [
        (Shape::new(&[32, 16, 1024], 1).unwrap(), 8),
        (Shape::new(&[32, 256, 64], 2).unwrap(), 8),
        (Shape::new(&[1024, 128], 1).unwrap(), 256),
    ]
}

#[test]
fn renormalization_takes_one_pass_more_at_most() {
    for (shape, _) in shapes() {
        for renorm in [Renorm::keras(), Renorm::paper(3.0, 5.0)] {
            for on in [SPLIT, RESIDENT] {
                let plain = taken(on, &shape, Config::default());
                let got = taken(on, &shape, Config::default().renorm(renorm));
                let what = format!("{shape} on {}: {got:?} beside {plain:?}", on.0);
                // One more reading; the rest are partial sums and vectors of a value per channel.
                assert!(got.forward <= plain.forward + 1.15, "{what}");
                assert!(got.step <= 1.5 * plain.step, "{what}");
                assert!(got.launches <= plain.launches + 8, "{what}");
            }
        }
    }
}

#[test]
fn ghost_batches_take_one_pass_more_at_most() {
    for (shape, rows) in shapes() {
        for ghost in [
            Ghost::consecutive(rows),
            Ghost::consecutive(rows).update(GhostUpdate::Average),
            Ghost::strided(rows),
        ] {
            for on in [SPLIT, RESIDENT] {
                let plain = taken(on, &shape, Config::default());
                let got = taken(on, &shape, Config::default().ghost(ghost));
                let what = format!("{shape}, {ghost} on {}: {got:?} beside {plain:?}", on.0);
                // Vectors of a value per channel are a part of tensors as small as these.
                assert!(got.forward <= plain.forward + 1.1, "{what}");
                assert!(got.step <= 1.5 * plain.step, "{what}");
                // Strided groups are one call, wherever the channels are, and some on their vectors.
                let one = ghost == Ghost::strided(rows);
                assert!(!one || got.launches <= plain.launches + 24, "{what}");
            }
        }
    }
}

/// y and both gradients of a step in strided groups, and the parameters'.
fn strided<E: Element, G: Engine>(
    engine: &G,
    shape: &Shape,
    config: Config,
    seed: usize,
) -> [Vec<f64>; 5] {
    let on = engine.memory();
    let values = |step: usize| -> Vec<E> {
        (0..shape.len())
            .map(|i| run::narrow(((i * step + seed) % 101) as f64 / 32.0 - 1.5))
            .collect()
    };
    let [x, residual, grad_y] = [37, 53, 29].map(|step| on.upload(&values(step)).unwrap());
    let mut bn = BatchNorm::<E::Acc, G>::new(engine, shape.channels(), config).unwrap();
    let (y, saved) =
        bn.forward_add(shape, G::Memory::view(&x), G::Memory::view(&residual)).unwrap();
    let (grad_x, grad_residual) = bn
        .backward_add(
            &saved,
            G::Memory::view(&x),
            Some(G::Memory::view(&residual)),
            G::Memory::view(&grad_y),
        )
        .unwrap();
    let mut parameters = vec![];
    for (_, param) in bn.named_parameters() {
        parameters
            .extend(run::widen(&on.download(G::Memory::view(param.grad().unwrap())).unwrap()));
    }
    let running = run::widen(&on.download(G::Memory::view(&bn.running().unwrap().var)).unwrap());
    let [y, grad_x, grad_residual] = [y, grad_x, grad_residual]
        .map(|tensor| run::widen(&on.download(G::Memory::view(&tensor)).unwrap()));
    [y, grad_x, grad_residual, parameters, running]
}

/// Channels last, or between other axes: by one launch or several, by blocks alone and in groups, of what fits and of
/// what does not.
#[test]
fn strided_groups_are_batches_wherever_the_channels_are() {
    fn agree<E: Element>(profile: &str, near: f64) {
        let softcuda = softcuda::install().unwrap();
        let device = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
        let engine = on_device(device.ordinal()).unwrap();
        let resident = |blocks| Tuning::new(Family::Resident { blocks: NonZero::new(blocks) });
        let tunings = [
            cuda::SPLIT,
            Tuning::new(Family::Fastest),
            resident(1),
            resident(3),
            resident(2).kept(1),
        ];
        for (dims, axis, size) in [
            (&[12, 10, 64][..], 2, 4),
            (&[6, 5, 3, 24], 3, 2),
            (&[6, 3, 16, 7], 2, 3),
            (&[4, 2, 2, 512], 3, 2),
            (&[6, 5, 6], 2, 2),
        ] {
            let shape = Shape::new(dims, axis).unwrap();
            for (seed, activation) in [Activation::Relu, Activation::Silu].into_iter().enumerate() {
                let config = Config::default().ghost(Ghost::strided(size)).activation(activation);
                let right = strided::<E, Reference>(&Reference, &shape, config, seed);
                for tuning in tunings {
                    let got = strided::<E, Cuda>(&engine.tuned(tuning), &shape, config, seed);
                    let what = format!("{} {dims:?}, {activation}, {tuning:?}", E::DTYPE);
                    for (k, (got, right)) in got.iter().zip(&right).enumerate() {
                        let most = right.iter().fold(1.0, |most: f64, v| most.max(v.abs()));
                        assert_eq!(got.len(), right.len(), "{what}");
                        let is_near = |(a, b): (&f64, &f64)| (a - b).abs() <= near * most;
                        assert!(got.iter().zip(right).all(is_near), "{what}: {k}");
                    }
                }
            }
        }
        assert_eq!(device.faults(), [""; 0]);
    }
    agree::<f64>("sm_90", 1e-12);
    agree::<f32>("sm_90", 1e-5);
    agree::<f16>("sm_80", 4e-3);
    agree::<bf16>("sm_90", 3e-2);
}
