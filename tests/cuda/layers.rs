//! What steps of a layer read and write of global memory beside a plain step: ghost batches and renormalization.
use crate::support::cuda::{self, on_device};
use batchnorm::{
    Activation, BatchNorm, Config, Cuda, Device, Engine, Family, Ghost, GhostUpdate, Input, Memory,
    Renorm, Saved, Shape, Tuning,
};

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
                let by_rows = ghost == Ghost::strided(rows) && shape.outer() > shape.batch();
                // Vectors of a value per channel are a part of tensors as small as these; of calls for each row they
                // are a quarter.
                let more = if by_rows { 1.3 } else { 1.1 };
                assert!(got.forward <= plain.forward + more, "{what}");
                // Statistics that rows far apart have in common are not kept in a resident step.
                let bar = if by_rows && on.0 == RESIDENT.0 { 1.75 } else { 1.5 };
                assert!(got.step <= bar * plain.step, "{what}");
            }
        }
    }
}
