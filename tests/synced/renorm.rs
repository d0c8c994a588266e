//! Renormalization on several ranks: r and d by the statistics of all parts, as of one whole batch.
use crate::support::layer::{assert_near, backward, down, forward, grad, wide};
use crate::support::run::{Epilogue, Inputs};
use crate::support::tolerance::Kind;
use crate::world::{OfRanks, on_engines, on_ranks, parts};
use batchnorm::{
    Activation, BatchNorm, Config, Element, Engine, Error, Mask, Memory, OneValue, Real, Reference,
    Renorm, Shape,
};
use half::{bf16, f16};

on_engines! {
    renormalized_parts_are_one_batch_f64,
    renormalized_parts_are_one_batch_f32,
    renormalized_parts_are_one_batch_f16,
    renormalized_parts_are_one_batch_bf16,
    one_value_on_all_ranks_is_refused_on_all,
    what_a_rank_refuses_is_an_error_of_all,
}

fn renormalized_parts_are_one_batch_f64<G: OfRanks>() {
    one_batch::<f64, G>();
}
fn renormalized_parts_are_one_batch_f32<G: OfRanks>() {
    one_batch::<f32, G>();
}
fn renormalized_parts_are_one_batch_f16<G: OfRanks>() {
    one_batch::<f16, G>();
}
fn renormalized_parts_are_one_batch_bf16<G: OfRanks>() {
    one_batch::<bf16, G>();
}

/// All that a layer keeps.
fn kept<P: Real, G: Engine>(bn: &BatchNorm<P, G>) -> Vec<Vec<P>> {
    let (running, on) = (bn.running().unwrap(), bn.engine());
    let renorm = running.renorm.as_ref().unwrap();
    let mut all = vec![&running.mean, &running.var, &renorm.moving_stddev];
    all.extend(renorm.renorm_mean.as_ref());
    all.extend(renorm.renorm_stddev.as_ref());
    all.into_iter().map(|buf| down::<G, P>(on, buf)).collect()
}

/// Two steps, so that the second has statistics to be brought to; by a mask and without.
fn one_batch<E: Element, G: OfRanks>() {
    let keras = Config::default().renorm(Renorm::default()).activation(Activation::Silu);
    let paper = Config::default().renorm(Renorm::paper(1.5, 0.5));
    let cases = [(keras, false), (paper, false), (keras, true), (paper, true)];
    for (k, (config, masked)) in cases.into_iter().enumerate() {
        let whole = Inputs::<E>::new(&Shape::new(&[11, 4], 1).unwrap(), Epilogue::PLAIN, 51);
        let places: Vec<u8> = (0..11).map(|i| u8::from(i % 4 > 0)).collect();
        let mut right = BatchNorm::<f64, _>::new(&Reference, 4, config).unwrap();
        let (x, grad_y) = (wide(&whole.x), wide(&whole.grad_y));
        let mut expected = vec![];
        for _ in 0..2 {
            let mask = Mask::<batchnorm::Host>::new(&places);
            let (y, saved) = match masked {
                true => right.forward_masked(&whole.shape, &x, mask).unwrap(),
                false => right.forward(&whole.shape, &x).unwrap(),
            };
            let grad_x = match masked {
                true => right.backward_masked(&saved, &x, &places, &grad_y).unwrap(),
                false => right.backward(&saved, &x, &grad_y).unwrap(),
            };
            expected.push([y, grad_x]);
        }
        let ways = if G::IS_FAST { 0..3 } else { k % 3..k % 3 + 1 };
        for way in ways {
            let parts = parts(&whole, 3, way);
            let all = on_ranks::<G, _>(3, |rank, engine| {
                let part = &parts[rank];
                let mine = &part.inputs;
                let own: Vec<u8> = part.at.chunks(4).map(|at| places[at[0] / 4]).collect();
                let mut bn = BatchNorm::<E::Acc, _>::new(&engine, 4, config).unwrap();
                let on = engine.memory();
                let (x, grad_y) = (on.upload(&mine.x).unwrap(), on.upload(&mine.grad_y).unwrap());
                let (x, grad_y) = (|| G::Memory::view(&x), || G::Memory::view(&grad_y));
                let own = on.upload(&own).unwrap();
                for right in &expected {
                    let of = |k: usize| part.at.iter().map(|&at| right[k][at]).collect::<Vec<_>>();
                    let mask = Mask::new(G::Memory::view(&own));
                    let (y, saved) = match masked {
                        true => bn.forward_masked::<E>(&mine.shape, x(), mask).unwrap(),
                        false => bn.forward::<E>(&mine.shape, x()).unwrap(),
                    };
                    assert_eq!(saved.is_frozen(), Some(false));
                    let places = G::Memory::view(&own);
                    let grad_x = match masked {
                        true => bn.backward_masked(&saved, x(), places, grad_y()).unwrap(),
                        false => bn.backward(&saved, x(), grad_y()).unwrap(),
                    };
                    let down = |buf: &_| on.download::<E>(G::Memory::view(buf)).unwrap();
                    assert_near(&down(&y), &of(0), Kind::Element);
                    assert_near(&down(&grad_x), &of(1), Kind::Element);
                }
                assert_eq!(bn.running().unwrap().num_batches_tracked, 2);
                (kept(&bn), ["weight", "bias"].map(|name| grad(&bn, name).unwrap()))
            });
            for (statistics, _) in &all {
                assert_eq!(*statistics, all[0].0, "the same bits on every rank");
            }
            for (got, right) in all[0].0.iter().zip(kept(&right)) {
                assert_near(got, &right, Kind::Statistic);
            }
            for (k, name) in ["weight", "bias"].into_iter().enumerate() {
                let mut sums = [0.0; 4];
                for (_, grads) in &all {
                    sums.iter_mut().zip(&grads[k]).for_each(|(sum, g)| *sum += g.to_f64());
                }
                let sums = sums.map(E::Acc::from_f64);
                assert_near(&sums, &grad(&right, name).unwrap(), Kind::Sum(30));
            }
        }
    }
}

fn one_value_on_all_ranks_is_refused_on_all<G: OfRanks>() {
    let config = Config::default().renorm(Renorm::default());
    for one_value in [OneValue::Refuse, OneValue::ZeroVariance] {
        on_ranks::<G, _>(2, |rank, engine| {
            let config = config.one_value(one_value);
            let mut bn = BatchNorm::<f32, _>::new(&engine, 1, config).unwrap();
            // One row on one rank; then one on each, which are two.
            let one = Shape::new(&[rank, 1], 1).unwrap();
            let done = forward(&mut bn, &one, &[3f32][..rank]).map(drop);
            match one_value {
                OneValue::Refuse => {
                    let error = done.unwrap_err();
                    assert!(matches!(error, Error::Invalid { what: "x", .. }), "{error}");
                }
                _ => done.unwrap(),
            }
            forward(&mut bn, &Shape::new(&[1, 1], 1).unwrap(), &[rank as f32]).unwrap();
        });
    }
}

fn what_a_rank_refuses_is_an_error_of_all<G: OfRanks>() {
    on_ranks::<G, _>(2, |rank, engine| {
        let config = Config::default().renorm(Renorm::default());
        let layer = |config| BatchNorm::<f32, _>::new(&engine, 2, config).unwrap();
        let (shape, x) = (Shape::new(&[3, 2], 1).unwrap(), [1f32, 2., 3., 4., 6., 5.]);
        let other = |error: &Error| matches!(error, Error::Collective { rank: Some(1), .. });
        let mut bn = layer(config);
        let error = forward(&mut bn, &shape, &x[..6 - rank]).map(drop).unwrap_err();
        assert_eq!(other(&error), rank == 0, "{error}");
        let mut plain = layer(if rank == 1 { Config::default() } else { config });
        let error = forward(&mut plain, &shape, &x).map(drop).unwrap_err();
        assert!(other(&error) && error.to_string().contains("none of renormalization"), "{error}");
        // A residual that is too long is found by the check of all arguments.
        let on = engine.memory();
        let (x_there, long) = (on.upload(&x).unwrap(), on.zeros::<f32>(6 + rank).unwrap());
        let (mut y, mut saved) = (on.zeros::<f32>(6).unwrap(), batchnorm::Saved::new());
        let residual = Some(G::Memory::view(&long));
        let to = G::Memory::view_mut(&mut y);
        let error = bn.forward_into(&shape, G::Memory::view(&x_there), residual, to, &mut saved);
        assert_eq!(other(&error.unwrap_err()), rank == 0);
        let (_, saved) = forward(&mut bn, &shape, &x).unwrap();
        let error = backward(&mut bn, &saved, &x, &x[..6 - rank]).unwrap_err();
        assert_eq!(other(&error), rank == 0, "{error}");
        backward(&mut bn, &saved, &x, &x).unwrap();
    });
}
