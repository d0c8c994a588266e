//! On a device a step of several ranks is queued: nothing is read back, and nothing is made, once a step has been.
use crate::capture::{Tensors, captured};
use crate::gate::making;
use crate::support::cuda::on_device;
use batchnorm::{
    Backward, BatchNorm, Collective, Config, Cuda, DType, Device, DoubleBackward, Element, Engine,
    ForwardTrain, Ghost, GhostUpdate, Input, Mask, Memory, Op, Rank, Real, Renorm, Request, Result,
    RunningRules, Saved, Shape, Synced, Words,
};

/// Two ranks of which the other always has what this one has, all of it on the stream.
#[derive(Debug, Clone)]
struct Twins;

impl Rank for Twins {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        2
    }
    fn exchange(&self, mine: Words) -> Result<Vec<Words>> {
        Ok(vec![mine; 2])
    }
    fn split(&self, _: usize) -> Result<Self> {
        Ok(Self)
    }
}
impl<M: Memory> Collective<M> for Twins {
    fn all_gather(
        &self,
        on: &M,
        part: M::View<'_, f64>,
        mut all: M::ViewMut<'_, f64>,
    ) -> Result<()> {
        let (first, second) = M::split_at_mut(&mut all, M::len(&part)).expect("both");
        on.copy(M::reborrow(&part), first)?;
        on.copy(part, second)
    }
    /// The twin's sums cancel: as good as any for what is queued.
    fn all_reduce<P: Real>(&self, _: &M, _: M::ViewMut<'_, P>) -> Result<()> {
        Ok(())
    }
}

/// A graph can hold neither a copy to the host that is waited for nor memory made meanwhile.
#[test]
fn a_step_of_several_ranks_is_captured() {
    let engine = twins();
    for rows in [1, 6] {
        a_captured_step::<f32>(&engine, rows);
        a_captured_step::<half::f16>(&engine, rows);
        a_captured_step::<f64>(&engine, rows);
    }
}

fn a_captured_step<E: Element>(engine: &Synced<Cuda, Twins>, rows: usize) {
    let mut tensors = Tensors::<E>::new(engine.memory(), rows, 7);
    tensors.step(engine).unwrap();
    let (done, graph) = captured(engine.engine().stream(), || tensors.step(engine));
    done.unwrap();
    let right = tensors.results();
    tensors.clear();
    graph.unwrap().unwrap().launch().unwrap();
    assert_eq!(tensors.results(), right);
    assert!(right.0[0].iter().any(|bits| *bits != 0));
}

/// Two ranks on a stream of their own, without events.
fn twins() -> Synced<Cuda, Twins> {
    let _making = making();
    let context = on_device(0).unwrap().stream().context().clone();
    // SAFETY: everything here is on one stream.
    #[allow(unsafe_code)]
    unsafe {
        context.disable_event_tracking()
    };
    let own = Cuda::on_stream(context.new_stream().unwrap()).unwrap();
    Synced::new(&own, &Twins).unwrap()
}

/// Ghost batches, renormalization and masks queue all that they do, too, and so do their backwards and double backwards.
#[test]
fn a_step_in_groups_or_renormalized_is_captured() {
    let config = Config::default();
    let ghosts = [
        Ghost::consecutive(2),
        Ghost::consecutive(2).update(GhostUpdate::Average),
        Ghost::strided(2),
    ];
    let configs = ghosts.map(|ghost| config.ghost(ghost)).into_iter();
    let configs = configs.chain([config, config.renorm(Renorm::default())]);
    for (config, masked) in configs.flat_map(|config| [(config, false), (config, true)]) {
        let engine = twins();
        let (on, shape) = (engine.memory().clone(), Shape::new(&[6, 5], 1).unwrap());
        let values: Vec<f32> = (0..30).map(|i| (i * 7 % 17) as f32 / 4.0).collect();
        let x = on.upload(&values).unwrap();
        let mut bn = BatchNorm::<f32, _>::new(&engine, 5, config).unwrap();
        let (mut y, mut grad_x) = (on.zeros::<f32>(30).unwrap(), on.zeros::<f32>(30).unwrap());
        let mut saved = Saved::new();
        let places = on.upload(&[1u8, 1, 1, 0, 1, 1]).unwrap();
        let mut step = |bn: &mut BatchNorm<f32, _>| -> Result<()> {
            let (y, grad_y) = (y.as_view_mut(), Input::View(x.as_view()));
            let places = || masked.then(|| places.as_view());
            let to = Some(grad_x.as_view_mut());
            match places().zip(places()) {
                Some((places, again)) => {
                    let mask = Mask::new(places).count_eps(1e-7);
                    bn.forward_masked_into(&shape, x.as_view(), None, mask, y, &mut saved)?;
                    bn.backward_masked_into(&saved, x.as_view(), None, again, grad_y, to, None)?;
                }
                None => {
                    bn.forward_into(&shape, x.as_view(), None, y, &mut saved)?;
                    bn.backward_into(&saved, x.as_view(), None, grad_y, to, None)?;
                }
            }
            let mut args = DoubleBackward::<Device, f32>::new(&saved, x.as_view(), x.as_view())
                .v_x(x.as_view());
            args.mask = places();
            bn.double_backward_into(args.gg_x(grad_x.as_view_mut()))
        };
        // The second one finds all memory made.
        step(&mut bn).unwrap();
        let mean = |bn: &BatchNorm<f32, Synced<Cuda, Twins>>| {
            on.download(bn.running().unwrap().mean.as_view()).unwrap()
        };
        let once = mean(&bn);
        let (done, graph) = captured(engine.engine().stream(), || step(&mut bn));
        done.unwrap();
        assert_eq!(mean(&bn), once, "{config:?}, {masked}: nothing has run yet");
        graph.unwrap().unwrap().launch().unwrap();
        let twice = mean(&bn);
        for (once, twice) in once.iter().zip(&twice) {
            assert!(
                (twice / once) > 1.3 && (twice / once) < 2.0,
                "{config:?}, {masked}: {once}, {twice}"
            );
        }
    }
}

/// An engine that has run nothing yet, but was asked to prepare what is captured: by a mask, and a double backward.
#[test]
fn what_is_prepared_needs_nothing_more() {
    let shape = Shape::new(&[6, 5], 1).unwrap();
    let engines = [twins(), twins()];
    let on = engines[0].memory().clone();
    let values: Vec<f32> = (0..30).map(|i| (i * 7 % 17) as f32 / 4.0).collect();
    let x = on.upload(&values).unwrap();
    let places = on.upload(&[1u8, 1, 1, 0, 1, 1]).unwrap();
    let [mut y, mut grad_x, mut mean, mut var] =
        [30, 30, 5, 5].map(|len| on.zeros::<f32>(len).unwrap());
    let mut saved = Saved::new();
    let mut step = |engine: &Synced<Cuda, Twins>| -> Result<()> {
        let args = ForwardTrain::<Device, f32>::new(x.as_view(), y.as_view_mut())
            .running(mean.as_view_mut(), var.as_view_mut(), 1.0)
            .mask(Mask::new(places.as_view()).count_eps(1e-7))
            .saved(&mut saved);
        engine.forward_train(&shape, args)?;
        let args = Backward::<Device, f32>::new(&saved, x.as_view(), x.as_view());
        let args = args.mask(places.as_view()).grad_x(grad_x.as_view_mut());
        engine.backward(&shape, args)?;
        let mut args = DoubleBackward::<Device, f32>::new(&saved, x.as_view(), x.as_view())
            .v_x(x.as_view())
            .gg_x(grad_x.as_view_mut());
        args.mask = Some(places.as_view());
        engine.double_backward(&shape, args)
    };
    // Makes what is saved, which is as good for the other engine.
    step(&engines[0]).unwrap();
    on.stream().synchronize().unwrap();
    let forward = Request::new(Op::ForwardTrain, DType::F32).running(RunningRules::default());
    for request in [
        forward.saves(true),
        Request::new(Op::Backward, DType::F32),
        Request::new(Op::DoubleBackward, DType::F32),
    ] {
        engines[1].prepare(&shape, request.mask(true)).unwrap();
    }
    let (done, graph) = captured(engines[1].engine().stream(), || step(&engines[1]));
    done.unwrap();
    graph.unwrap().unwrap().launch().unwrap();
    engines[1].engine().stream().synchronize().unwrap();
    let got = on.download(grad_x.as_view()).unwrap();
    assert!(got.iter().all(|value| value.is_finite()) && got != [0.0; 30], "{got:?}");
}
