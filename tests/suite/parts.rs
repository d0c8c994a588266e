//! A list of inputs is one batch, forward and backward, wherever its parts lie and however long they are.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    a_list_is_one_batch,
    a_list_in_evaluation_is_each_alone,
    layers_without_statistics_take_those_of_the_list,
    the_rules_of_one_tensor_are_those_of_a_list,
    bad_lists_say_both_sides_and_change_nothing,
    residuals_are_added_part_by_part,
    lists_into_memory_have_the_same_bits,
    residuals_that_do_not_fit_are_refused,
] }
#[cfg(all(feature = "cudnn", target_os = "linux"))]
engines! { [cudnn] [an_engine_without_records_refuses_and_changes_nothing] }

const CHANNELS: usize = 3;

/// Parts of different layout: (dims, channel axis). One is a single vector, one is empty.
fn shapes() -> Vec<Shape> {
    let parts: [(&[usize], usize); 4] =
        [(&[2, 3, 4], 1), (&[3], 0), (&[0, 3], 1), (&[2, 2, 5, 3], 3)];
    parts.map(|(dims, axis)| Shape::new(dims, axis).unwrap()).to_vec()
}

/// Its values by channel: the whole list as one tensor of one sample, C x m.
fn by_channel<E: Element>(shapes: &[Shape], parts: &[Vec<E>]) -> (Shape, Vec<E>) {
    let mut values = vec![];
    for c in 0..CHANNELS {
        for (shape, part) in shapes.iter().zip(parts) {
            let in_c = |i: &usize| i / shape.inner() % CHANNELS == c;
            values.extend((0..shape.len()).filter(in_c).map(|i| part[i]));
        }
    }
    (Shape::new(&[CHANNELS, values.len() / CHANNELS], 0).unwrap(), values)
}

/// All parts on the engine's memory.
struct Uploaded<G: Engine, E: Element>(Vec<Buf<G, E>>);

impl<G: Engine, E: Element> Uploaded<G, E> {
    fn new(engine: &G, parts: &[Vec<E>]) -> Self {
        Self(parts.iter().map(|part| up(engine, part)).collect())
    }
    fn views(&self) -> impl Iterator<Item = View<'_, G, E>> {
        self.0.iter().map(view::<G, E>)
    }
    fn with<'a>(&'a self, shapes: &[Shape]) -> Vec<(Shape, View<'a, G, E>)> {
        shapes.iter().copied().zip(self.views()).collect()
    }
}

fn downloaded<G: Engine, E: Element>(engine: &G, bufs: &[Buf<G, E>]) -> Vec<Vec<E>> {
    bufs.iter().map(|buf| down(engine, buf)).collect()
}

fn random<E: Element>(shapes: &[Shape], seed: u64) -> Vec<Vec<E>> {
    shapes.iter().zip(seed * 100..).map(|(shape, seed)| numbers(shape.len(), seed)).collect()
}

fn a_list_is_one_batch<G: Engine>(engine: &G) {
    fn one<E: Element, G: Engine>(engine: &G) {
        let (shapes, config) = (
            shapes(),
            Config::default().activation(Activation::LeakyRelu { negative_slope: 0.25 }),
        );
        let mut bn: BatchNorm<E::Acc, G> = layer(engine, config);
        // The same in f64, on one tensor.
        let mut right: BatchNorm<f64, Reference> = layer(&Reference, config);
        for step in 0..2 {
            let (xs, grad_ys) = (random::<E>(&shapes, step), random::<E>(&shapes, step + 50));
            let on_engine = Uploaded::<G, E>::new(engine, &xs);
            let (ys, mut saved) = bn.forward_parts(&on_engine.with(&shapes)).unwrap();
            assert_eq!((saved.len(), saved.is_empty(), saved.is_frozen()), (4, false, false));
            let grads = Uploaded::<G, E>::new(engine, &grad_ys);
            let pairs: Vec<_> = on_engine.views().zip(grads.views()).collect();
            let grad_xs = bn.backward_parts(&mut saved, &pairs).unwrap();

            let (whole, x) = by_channel(&shapes, &xs);
            let (right_y, right_saved) = forward(&mut right, &whole, &wide(&x)).unwrap();
            let grad_y = wide(&by_channel(&shapes, &grad_ys).1);
            let right_grad = backward(&mut right, &right_saved, &wide(&x), &grad_y).unwrap();
            let y = by_channel(&shapes, &downloaded::<G, E>(engine, &ys)).1;
            assert_near(&y, &right_y, Kind::Element);
            let grad_x = by_channel(&shapes, &downloaded::<G, E>(engine, &grad_xs)).1;
            assert_near(&grad_x, &right_grad, Kind::Element);
        }
        // Both steps' running statistics, and both backwards' sums.
        let (got, right) = (snapshot(&bn), snapshot(&right));
        let ((mean, var, count), (right_mean, right_var, right_count)) =
            (got.running.unwrap(), right.running.unwrap());
        let m = shapes.iter().map(Shape::per_channel).sum();
        assert_near(&mean, &right_mean, Kind::Sum(m));
        assert_near(&var, &right_var, Kind::Sum(m));
        assert_eq!((count, right_count), (2, 2));
        for (got, right) in got.grads.iter().zip(&right.grads) {
            assert_near(got.as_ref().unwrap(), right.as_ref().unwrap(), Kind::Sum(2 * m));
        }
    }
    one::<f64, G>(engine);
    one::<f32, G>(engine);
    one::<f16, G>(engine);
    one::<bf16, G>(engine);
}

fn a_list_in_evaluation_is_each_alone<G: Engine>(engine: &G) {
    let shapes = shapes();
    let (xs, grad_ys) = (random::<f32>(&shapes, 1), random::<f32>(&shapes, 2));
    let trained = || -> BatchNorm<f32, G> {
        let mut bn = layer(engine, Config::default());
        forward(&mut bn, &small(), &numbers::<f32>(small().len(), 9)).unwrap();
        bn.eval();
        bn
    };
    let (mut bn, mut alone) = (trained(), trained());
    let on_engine = Uploaded::<G, f32>::new(engine, &xs);
    let (ys, mut saved) = bn.forward_parts(&on_engine.with(&shapes)).unwrap();
    assert!(saved.is_frozen());
    let grads = Uploaded::<G, f32>::new(engine, &grad_ys);
    let pairs: Vec<_> = on_engine.views().zip(grads.views()).collect();
    let grad_xs = bn.backward_parts(&mut saved, &pairs).unwrap();
    for (k, shape) in shapes.iter().enumerate() {
        let (y, saved) = forward(&mut alone, shape, &xs[k]).unwrap();
        assert_eq!(down(engine, &ys[k]), y);
        let grad_x = backward(&mut alone, &saved, &xs[k], &grad_ys[k]).unwrap();
        assert_eq!(down(engine, &grad_xs[k]), grad_x);
    }
    assert_eq!(snapshot(&bn), snapshot(&alone));
}

fn layers_without_statistics_take_those_of_the_list<G: Engine>(engine: &G) {
    let (shapes, config) = (shapes(), Config::default().track_running_stats(false));
    let xs = random::<f64>(&shapes, 3);
    let on_engine = Uploaded::<G, f64>::new(engine, &xs);
    let mut bn: BatchNorm<f64, G> = layer(engine, config);
    let (in_training, _) = bn.forward_parts(&on_engine.with(&shapes)).unwrap();
    bn.eval();
    let (in_evaluation, saved) = bn.forward_parts(&on_engine.with(&shapes)).unwrap();
    assert!(!saved.is_frozen());
    let in_training = downloaded::<G, f64>(engine, &in_training);
    assert_eq!(in_training, downloaded::<G, f64>(engine, &in_evaluation));
    let (whole, x) = by_channel(&shapes, &xs);
    let mut right: BatchNorm<f64, Reference> = layer(&Reference, config);
    let right = forward(&mut right, &whole, &x).unwrap().0;
    assert_near(&by_channel(&shapes, &in_training).1, &right, Kind::Element);
}

/// One value per channel, none at all, averages, biased variances, statistics that are to stay.
fn the_rules_of_one_tensor_are_those_of_a_list<G: Engine>(engine: &G) {
    let empty = Shape::new(&[0, 3], 1).unwrap();
    let one = Shape::new(&[3], 0).unwrap();
    let lists = [vec![empty, one], vec![empty, empty], vec![one, one], vec![small()]];
    let average = Config::default().momentum(Momentum::Average).variance(Variance::Biased);
    for config in
        [Config::default(), Config::keras(), Config::matlab(), average, Config::haiku(0.9)]
    {
        for (list, updates) in lists.iter().zip([true, true, false, true]) {
            let mut bn: BatchNorm<f64, G> = layer(engine, config);
            let mut right: BatchNorm<f64, G> = layer(engine, config);
            bn.update_running_stats(updates);
            right.update_running_stats(updates);
            let before = snapshot(&bn);
            let xs = random::<f64>(list, 4);
            let (whole, x) = by_channel(list, &xs);
            // None per channel is a batch too.
            let whole = if whole.is_empty() { empty } else { whole };
            let right_y = forward(&mut right, &whole, &x).map(|(y, _)| y);
            let on_engine = Uploaded::<G, f64>::new(engine, &xs);
            let y = bn.forward_parts(&on_engine.with(list)).map(|(ys, _)| ys);
            match (y, right_y) {
                (Ok(ys), Ok(right)) => {
                    let y = by_channel(list, &downloaded::<G, f64>(engine, &ys)).1;
                    assert_near(&y, &right, Kind::Element);
                }
                (Err(error), Err(right)) => {
                    let same = error.to_string().replace("records", "x");
                    assert_eq!(same, right.to_string());
                    assert_eq!(snapshot(&bn), before);
                }
                (y, right) => panic!("{config}: {:?}, on one tensor {:?}", y.err(), right.err()),
            }
            let ((mean, var, count), (right_mean, right_var, right_count)) =
                (snapshot(&bn).running.unwrap(), snapshot(&right).running.unwrap());
            // NaN of an empty batch, too.
            assert_near(&mean, &right_mean, Kind::Element);
            assert_near(&var, &right_var, Kind::Element);
            assert_eq!(count, right_count, "{config}, {list:?}");
        }
    }
}

fn bad_lists_say_both_sides_and_change_nothing<G: Engine>(engine: &G) {
    let (shapes, xs) = (shapes(), random::<f32>(&shapes(), 5));
    let on_engine = Uploaded::<G, f32>::new(engine, &xs);
    let mut bn: BatchNorm<f32, G> = layer(engine, Config::default());
    let before = snapshot(&bn);
    let parts = || on_engine.with(&shapes);
    let error = bn.forward_parts::<f32>(&[]).err().unwrap();
    assert_eq!(error.to_string(), "parts: expected at least 1, got none");
    let mut wrong = parts();
    wrong[3].0 = Shape::new(&[3, 20], 1).unwrap();
    let error = bn.forward_parts(&wrong).err().unwrap();
    assert_eq!(error, Error::Length { what: "channels", expected: 3, got: 20 });
    wrong[3].0 = Shape::new(&[19, 3], 1).unwrap();
    let error = bn.forward_parts(&wrong).err().unwrap();
    assert_eq!(error, Error::Length { what: "x", expected: 57, got: 60 });
    assert_eq!(snapshot(&bn), before);

    let (_, mut saved) = bn.forward_parts(&parts()).unwrap();
    let before = snapshot(&bn);
    let pairs: Vec<_> = on_engine.views().zip(on_engine.views()).collect();
    let error = bn.backward_parts(&mut saved, &pairs[1..]).err().unwrap();
    let message = "saved: the forward had number of parts 4, this backward has 3";
    assert_eq!(error.to_string(), message);
    let pairs: Vec<_> = on_engine.views().zip(on_engine.views().skip(1)).collect();
    let short = on_engine.views().next().into_iter();
    let pairs: Vec<_> = pairs.into_iter().chain(short.zip(on_engine.views())).collect();
    let error = bn.backward_parts(&mut saved, &pairs).err().unwrap();
    assert_eq!(error, Error::Length { what: "grad_y", expected: 24, got: 3 });
    let mut without = BatchNorm::<f32, G>::new(engine, 3, Config::default().bias(false)).unwrap();
    let pairs: Vec<_> = on_engine.views().zip(on_engine.views()).collect();
    let error = without.backward_parts(&mut saved, &pairs).err().unwrap();
    assert_eq!(error.to_string(), "saved: the forward had bias given, this backward has none");
    assert_eq!(snapshot(&bn), before);
}

#[cfg(all(feature = "cudnn", target_os = "linux"))]
fn an_engine_without_records_refuses_and_changes_nothing<G: Engine>(engine: &G) {
    let (shapes, xs) = (shapes(), random::<f32>(&shapes(), 5));
    let on_engine = Uploaded::<G, f32>::new(engine, &xs);
    let mut bn: BatchNorm<f32, G> = layer(engine, Config::default());
    let before = snapshot(&bn);
    let error = bn.forward_parts(&on_engine.with(&shapes)).err().unwrap();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert_eq!(snapshot(&bn), before);
}

/// With every activation: the list is one tensor, with one residual.
fn residuals_are_added_part_by_part<G: Engine>(engine: &G) {
    fn one<E: Element, G: Engine>(engine: &G) {
        let shapes = shapes();
        for (seed, activation) in (10..).zip(Activation::ALL) {
            let config = Config::default().activation(activation);
            let [xs, residuals, grad_ys] = [0, 100, 200].map(|of| random::<E>(&shapes, seed + of));
            let [x, residual, grad_y] =
                [&xs, &residuals, &grad_ys].map(|parts| Uploaded::<G, E>::new(engine, parts));
            let mut bn: BatchNorm<E::Acc, G> = layer(engine, config);
            let parts = x.with(&shapes).into_iter().zip(residual.views());
            let parts: Vec<_> = parts.map(|((shape, x), added)| (shape, x, added)).collect();
            let (ys, mut saved) = bn.forward_parts_add(&parts).unwrap();
            let again = activation.derivative_from(true) == Derivative::FromResidual;
            let parts = x.views().zip(residual.views()).zip(grad_y.views());
            let parts = parts.map(|((x, added), grad_y)| (x, again.then_some(added), grad_y));
            let grads = bn.backward_parts_add(&mut saved, &parts.collect::<Vec<_>>()).unwrap();
            let (grad_xs, grad_residuals): (Vec<_>, Vec<_>) = grads.into_iter().unzip();

            let mut right: BatchNorm<f64, Reference> = layer(&Reference, config);
            let (whole, _) = by_channel(&shapes, &xs);
            let [x, added, grad_y] =
                [&xs, &residuals, &grad_ys].map(|parts| wide(&by_channel(&shapes, parts).1));
            let (y, saved) = right.forward_add(&whole, &x, &added).unwrap();
            let (grad_x, grad_residual) =
                right.backward_add(&saved, &x, again.then_some(&added), &grad_y).unwrap();
            for (got, right) in [(ys, y), (grad_xs, grad_x), (grad_residuals, grad_residual)] {
                let got = by_channel(&shapes, &downloaded::<G, E>(engine, &got)).1;
                assert_near(&got, &right, Kind::Element);
            }
            let m = shapes.iter().map(Shape::per_channel).sum();
            for (got, right) in snapshot(&bn).grads.iter().zip(snapshot(&right).grads) {
                assert_near(got.as_ref().unwrap(), &right.unwrap(), Kind::Sum(m));
            }
        }
    }
    one::<f64, G>(engine);
    one::<f32, G>(engine);
    one::<f16, G>(engine);
    one::<bf16, G>(engine);
}

/// The owned forms and those into memory, which is used twice; gradients apart and in place.
fn lists_into_memory_have_the_same_bits<G: Engine>(engine: &G) {
    let (shapes, config) = (shapes(), Config::default().activation(Activation::Silu));
    let [xs, added, grad_ys] = [7, 8, 9].map(|seed| random::<f32>(&shapes, seed));
    let [x, residual, grad_y] =
        [&xs, &added, &grad_ys].map(|parts| Uploaded::<G, f32>::new(engine, parts));
    for training in [true, false] {
        let mut owned: BatchNorm<f32, G> = layer(engine, config);
        owned.train(training);
        let parts = x.with(&shapes).into_iter().zip(residual.views());
        let parts: Vec<_> = parts.map(|((shape, x), added)| (shape, x, added)).collect();
        let (ys, mut saved) = owned.forward_parts_add(&parts).unwrap();
        let parts = x.views().zip(residual.views()).zip(grad_y.views());
        let parts = parts.map(|((x, added), grad_y)| (x, Some(added), grad_y));
        let grads = owned.backward_parts_add(&mut saved, &parts.collect::<Vec<_>>()).unwrap();
        let (grad_xs, grad_residuals): (Vec<_>, Vec<_>) = grads.into_iter().unzip();
        let right = [ys, grad_xs, grad_residuals].map(|bufs| downloaded::<G, f32>(engine, &bufs));

        let mut saved = SavedParts::new();
        // Another list before it, and the same one twice.
        let mut first: BatchNorm<f32, G> = layer(engine, config);
        first.train(training);
        let mut outputs = xs.iter().map(|x| up(engine, x)).collect::<Vec<Buf<G, f32>>>();
        let parts = x.views().zip(&mut outputs).zip(&shapes);
        let mut parts: Vec<_> = parts
            .map(|((x, y), shape)| Part::<G::Memory, f32>::new(*shape, x, view_mut::<G, f32>(y)))
            .skip(1)
            .collect();
        first.forward_parts_into(&mut parts, &mut saved).unwrap();
        drop(parts);
        assert_eq!((saved.len(), saved.is_frozen()), (3, !training));
        for in_place in [false, true] {
            let mut bn: BatchNorm<f32, G> = layer(engine, config);
            bn.train(training);
            let parts = x.with(&shapes).into_iter().zip(residual.views()).zip(&mut outputs);
            let parts = parts.map(|(((shape, x), added), y)| {
                Part::<G::Memory, f32>::new(shape, x, view_mut::<G, f32>(y)).residual(added)
            });
            bn.forward_parts_into(&mut parts.collect::<Vec<_>>(), &mut saved).unwrap();
            let upload = |parts: &[Vec<f32>]| parts.iter().map(|part| up(engine, part)).collect();
            let mut grad_xs: Vec<Buf<G, f32>> = upload(if in_place { &grad_ys } else { &xs });
            let mut grad_residuals: Vec<Buf<G, f32>> = upload(&xs);
            let to = grad_xs.iter_mut().zip(&mut grad_residuals);
            let parts = x.views().zip(residual.views()).zip(grad_y.views()).zip(to);
            let parts = parts.map(|(((x, added), grad_y), (to_x, to_residual))| {
                let to_x = view_mut::<G, f32>(to_x);
                let part = match in_place {
                    true => PartGradients::<G::Memory, f32>::in_place(x, to_x),
                    false => PartGradients::new(x, grad_y).grad_x(to_x),
                };
                part.residual(added).grad_residual(view_mut::<G, f32>(to_residual))
            });
            bn.backward_parts_into(&mut saved, &mut parts.collect::<Vec<_>>()).unwrap();
            let got = [&outputs, &grad_xs, &grad_residuals]
                .map(|bufs| downloaded::<G, f32>(engine, bufs));
            assert_eq!(got, right, "training {training}, in place {in_place}");
            assert_eq!(snapshot(&bn), snapshot(&owned));
        }
    }
}

fn residuals_that_do_not_fit_are_refused<G: Engine>(engine: &G) {
    let (shapes, config) = (shapes(), Config::default().activation(Activation::Gelu));
    let [xs, short] = [shapes.clone(), vec![small(); 4]].map(|shapes| random::<f32>(&shapes, 5));
    let [x, other] = [&xs, &short].map(|parts| Uploaded::<G, f32>::new(engine, parts));
    let mut bn: BatchNorm<f32, G> = layer(engine, config);
    let before = snapshot(&bn);
    let parts = x.with(&shapes).into_iter().zip(x.views());
    let mut parts: Vec<_> = parts.map(|((shape, x), added)| (shape, x, added)).collect();
    let (_, mut saved) = bn.forward_parts_add(&parts).unwrap();
    let after = snapshot(&bn);
    assert_ne!(after.running, before.running);
    parts[3].2 = other.views().next().unwrap();
    let error = bn.forward_parts_add(&parts).err().unwrap();
    assert_eq!(error, Error::Length { what: "residual", expected: 60, got: small().len() });

    // Into memory: in some parts only; nothing is written, what was saved stays.
    let mut ys = xs.iter().map(|x| up(engine, &vec![7.0; x.len()])).collect::<Vec<Buf<G, f32>>>();
    let mut into =
        |with: [bool; 4], long: Option<usize>, saved: &mut SavedParts<G::Memory, f32>| {
            let parts = x.with(&shapes).into_iter().zip(x.views()).zip(&mut ys).enumerate();
            let parts = parts.map(|(k, (((shape, x), added), y))| {
                let mut part = Part::<G::Memory, f32>::new(shape, x, view_mut::<G, f32>(y));
                part.residual = with[k].then_some(added);
                if long == Some(k) {
                    part.residual = other.views().next();
                }
                part
            });
            let error = bn.forward_parts_into(&mut parts.collect::<Vec<_>>(), saved).unwrap_err();
            assert!(ys.iter().flat_map(|y| down(engine, y)).all(|y| y == 7.0));
            assert_eq!(snapshot(&bn), after);
            error
        };
    let error = into([true, true, false, true], None, &mut saved);
    assert_eq!(error.to_string(), "residual: expected one in each of 4 parts or in none, got 3");
    let error = into([true; 4], Some(3), &mut saved);
    assert_eq!(error, Error::Length { what: "residual", expected: 60, got: small().len() });

    // The derivative takes them again, of every part.
    let args = |k: usize| {
        let parts = x.views().zip(x.views()).zip(x.views()).enumerate();
        let args = parts.map(|(i, ((x, added), grad_y))| (x, (i != k).then_some(added), grad_y));
        args.collect::<Vec<_>>()
    };
    let error = bn.backward_parts_add(&mut saved, &args(3)).err().unwrap();
    assert!(error.to_string().starts_with("residual: expected that of the forward"), "{error}");
    let mut wrong = args(4);
    wrong[3].1 = other.views().next();
    let error = bn.backward_parts_add(&mut saved, &wrong).err().unwrap();
    assert_eq!(error, Error::Length { what: "residual", expected: 60, got: small().len() });
    assert_eq!(snapshot(&bn), after);
    bn.backward_parts_add(&mut saved, &args(4)).unwrap();
    // A forward without residuals has no gradient for any.
    let (_, mut saved) = bn.forward_parts(&x.with(&shapes)).unwrap();
    let error = bn.backward_parts_add(&mut saved, &args(4)).err().unwrap();
    let said = "saved: the forward had residual none, this backward has a grad_residual to write";
    assert_eq!(error.to_string(), said);
}
