//! Steps of layers that are several calls of the engine, double backwards among them, as graphs: nothing is read back, and
//! the second step makes no memory.
use crate::graphs::{MODE, capturable, values};
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::cudarc::driver::sys::CUgraphInstantiate_flags;
use batchnorm::{
    Activation, BatchNorm, Config, Cuda, DoubleBackward, Engine, Ghost, GhostUpdate, Input, Mask,
    Memory, Reference, Renorm, Saved, Shape,
};

type Buf<G, T> = <<G as Engine>::Memory as Memory>::Buf<T>;

/// What a step by a mask takes of it.
struct OfMask {
    places: Vec<u8>,
    last: Option<usize>,
    count_eps: f64,
}

/// A layer and what its steps leave: y, grad_x, gg_grad_y, gg_x.
struct Layer<G: Engine> {
    bn: BatchNorm<f32, G>,
    saved: Saved<G::Memory, f32>,
    grad_y: Buf<G, f32>,
    left: [Buf<G, f32>; 4],
    mask: Option<(OfMask, Buf<G, u8>)>,
    shape: Shape,
}

impl<G: Engine> Layer<G> {
    fn new(engine: &G, shape: &Shape, config: Config, mask: Option<OfMask>) -> Self {
        let (on, len) = (engine.memory(), shape.len());
        let bn = BatchNorm::<f32, G>::new(engine, shape.channels(), config).unwrap();
        let grad_y = on.upload(&values(len, 4)).unwrap();
        let left = [(); 4].map(|()| on.zeros::<f32>(len).unwrap());
        let mask = mask.map(|of| {
            let places = on.upload(&of.places).unwrap();
            (of, places)
        });
        Self { bn, saved: Saved::new(), grad_y, left, mask, shape: *shape }
    }
    /// Forward, backward and double backward.
    fn step(&mut self, x: &Buf<G, f32>) {
        let Self { bn, saved, grad_y, left, mask, shape } = self;
        let view = |buf| G::Memory::view::<f32>(buf);
        let [y, grad_x, gg_grad_y, gg_x] = left.each_mut().map(G::Memory::view_mut);
        let places = mask.as_ref().map(|(_, places)| places);
        let places = || places.map(G::Memory::view::<u8>);
        let to = Some(grad_x);
        match (&*mask, places(), places()) {
            (Some((of, _)), Some(there), Some(again)) => {
                let mut mask = Mask::<G::Memory>::new(there).count_eps(of.count_eps);
                mask.last = of.last;
                bn.forward_masked_into(shape, view(x), None, mask, y, saved).unwrap();
                let by = Input::View(view(grad_y));
                bn.backward_masked_into(saved, view(x), None, again, by, to, None).unwrap();
            }
            _ => {
                bn.forward_into(shape, view(x), None, y, saved).unwrap();
                let by = Input::View(view(grad_y));
                bn.backward_into(saved, view(x), None, by, to, None).unwrap();
            }
        }
        let mut args = DoubleBackward::<G::Memory, f32>::new(saved, view(x), view(grad_y))
            .v_x(view(x))
            .gg_grad_y(gg_grad_y)
            .gg_x(gg_x);
        args.mask = places();
        bn.double_backward_into(args).unwrap();
    }
    fn results(&self) -> Vec<Vec<f32>> {
        let (bn, on) = (&self.bn, self.bn.engine().memory());
        let running = bn.running().unwrap();
        let all = self.left.iter().chain([&running.mean, &running.var]);
        let all = all.chain(bn.weight().unwrap().grad()).chain(bn.bias().unwrap().grad());
        let all = all.chain(running.renorm.as_ref().map(|kept| &kept.moving_stddev));
        all.map(|buf| on.download(G::Memory::view(buf)).unwrap()).collect()
    }
}

/// The second step of a layer, captured and launched, beside such steps and the reference's.
fn replays(dims: &[usize], axis: usize, config: Config, mask: impl Fn() -> Option<OfMask>) {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_90").unwrap());
    let engine = capturable(device.ordinal());
    let (on, shape) = (engine.memory(), Shape::new(dims, axis).unwrap());
    let mut x: CudaSlice<f32> = on.upload(&values(shape.len(), 3)).unwrap();
    let [mut replayed, mut direct] =
        [(); 2].map(|()| Layer::<Cuda>::new(&engine, &shape, config, mask()));
    let mut right = Layer::<Reference>::new(&Reference, &shape, config, mask());
    replayed.step(&x);
    direct.step(&x);
    right.step(&values(shape.len(), 3));
    let stream = engine.stream().clone();
    stream.synchronize().unwrap();
    stream.begin_capture(MODE).unwrap();
    let ((), calls) = softcuda.count_calls(|| replayed.step(&x));
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    let waits = calls.keys().find(|name| {
        name.contains("DtoH") || name.contains("HtoD") || name.contains("Synchronize")
    });
    assert_eq!(waits, None, "{dims:?}, {config}: {calls:?}");
    for seed in 5..8 {
        on.write(&values(shape.len(), seed), x.as_view_mut()).unwrap();
        graph.launch().unwrap();
        direct.step(&x);
        right.step(&values(shape.len(), seed));
        let got = replayed.results();
        assert_eq!(got, direct.results(), "{dims:?}, {config}, {seed}");
        for (k, (got, right)) in got.iter().zip(&right.results()).enumerate() {
            let most = right.iter().fold(1f32, |most, v| most.max(v.abs()));
            let far = got.iter().zip(right).find(|(a, b)| (*a - *b).abs() > 1e-4 * most);
            assert_eq!(far, None, "{dims:?}, {config}, {seed}: {k}, of {most}");
        }
    }
    assert_eq!(device.faults(), [""; 0]);
}

fn silu() -> Config {
    Config::default().activation(Activation::Silu)
}

/// Ghost batches, wherever their rows lie, and renormalization.
#[test]
fn groups_and_renormalized_batches_are_captured() {
    for (dims, axis, config) in [
        (&[8, 6, 16][..], 1, silu().ghost(Ghost::consecutive(2))),
        (&[8, 6, 16], 1, silu().ghost(Ghost::strided(4))),
        (&[8, 5, 6], 2, silu().ghost(Ghost::strided(4))),
        // More elements than a row that is dealt out may have.
        (&[4, 90, 6], 2, silu().ghost(Ghost::strided(2))),
        (&[8, 6, 16], 1, silu().renorm(Renorm::keras())),
        (&[8, 6, 16], 1, silu().renorm(Renorm::paper(3.0, 5.0))),
    ] {
        replays(dims, axis, config, || None);
    }
}

/// By the values that count: what those of each row or part of a batch come to is merged where it lies.
#[test]
fn masked_steps_are_captured() {
    let renorm = Config::keras().activation(Activation::Silu).renorm(Renorm::keras());
    for (dims, axis, last, config) in [
        (&[8, 6, 16][..], 1, None, silu().ghost(Ghost::strided(2))),
        (&[8, 6, 16], 1, Some(16), silu().ghost(Ghost::strided(4).update(GhostUpdate::Sequential))),
        (&[8, 5, 6], 2, None, silu().ghost(Ghost::strided(4))),
        (&[8, 6, 16], 1, None, silu().ghost(Ghost::consecutive(2))),
        (&[8, 6, 16], 1, None, silu().ghost(Ghost::consecutive(4).update(GhostUpdate::Average))),
        (&[40, 6, 16], 1, None, renorm),
    ] {
        let len: usize = dims.iter().product();
        let mask = || {
            let len = len / last.unwrap_or(dims[axis]);
            // None in the first rows, so that a group or a part of one has nothing that counts.
            let place = |i: usize| u8::from(i > len / 6 && i % 7 > 1);
            Some(OfMask { places: (0..len).map(place).collect(), last, count_eps: 1e-2 })
        };
        replays(dims, axis, config, mask);
    }
}
