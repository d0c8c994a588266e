//! A list of inputs on every rank: all of them are one batch.
use crate::support::layer::{assert_near, down, grad, wide};
use crate::support::run::{Epilogue, Inputs};
use crate::support::tolerance::Kind;
use crate::world::{OfRanks, on_engines, on_ranks, parts};
use batchnorm::{
    Activation, BatchNorm, Config, Element, Engine, Error, Ghost, Memory, OneValue, Part, Real,
    Reference, Renorm, SavedParts, Shape,
};
use half::{bf16, f16};

on_engines! {
    lists_are_one_batch_f64,
    lists_are_one_batch_f32,
    lists_are_one_batch_f16,
    lists_are_one_batch_bf16,
    one_value_in_all_lists_is_refused_on_all,
    what_a_rank_refuses_is_an_error_of_all,
}

fn lists_are_one_batch_f64<G: OfRanks>() {
    one_batch::<f64, G>();
}
fn lists_are_one_batch_f32<G: OfRanks>() {
    one_batch::<f32, G>();
}
fn lists_are_one_batch_f16<G: OfRanks>() {
    one_batch::<f16, G>();
}
fn lists_are_one_batch_bf16<G: OfRanks>() {
    one_batch::<bf16, G>();
}

/// Twelve rows on three ranks, in lists of two inputs, of one and of one without rows; or all on one rank.
fn one_batch<E: Element, G: OfRanks>() {
    let config = Config::default().activation(Activation::Silu);
    let whole = Inputs::<E>::new(&Shape::new(&[12, 4], 1).unwrap(), Epilogue::PLAIN, 61);
    let mut right = BatchNorm::<f64, _>::new(&Reference, 4, config).unwrap();
    let (x, residual, grad_y) = (wide(&whole.x), wide(&whole.residual), wide(&whole.grad_y));
    let mut expected = vec![];
    for _ in 0..2 {
        let (y, saved) = right.forward_add(&whole.shape, &x, &residual).unwrap();
        let (to_x, to_residual) = right.backward_add(&saved, &x, Some(&residual), &grad_y).unwrap();
        expected.push([y, to_x, to_residual]);
    }
    for way in if G::IS_FAST { 0..3 } else { 1..2 } {
        let parts = parts(&whole, 3, way);
        let all = on_ranks::<G, _>(3, |rank, engine| {
            let part = &parts[rank];
            let mine = &part.inputs;
            let (rows, on) = (mine.shape.batch(), engine.memory());
            let mut bn = BatchNorm::<E::Acc, _>::new(&engine, 4, config).unwrap();
            // A row more in the first input than in the second, which may have none.
            let first = rows.div_ceil(2);
            let cuts = [0..first * 4, first * 4..rows * 4];
            let up = |all: &[E]| cuts.clone().map(|at| on.upload(&all[at]).unwrap());
            let [x, residual, grad_y] = [&mine.x, &mine.residual, &mine.grad_y].map(|v| up(v));
            let shape = |k: usize| Shape::new(&[cuts[k].len() / 4, 4], 1).unwrap();
            for right in &expected {
                let list: Vec<_> = (0..2)
                    .map(|k| (shape(k), G::Memory::view(&x[k]), G::Memory::view(&residual[k])))
                    .collect();
                let (ys, mut saved) = bn.forward_parts_add::<E>(&list).unwrap();
                assert!(!saved.is_frozen());
                let list: Vec<_> = (0..2)
                    .map(|k| {
                        let residual = Some(G::Memory::view(&residual[k]));
                        (G::Memory::view(&x[k]), residual, G::Memory::view(&grad_y[k]))
                    })
                    .collect();
                let grads = bn.backward_parts_add::<E>(&mut saved, &list).unwrap();
                for k in 0..2 {
                    let at = &part.at[cuts[k].clone()];
                    let of =
                        |which: usize| at.iter().map(|&at| right[which][at]).collect::<Vec<_>>();
                    let (to_x, to_residual) = &grads[k];
                    for (which, got) in [&ys[k], to_x, to_residual].into_iter().enumerate() {
                        let got = on.download::<E>(G::Memory::view(got)).unwrap();
                        assert_near(&got, &of(which), Kind::Element);
                    }
                }
            }
            let running = bn.running().unwrap();
            assert_eq!(running.num_batches_tracked, 2);
            let kept = [&running.mean, &running.var].map(|b| down::<_, E::Acc>(&engine, b));
            (kept, grad(&bn, "weight").unwrap())
        });
        let running = right.running().unwrap();
        let mut sums = [0.0; 4];
        for (kept, of_weight) in &all {
            assert_eq!(*kept, all[0].0, "the same bits on every rank");
            sums.iter_mut().zip(of_weight).for_each(|(sum, g)| *sum += g.to_f64());
        }
        assert_near(&all[0].0[0], &running.mean, Kind::Statistic);
        assert_near(&all[0].0[1], &running.var, Kind::Statistic);
        let sums = sums.map(E::Acc::from_f64);
        assert_near(&sums, &grad(&right, "weight").unwrap(), Kind::Sum(24));
    }
}

fn one_value_in_all_lists_is_refused_on_all<G: OfRanks>() {
    for one_value in [OneValue::Refuse, OneValue::ZeroVariance] {
        on_ranks::<G, _>(2, |rank, engine| {
            let config = Config::default().one_value(one_value);
            let mut bn = BatchNorm::<f32, _>::new(&engine, 1, config).unwrap();
            let shape = Shape::new(&[rank, 1], 1).unwrap();
            let x = engine.memory().upload(&[3f32][..rank]).unwrap();
            let done = bn.forward_parts(&[(shape, G::Memory::view(&x))]).map(drop);
            match one_value {
                OneValue::Refuse => {
                    let error = done.unwrap_err();
                    assert!(matches!(error, Error::Invalid { what: "x", .. }), "{error}");
                }
                _ => done.unwrap(),
            }
            let x = engine.memory().upload(&[rank as f32]).unwrap();
            let shape = Shape::new(&[1, 1], 1).unwrap();
            bn.forward_parts(&[(shape, G::Memory::view(&x))]).unwrap();
        });
    }
}

fn what_a_rank_refuses_is_an_error_of_all<G: OfRanks>() {
    on_ranks::<G, _>(2, |rank, engine| {
        let on = engine.memory();
        let layer = |config| BatchNorm::<f32, _>::new(&engine, 2, config).unwrap();
        let shape = Shape::new(&[3, 2], 1).unwrap();
        let x = on.upload(&[1f32, 2., 3., 4., 6., 5.]).unwrap();
        let short = on.upload(&[1f32, 2., 3.]).unwrap();
        let (x, short) = (|| G::Memory::view(&x), || G::Memory::view(&short));
        let checked = |error: Error, own: &str| match rank {
            1 => assert!(error.to_string().contains(own), "{error}"),
            _ => assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{error}"),
        };
        let mut bn = layer(Config::default());
        // No inputs at all, or one of another length, by either form.
        let list = [(shape, x()), (shape, x())];
        let none = &list[..2 - 2 * rank];
        checked(bn.forward_parts(none).map(drop).unwrap_err(), "got none");
        let given = if rank == 1 { short() } else { x() };
        checked(bn.forward_parts(&[(shape, given)]).map(drop).unwrap_err(), "6 elements, got 3");
        let mut y = on.zeros::<f32>(6).unwrap();
        let given = if rank == 1 { short() } else { x() };
        let (given, y) = (G::Memory::reborrow(&given), G::Memory::view_mut(&mut y));
        let part = Part::<G::Memory, f32>::new(shape, given, y);
        let error = bn.forward_parts_into(&mut [part], &mut SavedParts::new()).unwrap_err();
        checked(error, "6 elements, got 3");
        // What a list never goes with is refused beside a plain one, too.
        for config in [
            Config::default().ghost(Ghost::consecutive(2)),
            Config::default().renorm(Renorm::default()),
        ] {
            let mut bn = layer(if rank == 1 { config } else { Config::default() });
            let error = bn.forward_parts(&[(shape, x())]).map(drop).unwrap_err();
            checked(error, "list of inputs");
        }
        assert_eq!(bn.running().unwrap().num_batches_tracked, 0);
        // A list on one rank and an input on the other are one batch, of other numbers of inputs.
        let (ys, mut saved) = match rank {
            0 => bn.forward_parts(&[(shape, x()), (shape, x())]).unwrap(),
            _ => bn.forward_parts(&[(shape, x())]).unwrap(),
        };
        let grad_y = |k: usize| G::Memory::view(&ys[k]);
        let fewer = if rank == 0 { vec![(x(), grad_y(0)), (x(), grad_y(1))] } else { vec![] };
        let error = bn.backward_parts(&mut saved, &fewer).map(drop).unwrap_err();
        checked(error, "number of parts");
        let list: Vec<_> = (0..ys.len()).map(|k| (x(), grad_y(k))).collect();
        bn.backward_parts(&mut saved, &list).unwrap();
    });
}
