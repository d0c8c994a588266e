//! Layers on several ranks: evaluation, what is refused, gradients of parameters, populations, one rank alone.
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want, same_bits};
use crate::support::shapes::SMALL;
use crate::world::{LONG, OfRanks, on_engines, on_ranks, on_ranks_in_steps, parts};
use batchnorm::{
    Activation, Backward, BatchNorm, Collective, Config, Cpu, DoubleBackward, Element, Engine,
    Error, Ghost, GivenStatistics, Host, Input, Memory, PopulationRule, PopulationStatistics, Real,
    Reference, Result, Saved, Shape, Synced, Threads, Words,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

on_engines! {
    two_epochs_are_those_of_one_process,
    evaluation_is_one_ranks_own,
    what_goes_without_the_others_is_refused,
    a_population_is_gathered_by_all,
}

/// A training loop of two steps on three ranks, with an optimizer's step by gradients that are summed over them.
fn two_epochs_are_those_of_one_process<G: OfRanks>() {
    let whole = Inputs::<f32>::new(&Shape::new(&[11, 4], 1).unwrap(), Epilogue::PLAIN, 17);
    let config = || Config::default().activation(Activation::Relu);
    let steps = |bn: &mut BatchNorm<f32, Reference>| {
        for _ in 0..2 {
            let (y, saved) = bn.forward(&whole.shape, &whole.x).unwrap();
            bn.backward(&saved, &whole.x, &y).unwrap();
            for (_, param) in bn.named_parameters_mut() {
                let (value, grad) = param.value_and_grad().unwrap();
                value.iter_mut().zip(grad).for_each(|(v, g)| *v -= 0.01 * g);
                param.zero_grad();
            }
        }
    };
    let mut right = BatchNorm::new(&Reference, 4, config()).unwrap();
    steps(&mut right);
    for way in 0..3 {
        let parts = parts(&whole, 3, way);
        let all = on_ranks::<G, _>(3, |rank, engine| {
            let mut bn = BatchNorm::<f32, _>::new(&engine, 4, config()).unwrap();
            let (on, mine) = (engine.memory().clone(), &parts[rank].inputs);
            let x = on.upload(&mine.x).unwrap();
            for _ in 0..2 {
                let (y, saved) = bn.forward(&mine.shape, G::Memory::view(&x)).unwrap();
                assert_eq!(saved.is_frozen(), Some(false));
                bn.backward(&saved, G::Memory::view(&x), G::Memory::view(&y)).unwrap();
                for (_, param) in bn.named_parameters_mut() {
                    let grad = param.grad_mut().unwrap();
                    engine.collective().all_reduce(&on, G::Memory::view_mut(grad)).unwrap();
                    let (value, grad) = param.value_and_grad().unwrap();
                    let grad = on.download(G::Memory::view(grad)).unwrap();
                    let mut stepped = on.download(G::Memory::view(value)).unwrap();
                    stepped.iter_mut().zip(grad).for_each(|(v, g)| *v -= 0.01 * g);
                    on.write(&stepped, G::Memory::view_mut(value)).unwrap();
                    param.zero_grad();
                }
            }
            let running = bn.running().unwrap();
            let of = |buf| on.download(G::Memory::view(buf)).unwrap();
            let mut all = vec![of(&running.mean), of(&running.var)];
            all.extend(bn.named_parameters().map(|(_, param)| of(&param.value)));
            assert_eq!(running.num_batches_tracked, 2);
            all
        });
        let running = right.running().unwrap();
        let mut expected = vec![running.mean.clone(), running.var.clone()];
        expected.extend(right.named_parameters().map(|(_, param)| param.value.clone()));
        for mine in &all {
            assert_eq!(*mine, all[0], "the same bits on every rank");
            for (got, right) in mine.iter().flatten().zip(expected.iter().flatten()) {
                assert!((got - right).abs() < 2e-6, "{got}, expected {right}");
            }
        }
    }
}

/// One rank alone evaluates, in every way, and takes the gradients through frozen statistics; the others do nothing.
fn evaluation_is_one_ranks_own<G: OfRanks>() {
    let inputs = Inputs::<f32>::new(&SMALL.shape(), Epilogue::FULL, 23);
    let (shape, c) = (inputs.shape, inputs.shape.channels());
    // The other rank stays until this one is done, well or not.
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let (done, is_done) = (Mutex::new(Some(done)), Mutex::new(is_done));
    on_ranks::<G, _>(2, |rank, engine| {
        if rank == 0 {
            let _done = done.lock().unwrap().take();
            let alone = engine.engine();
            for mode in [Mode::Eval, Mode::InPlace] {
                let got = run::forward(&engine, &inputs, mode, None).unwrap();
                assert!(same_bits(&got, &run::forward(alone, &inputs, mode, None).unwrap()));
            }
            let mut saved = SavedOn::<G, f32>::new();
            run::forward(&engine, &inputs, Mode::Eval, Some(&mut saved)).unwrap();
            assert_eq!(saved.is_frozen(), Some(true));
            let all = Want::all(inputs.epilogue);
            let got = run::backward(&engine, &inputs, all, &saved, None).unwrap();
            assert!(same_bits(&got, &run::backward(alone, &inputs, all, &saved, None).unwrap()));

            let on = engine.memory();
            let x = on.upload(&inputs.x).unwrap();
            // Without running statistics it is by the rank's own batch, as PyTorch's is; with its gradients.
            for tracks in [true, false] {
                let config = Config::default().track_running_stats(tracks);
                let mut ours = BatchNorm::<f32, _>::new(&engine, c, config).unwrap();
                let mut own = BatchNorm::<f32, _>::new(alone, c, config).unwrap();
                ours.eval();
                own.eval();
                let got = ours.infer::<f32>(&shape, G::Memory::view(&x)).unwrap();
                let right = own.infer::<f32>(&shape, G::Memory::view(&x)).unwrap();
                let of = |buf: &_| on.download::<f32>(G::Memory::view(buf)).unwrap();
                assert_eq!(of(&got), of(&right));
                let (y, saved) = ours.forward::<f32>(&shape, G::Memory::view(&x)).unwrap();
                assert_eq!(of(&y), of(&right));
                assert_eq!(saved.is_frozen(), Some(tracks));
                let (_, own_saved) = own.forward::<f32>(&shape, G::Memory::view(&x)).unwrap();
                let x = G::Memory::view(&x);
                let got =
                    ours.backward(&saved, G::Memory::reborrow(&x), G::Memory::view(&y)).unwrap();
                let right = own.backward(&own_saved, x, G::Memory::view(&y)).unwrap();
                assert_eq!(of(&got), of(&right));
                let (kept, _) =
                    ours.forward_keeping_y(&shape, G::Memory::view(&x_of(on, &inputs))).unwrap();
                assert_eq!(of(&kept), of(&y));
            }
        }
        if rank == 1 {
            assert!(is_done.lock().unwrap().recv().is_err());
        }
    });
}
fn x_of<M: Memory>(on: &M, inputs: &Inputs<f32>) -> M::Buf<f32> {
    on.upload(&inputs.x).unwrap()
}

/// What one rank alone has saved is nothing without the others.
fn what_goes_without_the_others_is_refused<G: OfRanks>() {
    on_ranks::<G, _>(2, |_, engine| {
        let (on, shape) = (engine.memory().clone(), Shape::new(&[4, 2], 1).unwrap());
        let x = on.upload(&[1f32, 2., 3., 4., 6., 5., 8., 7.]).unwrap();
        let mut bn = BatchNorm::<f32, _>::new(&engine, 2, Config::default()).unwrap();
        let (_, saved) = bn.forward(&shape, G::Memory::view(&x)).unwrap();
        // The engine by itself knows nothing of the others' sums.
        let (own, mut grad_x) = (engine.engine(), on.zeros::<f32>(8).unwrap());
        let args =
            || Backward::<G::Memory, f32>::new(&saved, G::Memory::view(&x), G::Memory::view(&x));
        let of_x = args().grad_x(G::Memory::view_mut(&mut grad_x));
        let error = own.backward(&shape, of_x).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "saved", .. }), "{error}");
        let [a, b] = [(); 2].map(|()| G::Memory::view(&x));
        let error = own.double_backward(&shape, DoubleBackward::<_, f32>::new(&saved, a, b));
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "saved", .. }), "{error}");
    });
}

/// Each rank adds its batches; the records of all, merged on each, are the population's.
fn a_population_is_gathered_by_all<G: OfRanks>() {
    let whole = Inputs::<f32>::new(&Shape::new(&[10, 3], 1).unwrap(), Epilogue::PLAIN, 29);
    let mut right = PopulationStatistics::new(&Reference, 3, PopulationRule::Exact).unwrap();
    right.add(&Reference, &whole.shape, &whole.x).unwrap();
    let right = right.finish().unwrap();
    for way in 0..3 {
        let parts = parts(&whole, 3, way);
        let all = on_ranks::<G, _>(3, |rank, engine| {
            let mine = &parts[rank].inputs;
            let of_none = || PopulationStatistics::new(&engine, 3, PopulationRule::Exact).unwrap();
            let (mut own, x) = (of_none(), engine.memory().upload(&mine.x).unwrap());
            own.add(&engine, &mine.shape, G::Memory::view(&x)).unwrap();
            let record = own.to_record().unwrap();
            let mut all = of_none();
            for record in engine.gather(&record).unwrap().chunks(record.len()) {
                all.merge(&engine, record).unwrap();
            }
            all.finish().unwrap()
        });
        for got in &all {
            assert_eq!((got, got.values), (&all[0], right.values));
            let pairs = got.mean.iter().zip(&right.mean).chain(got.var.iter().zip(&right.var));
            for (got, right) in pairs {
                assert!((got - right).abs() < 1e-6, "{got}, expected {right}");
            }
        }
    }
}

/// Ranks that count what they exchange.
#[derive(Debug, Clone)]
struct Counting {
    threads: Threads,
    /// Exchanges, gathers and reductions.
    calls: Arc<[AtomicUsize; 3]>,
    /// That are given to gathers, got from them, and reduced.
    bytes: Arc<[AtomicUsize; 3]>,
}

impl Counting {
    fn add(&self, call: usize, bytes: &[(usize, usize)]) {
        self.calls[call].fetch_add(1, Ordering::Relaxed);
        for (of, bytes) in bytes {
            self.bytes[*of].fetch_add(*bytes, Ordering::Relaxed);
        }
    }
}

impl batchnorm::Rank for Counting {
    fn rank(&self) -> usize {
        self.threads.rank()
    }
    fn size(&self) -> usize {
        self.threads.size()
    }
    fn exchange(&self, mine: Words) -> Result<Vec<Words>> {
        self.add(0, &[]);
        self.threads.exchange(mine)
    }
    fn split(&self, color: usize) -> Result<Self> {
        Ok(Self { threads: self.threads.split(color)?, ..self.clone() })
    }
}
impl Collective<Host> for Counting {
    fn all_gather(&self, on: &Host, part: &[f64], all: &mut [f64]) -> Result<()> {
        self.add(1, &[(0, size_of_val(part)), (1, size_of_val(all))]);
        self.threads.all_gather(on, part, all)
    }
    fn all_reduce<P: Real>(&self, on: &Host, sums: &mut [P]) -> Result<()> {
        self.add(2, &[(2, size_of_val(sums))]);
        self.threads.all_reduce(on, sums)
    }
}

/// On every rank: an exchange before each of the two, a gather for each step of the forward, a reduction for the
/// gradient of x; and the bytes that the page `scaling` has.
#[test]
fn a_step_is_two_exchanges_gathers_and_a_reduction() {
    fn step<E: Element>(ranks: usize, at_once: usize) -> [[usize; 3]; 2] {
        let zeros = || Arc::new([const { AtomicUsize::new(0) }; 3]);
        let (calls, bytes) = (zeros(), zeros());
        let inputs = Inputs::<E>::new(&SMALL.shape(), Epilogue::FULL, 23);
        std::thread::scope(|scope| {
            for threads in Threads::new(ranks, LONG) {
                let counting = Counting { threads, calls: calls.clone(), bytes: bytes.clone() };
                let inputs = &inputs;
                scope.spawn(move || {
                    let engine = Synced::in_steps(&Cpu::default(), &counting, at_once).unwrap();
                    let mut saved = Saved::new();
                    let mode = Mode::Train(Some(0.1));
                    run::forward(&engine, inputs, mode, Some(&mut saved)).unwrap();
                    let want = Want::all(inputs.epilogue);
                    run::backward(&engine, inputs, want, &saved, None).unwrap();
                });
            }
        });
        [calls, bytes].map(|all| all.each_ref().map(|count| count.load(Ordering::Relaxed)))
    }
    let channels = SMALL.shape().channels();
    let record = 24 * channels + 8;
    // Ranks, as many as gather at once, steps of that.
    for (ranks, at_once, steps) in [(1, 16, 0), (2, 16, 1), (3, 16, 1), (4, 2, 2), (8, 2, 3)] {
        let [calls, bytes] = step::<f32>(ranks, at_once);
        let each = usize::from(ranks > 1);
        assert_eq!(calls, [2 * each * ranks, steps * ranks, each * ranks], "{ranks} ranks");
        let given = steps * ranks * record;
        let sums = each * ranks * (8 * channels + 4);
        assert_eq!(bytes, [given, given * at_once.min(ranks), sums], "{ranks} ranks");
        let of_f64 = step::<f64>(ranks, at_once)[1];
        assert_eq!(of_f64, [given, given * at_once.min(ranks), 2 * sums], "{ranks} ranks, f64");
    }
}

/// One rank alone gives what the engine gives, in every bit, for what several refuse too.
#[test]
fn one_rank_is_the_engine() {
    let mut inputs = Inputs::<f32>::new(&SMALL.shape(), Epilogue::FULL, 23);
    let own = Cpu::default();
    let ranks = Threads::new(1, LONG);
    let engine = Synced::new(&own, &ranks[0]).unwrap();
    assert_eq!(engine.explain(), "1 rank: nothing is exchanged");
    for masked in [false, true] {
        let places = (0..inputs.shape.per_channel()).map(|i| u8::from(i % 3 > 0)).collect();
        let all_masked = batchnorm::AllMasked::Keep;
        let mask = run::Masked { places, last: None, count_eps: 0.0, all_masked };
        inputs.mask = masked.then_some(mask);
        let step =
            |engine: &dyn Fn(&mut Saved<Host, f32>) -> [run::Outcome; 2]| engine(&mut Saved::new());
        let want = Want::all(inputs.epilogue);
        let mode = Mode::Train(Some(0.1));
        let ours = step(&|saved| {
            let forward = run::forward(&engine, &inputs, mode, Some(&mut *saved)).unwrap();
            [forward, run::backward(&engine, &inputs, want, saved, None).unwrap()]
        });
        let right = step(&|saved| {
            let forward = run::forward(&own, &inputs, mode, Some(&mut *saved)).unwrap();
            [forward, run::backward(&own, &inputs, want, saved, None).unwrap()]
        });
        assert!(ours.iter().zip(&right).all(|(ours, right)| same_bits(ours, right)), "{masked}");
    }
    let config = Config::default().ghost(Ghost::consecutive(2));
    let mut bn = BatchNorm::<f32, _>::new(&engine, 1, config).unwrap();
    bn.forward(&Shape::new(&[4, 1], 1).unwrap(), &[1f32, 2., 3., 4.]).unwrap();
}

#[test]
fn how_records_come_to_all_is_said() {
    let said = |ranks: usize, at_once: usize| {
        let all = on_ranks_in_steps::<Reference, _>(ranks, at_once, LONG, |_, e| e.explain());
        assert!(all.iter().all(|said| *said == all[0]));
        all[0].clone()
    };
    assert_eq!(said(3, 16), "3 ranks: one gather of all records, one reduction of sums");
    let steps = "8 ranks: gathers of 4, then of 2 records, one reduction of sums";
    assert_eq!(said(8, 4), steps);
}

/// Statistics that a framework kept instead of a `Saved` are those of all ranks' batches.
#[test]
fn given_statistics_are_in_common() {
    let whole = Inputs::<f32>::new(&Shape::new(&[9, 4], 1).unwrap(), Epilogue::PLAIN, 31);
    let parts = parts(&whole, 2, 0);
    on_ranks::<Cpu, _>(2, |rank, engine| {
        let mine = &parts[rank].inputs;
        let mut saved = Saved::new();
        run::forward(&engine, mine, Mode::Train(None), Some(&mut saved)).unwrap();
        let given =
            GivenStatistics::<Host, f32>::new(saved.mean().unwrap(), saved.invstd().unwrap());
        let (given, mut again) = (given.weight(&mine.weight).bias(&mine.bias), Saved::new());
        again.fill_from::<f32, _>(&engine, &mine.shape, given).unwrap();
        assert_eq!(again.is_frozen(), Some(false));
        let want = Want { in_place: false, ..Want::all(mine.epilogue) };
        let right = run::backward(&engine, mine, want, &saved, None).unwrap();
        let got = run::backward(&engine, mine, want, &again, None).unwrap();
        for (got, right) in got["grad_x"].iter().zip(&right["grad_x"]) {
            assert!((got - right).abs() < 1e-5, "{got}, expected {right}");
        }
        let mut grad_x = mine.grad_y.clone();
        let args = Backward::<Host, f32>::in_place(&again, &mine.x, &mut grad_x);
        assert!(matches!(args.grad_y, Input::InPlace));
        engine.backward(&mine.shape, args).unwrap();
        assert_eq!(run::widen(&grad_x), got["grad_x"]);
    });
}
