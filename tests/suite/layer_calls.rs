//! The forms of a layer's calls: with memory and without, with a residual, in place, from several threads,
//! on another engine; and sizes that no memory has.
use super::layer::relu;
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    shapes_beyond_memory_are_refused,
    forms_with_and_without_memory_agree,
    residuals_are_added_and_get_their_gradient,
    a_kept_y_changes_no_result,
    evaluation_in_place,
    several_threads_evaluate_at_once,
    moved_layers_are_the_same_and_apart,
] }
engines! { [reference_on_host, cpu_on_host] [memory_that_is_there_is_used_again] }

/// Sizes that no memory has are errors of the arguments or of the memory, never the end of the
/// process.
fn shapes_beyond_memory_are_refused<G: Engine>(engine: &G) {
    let mut bn = layer(engine, Config::default());
    let x: Vec<f32> = numbers(small().len(), 1);
    let (_, saved) = forward(&mut bn, &small(), &x).unwrap();
    for rows in [10usize.pow(12), 10usize.pow(18)] {
        let huge = Shape::new(&[rows, 3], 1).unwrap();
        let refused = Error::Length { what: "x", expected: 3 * rows, got: x.len() };
        assert_eq!(forward(&mut bn, &huge, &x).err(), Some(refused.clone()));
        assert_eq!(infer(&bn, &huge, &x).err(), Some(refused.clone()));
        let tensor = up(engine, &x);
        let (a, b) = (view::<G, f32>(&tensor), view::<G, f32>(&tensor));
        assert_eq!(bn.forward_add(&huge, a, b).err(), Some(refused));
        assert!(BatchNorm::<f32, G>::new(engine, rows, Config::default()).is_err());
        assert!(RunningStats::<G::Memory, f64>::new(engine.memory(), rows).is_err());
        assert!(engine.memory().zeros::<f32>(rows).is_err());
    }
    let short = backward(&mut bn, &saved, &x[1..], &x).unwrap_err();
    assert_eq!(short, Error::Length { what: "x", expected: 48, got: 47 });
    let most = [0, usize::MAX];
    let shape = Shape::new(&most, 1).unwrap();
    let (x, mut record) = (up::<G, f32>(engine, &[]), up(engine, &[0f64]));
    let args = Stats::<G::Memory, f32>::new(view::<G, f32>(&x), view_mut::<G, f64>(&mut record));
    let refused = Error::Length { what: "record", expected: usize::MAX, got: 1 };
    assert_eq!(engine.stats(&shape, args).err(), Some(refused));
    assert!(BatchNorm::<f32, G>::new(engine, usize::MAX, Config::default()).is_err());
}

/// Whatever the layer normalizes by, and whether its engine reads y again or not.
fn a_kept_y_changes_no_result<G: Engine>(engine: &G) {
    let [x, residual, grad_y] = [1, 2, 3].map(|seed| numbers::<f16>(small().len(), seed));
    let [x, residual, grad_y] = [&x, &residual, &grad_y].map(|host| up(engine, host));
    let view = view::<G, f16>;
    let untracked = relu().track_running_stats(false);
    let grouped = relu().ghost(Ghost::consecutive(2));
    let renormalized = relu().renorm(Renorm::default());
    for config in [relu(), Config::default(), untracked, grouped, renormalized] {
        for training in [true, false] {
            let mut copying = layer(engine, config);
            copying.train(training);
            let mut keeping = copying.to(engine).unwrap();
            let (y, saved) = copying.forward(&small(), view(&x)).unwrap();
            let grad_x = copying.backward(&saved, view(&x), view(&grad_y)).unwrap();
            let (kept, saved) = keeping.forward_keeping_y(&small(), view(&x)).unwrap();
            let by_y = keeping.backward_with_y(&saved, view(&x), view(&kept), view(&grad_y));
            let what = format!("{config:?}, training {training}");
            assert_eq!(down(engine, &kept), down(engine, &y), "{what}");
            assert_eq!(down(engine, &by_y.unwrap()), down(engine, &grad_x), "{what}");
            assert_eq!(snapshot(&keeping), snapshot(&copying), "{what}");

            let (y, saved) = copying.forward_add(&small(), view(&x), view(&residual)).unwrap();
            let (grad_x, grad_residual) =
                copying.backward_add(&saved, view(&x), None, view(&grad_y)).unwrap();
            let [mut kept, mut by_y, mut of_residual] =
                [(); 3].map(|()| up(engine, &numbers::<f16>(small().len(), 4)));
            let mut saved = Saved::new();
            let (added, to_y) = (Some(view(&residual)), view_mut::<G, f16>(&mut kept));
            keeping.forward_keeping_y_into(&small(), view(&x), added, to_y, &mut saved).unwrap();
            let [to_x, to_residual] =
                [&mut by_y, &mut of_residual].map(view_mut::<G, f16>).map(Some);
            let (y_again, from) = (view(&kept), Input::View(view(&grad_y)));
            keeping
                .backward_with_y_into(&saved, view(&x), y_again, None, from, to_x, to_residual)
                .unwrap();
            let right = [y, grad_x, grad_residual].map(|buf| down(engine, &buf));
            assert_eq!([kept, by_y, of_residual].map(|buf| down(engine, &buf)), right, "{what}");
            assert_eq!(snapshot(&keeping), snapshot(&copying), "{what}");
        }
    }
    // Where a layer was told that y is kept, it is asked for.
    let mut bn = layer(engine, relu());
    let (y, saved) = bn.forward_keeping_y(&small(), view(&x)).unwrap();
    let refused = bn.backward(&saved, view(&x), view(&grad_y)).err().unwrap();
    assert!(matches!(refused, Error::Invalid { what: "y", .. }), "{refused}");
    let short = G::Memory::part(&y, 0..47).unwrap();
    let refused = bn.backward_with_y(&saved, view(&x), short, view(&grad_y)).err().unwrap();
    assert_eq!(refused, Error::Length { what: "y", expected: 48, got: 47 });
}

fn forms_with_and_without_memory_agree<G: Engine>(engine: &G) {
    let x: Vec<f16> = numbers(small().len(), 1);
    let residual: Vec<f16> = numbers(x.len(), 2);
    let grad_y: Vec<f16> = numbers(x.len(), 3);
    for training in [true, false] {
        let mut owned = layer(engine, relu());
        owned.train(training);
        let mut into = owned.to(engine).unwrap();
        let [x, residual, grad_y] = [&x, &residual, &grad_y].map(|host| up(engine, host));
        let view = view::<G, f16>;
        let (y, saved) = owned.forward_add(&small(), view(&x), view(&residual)).unwrap();
        let gradients = owned.backward_add(&saved, view(&x), None, view(&grad_y)).unwrap();
        let expected = [y, gradients.0, gradients.1].map(|buf| down(engine, &buf));

        let [mut y, mut grad_x, mut grad_residual] =
            [2, 3, 4].map(|seed| up(engine, &numbers::<f16>(small().len(), seed)));
        let mut saved = Saved::new();
        let to_y = view_mut::<G, f16>(&mut y);
        into.forward_into(&small(), view(&x), Some(view(&residual)), to_y, &mut saved).unwrap();
        // In place: grad_x holds grad_y before, as its numbers have the same seed.
        let to_x = Some(view_mut::<G, f16>(&mut grad_x));
        let to_residual = Some(view_mut::<G, f16>(&mut grad_residual));
        into.backward_into(&saved, view(&x), None, Input::InPlace, to_x, to_residual).unwrap();
        assert_eq!([y, grad_x, grad_residual].map(|buf| down(engine, &buf)), expected);
        assert_eq!(snapshot(&into), snapshot(&owned));
        // Parameters only.
        let grad_y = Input::View(view(&grad_y));
        into.zero_grad();
        into.backward_into(&saved, view(&x), None, grad_y, None, None).unwrap();
        assert_eq!(snapshot(&into), snapshot(&owned));
    }
}

fn residuals_are_added_and_get_their_gradient<G: Engine>(engine: &G) {
    let x: Vec<f32> = numbers(small().len(), 1);
    let residual: Vec<f32> = numbers(x.len(), 2);
    let grad_y: Vec<f32> = numbers(x.len(), 3);
    let mut bn = layer(engine, relu());
    forward(&mut bn, &small(), &x).unwrap();
    bn.eval();
    let linear: Vec<f64> = by_running(&bn, &small(), &x);
    let sum = linear.iter().zip(&residual).map(|(v, r)| v + f64::from(*r));
    let expected: Vec<f64> = sum.map(|v| v.max(0.0)).collect();

    let [x, residual] = [&x, &residual].map(|host| up(engine, host));
    let view = view::<G, f32>;
    let (y, saved) = bn.forward_add(&small(), view(&x), view(&residual)).unwrap();
    assert_near(&down(engine, &y), &expected, Kind::Element);
    let mut inferred = up(engine, &grad_y);
    let to_y = view_mut::<G, f32>(&mut inferred);
    bn.infer_into(&small(), Input::View(view(&x)), Some(view(&residual)), to_y).unwrap();
    assert_eq!(down(engine, &inferred), down(engine, &y));

    let (_, grad_residual) =
        bn.backward_add(&saved, view(&x), None, view(&up(engine, &grad_y))).unwrap();
    let passed = |(y, g): (&f32, &f32)| if *y > 0.0 { *g } else { 0.0 };
    let expected: Vec<f32> = down(engine, &y).iter().zip(&grad_y).map(passed).collect();
    assert_eq!(down(engine, &grad_residual), expected);
}

fn evaluation_in_place<G: Engine>(engine: &G) {
    let mut bn = layer(engine, relu());
    let x: Vec<bf16> = numbers(small().len(), 1);
    forward(&mut bn, &small(), &x).unwrap();
    let expected = infer(&bn, &small(), &x).unwrap();
    let mut y = up(engine, &x);
    bn.infer_into(&small(), Input::InPlace, None, view_mut::<G, bf16>(&mut y)).unwrap();
    assert_eq!(down(engine, &y), expected);
}

fn several_threads_evaluate_at_once<G: Engine>(engine: &G) {
    let mut bn = layer(engine, Config::default());
    forward(&mut bn, &small(), &numbers::<f32>(small().len(), 1)).unwrap();
    let batches: Vec<Vec<f32>> = (0..4).map(|seed| numbers(small().len(), seed)).collect();
    let expected: Vec<_> = batches.iter().map(|x| infer(&bn, &small(), x).unwrap()).collect();
    let bn = &bn;
    std::thread::scope(|scope| {
        let run = batches.iter().map(|x| scope.spawn(move || infer(bn, &small(), x).unwrap()));
        let threads: Vec<_> = run.collect();
        for (thread, expected) in threads.into_iter().zip(&expected) {
            assert_eq!(thread.join().unwrap(), *expected);
        }
    });
}

fn moved_layers_are_the_same_and_apart<G: Engine>(engine: &G) {
    let mut bn = layer(engine, relu());
    let x: Vec<f32> = numbers(small().len(), 1);
    let (_, saved) = forward(&mut bn, &small(), &x).unwrap();
    backward(&mut bn, &saved, &x, &x).unwrap();
    bn.bias_mut().unwrap().zero_grad();
    bn.bias_mut().unwrap().requires_grad = false;
    bn.eval();
    let before = snapshot(&bn);

    let mut moved = bn.to(&Reference).unwrap();
    assert_eq!(snapshot(&moved), before);
    assert_eq!(moved.config(), bn.config());
    assert!(moved.weight().unwrap().requires_grad && !moved.bias().unwrap().requires_grad);
    moved.train(true);
    let (_, saved) = forward(&mut moved, &small(), &x).unwrap();
    backward(&mut moved, &saved, &x, &x).unwrap();
    assert_ne!(snapshot(&moved), before);
    assert_eq!(snapshot(&bn), before);
    // And back again.
    assert_eq!(snapshot(&moved.to(engine).unwrap()), snapshot(&moved));
}

fn memory_that_is_there_is_used_again<G: Engine<Memory = Host>>(engine: &G) {
    let mut bn = layer(engine, relu());
    let x: Vec<f32> = numbers(small().len(), 1);
    let (mut y, mut grad_x, mut saved) = (vec![0.0; x.len()], vec![0.0; x.len()], Saved::new());
    let mut step = || {
        bn.forward_into(&small(), &x, None, &mut y, &mut saved).unwrap();
        bn.backward_into(&saved, &x, None, Input::View(&x), Some(&mut grad_x), None).unwrap();
        let running = bn.running().unwrap();
        let addresses = [
            saved.mean().unwrap().as_ptr(),
            saved.invstd().unwrap().as_ptr(),
            bn.weight().unwrap().grad().unwrap().as_ptr(),
            bn.bias().unwrap().grad().unwrap().as_ptr(),
            running.mean.as_ptr(),
            running.var.as_ptr(),
        ];
        bn.zero_grad();
        addresses
    };
    assert_eq!(step(), step());
}

#[test]
fn types_need_no_annotation() -> Result<()> {
    let (shape, x) = (small(), numbers::<f32>(small().len(), 1));
    let mut bn = BatchNorm::new(&Reference, 3, Config::default())?;
    let (y, saved) = bn.forward(&shape, &x)?;
    let grad_x = bn.backward(&saved, &x, &y)?;
    assert_eq!(grad_x.len(), x.len());
    Ok(())
}
