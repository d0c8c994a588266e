//! What steps of a layer read and write of global memory beside a plain step: ghost batches and renormalization.
use crate::support::cuda::{self, on_device};
use crate::support::run;
use batchnorm::{
    Activation, BatchNorm, Config, Cuda, Device, DoubleBackward, Element, Engine, Family, Ghost,
    GhostUpdate, Input, Mask, Memory, Reference, Renorm, Saved, Shape, Tuning,
};
use half::{bf16, f16};
use std::num::NonZero;

const SPLIT: (&str, Tuning) = ("mini", cuda::SPLIT);
/// The kernels of masks take more shared memory than the smallest device has.
const SPLIT_BY_MASK: (&str, Tuning) = ("sm_90", cuda::SPLIT);
const RESIDENT: (&str, Tuning) = ("sm_90", Tuning::new(Family::Resident { blocks: None }));

/// What a step has taken: tensors read and written, and launches; and a double backward after it.
#[derive(Debug, Clone, Copy)]
struct Taken {
    forward: f64,
    step: f64,
    launches: usize,
    doubles: f64,
    double_launches: usize,
}

/// The second step of a layer, which makes no memory.
fn taken(on: (&str, Tuning), shape: &Shape, config: Config) -> Taken {
    taken_by(on, shape, config, None)
}
/// The same by these places of a mask.
fn taken_by(
    (profile, tuning): (&str, Tuning),
    shape: &Shape,
    config: Config,
    places: Option<&[u8]>,
) -> Taken {
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
    let places = places.map(|places| on.upload(places).unwrap());
    let places = || places.as_ref().map(|places| places.as_view());
    let mut seen = 0;
    let mut all = [(0.0, 0); 3];
    // The smallest device has no room for a double backward's kernels.
    let operations = if profile == "mini" { 2 } else { 3 };
    for _ in 0..2 {
        for (k, taken) in all.iter_mut().take(operations).enumerate() {
            let (x, to, by) = (x.as_view(), y.as_view_mut(), Input::View(grad_y.as_view()));
            match (k, places()) {
                (0, None) => bn.forward_into(shape, x, None, to, &mut saved).unwrap(),
                (0, Some(places)) => {
                    let mask = Mask::new(places).count_eps(1e-7);
                    bn.forward_masked_into(shape, x, None, mask, to, &mut saved).unwrap();
                }
                (1, None) => {
                    let to = Some(grad_x.as_view_mut());
                    bn.backward_into(&saved, x, None, by, to, None).unwrap();
                }
                (1, Some(places)) => {
                    let to = Some(grad_x.as_view_mut());
                    bn.backward_masked_into(&saved, x, None, places, by, to, None).unwrap();
                }
                (_, places) => {
                    let [grad_y, v_x] = [(); 2].map(|()| grad_y.as_view());
                    let mut args = DoubleBackward::<Device, f32>::new(&saved, x, grad_y)
                        .v_x(v_x)
                        .gg_grad_y(to)
                        .gg_x(grad_x.as_view_mut());
                    args.mask = places;
                    bn.double_backward_into(args).unwrap();
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
    let [(forward, first), (backward, second), (doubles, double_launches)] = all;
    let (step, launches) = (forward + backward, first + second);
    Taken { forward, step, launches, doubles, double_launches }
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

/// Four of seven positions count, in pieces.
fn places(shape: &Shape) -> Vec<u8> {
    (0..shape.per_channel()).map(|i| u8::from(i % 7 > 2 || i % 50 > 30)).collect()
}

/// A mask adds its bytes, to each pass that needs it, and renormalization one pass.
#[test]
fn masks_go_with_groups_and_renormalization() {
    for (shape, rows) in shapes() {
        let places = places(&shape);
        for config in [
            Config::default().ghost(Ghost::consecutive(rows)),
            Config::default().ghost(Ghost::consecutive(rows).update(GhostUpdate::Average)),
            Config::default().ghost(Ghost::strided(rows)),
            Config::default().renorm(Renorm::keras()),
        ] {
            for (on, is_resident) in [(SPLIT_BY_MASK, false), (RESIDENT, true)] {
                let plain = taken(on, &shape, Config::default());
                let got = taken_by(on, &shape, config, Some(&places));
                let what =
                    format!("{shape}, {config}, resident: {is_resident}: {got:?} beside {plain:?}");
                // Where something is behind the channels, strided groups are calls for every row, which take the sums of
                // a group before its gradients, where a plain step is resident.
                let by_rows = config.ghost == Some(Ghost::strided(rows)) && shape.inner() > 1;
                let bar = if is_resident && by_rows { 2.1 } else { 1.5 };
                assert!(got.step <= bar * plain.step, "{what}");
                assert!(got.step >= plain.step, "{what}");
            }
        }
    }
}

/// Three tensors are read for the sums and once more, two are written: by a mask, too, and in groups.
#[test]
fn double_backwards_of_groups_and_masks_read_for_their_sums_and_once_more() {
    for (shape, rows) in shapes() {
        let places = places(&shape);
        for (config, places) in [
            (Config::default(), None),
            (Config::default(), Some(&places[..])),
            (Config::default().ghost(Ghost::consecutive(rows)), None),
            (Config::default().ghost(Ghost::strided(rows)), None),
            (Config::default().ghost(Ghost::strided(rows)), Some(&places)),
            (Config::default().renorm(Renorm::keras()), Some(&places)),
        ] {
            let is_strided = config.ghost == Some(Ghost::strided(rows));
            let got = taken_by(RESIDENT, &shape, config, places);
            let what = format!("{shape}, {config}, mask: {}: {got:?}", places.is_some());
            // Partial sums of columns, and the bytes of a mask.
            assert!(got.doubles <= 8.0 * 1.15, "{what}");
            assert!(got.doubles >= 8.0, "{what}");
            // Strided groups are one call, and sums of the parameters' gradients.
            let is_one = is_strided && (places.is_none() || shape.inner() == 1);
            assert!(!is_one || got.double_launches <= 10, "{what}");
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
