//! Renormalization by the statistics of the values that count for a mask.
use crate::support::engines::engines;
use crate::support::run::Random;
use batchnorm::{
    Activation, AllMasked, BatchNorm, Config, Engine, Error, Host, Mask, Renorm, RenormClip, Saved,
    Shape,
};

engines! { [reference_on_host, cpu_on_host] [
    renormalization_is_that_of_the_rows_that_count,
    nothing_that_counts_renormalizes_by_its_rule,
    what_is_refused_changes_nothing,
] }

/// Two steps of a layer with renormalization: of rows some of which count, and of those alone.
fn renormalization_is_that_of_the_rows_that_count<G: Engine<Memory = Host>>(engine: &G) {
    for (renorm, activation) in [
        (Renorm::keras(), Activation::Identity),
        (Renorm::paper(1.5, 0.5), Activation::Relu),
        (Renorm::keras().clip(RenormClip::paper(3.0, 5.0)), Activation::Silu),
    ] {
        for (rows, channels) in [(12, 3), (90, 40), (50, 600)] {
            let config = Config::keras().renorm(renorm).activation(activation);
            let mut layers =
                [0, 1].map(|_| BatchNorm::<f64, G>::new(engine, channels, config).unwrap());
            for seed in 0..2 {
                let mut random = Random(seed * 7 + channels as u64);
                let mut tensor = |by: f64| -> Vec<f64> {
                    (0..rows * channels).map(|_| by + 2.0 * random.uniform() - 1.0).collect()
                };
                let (mut x, mut grad_y) = (tensor(0.75), tensor(0.0));
                let places: Vec<u8> = (0..rows).map(|row| u8::from(row % 3 != 2)).collect();
                let part = |all: &[f64], kept: u8| -> Vec<f64> {
                    let rows = all.chunks(channels).zip(&places).filter(|(_, k)| **k == kept);
                    rows.flat_map(|(row, _)| row.to_vec()).collect()
                };
                // Of what does not count there is the same once more, of no gradient.
                for row in (2..rows).step_by(3) {
                    x.copy_within((row - 1) * channels..row * channels, row * channels);
                    grad_y[row * channels..(row + 1) * channels].fill(0.0);
                }
                let (all, some) = (
                    Shape::new(&[rows, channels], 1).unwrap(),
                    Shape::new(&[part(&x, 1).len() / channels, channels], 1).unwrap(),
                );
                let [masked, plain] = &mut layers;
                let (y, saved) =
                    masked.forward_masked(&all, &x, Mask::<Host>::new(&places)).unwrap();
                let grad_x = masked.backward_masked(&saved, &x, &places, &grad_y).unwrap();
                let (right_y, right_saved) = plain.forward(&some, &part(&x, 1)).unwrap();
                let right = plain.backward(&right_saved, &part(&x, 1), &part(&grad_y, 1)).unwrap();
                let near = |what: &str, a: &[f64], b: &[f64]| {
                    assert_eq!(a.len(), b.len());
                    let all =
                        a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-11 * b.abs().max(1.0));
                    assert!(all, "{renorm}, {rows} x {channels}, step {seed}: {what}");
                };
                near("y", &part(&y, 1), &right_y);
                near("grad_x", &part(&grad_x, 1), &right);
                near("grad_x elsewhere", &part(&grad_x, 0), &vec![0.0; part(&x, 0).len()]);
                for row in (2..rows).step_by(3) {
                    let [a, b] = [row - 1, row].map(|r| &y[r * channels..(r + 1) * channels]);
                    near("y elsewhere", b, a);
                }
                let [a, b] = [&*masked, &*plain].map(|bn| bn.running().unwrap());
                near("mean", &a.mean, &b.mean);
                near("var", &a.var, &b.var);
                let (a, b) = (a.renorm.as_ref().unwrap(), b.renorm.as_ref().unwrap());
                near("moving_stddev", &a.moving_stddev, &b.moving_stddev);
                let pairs =
                    [(&a.renorm_mean, &b.renorm_mean), (&a.renorm_stddev, &b.renorm_stddev)];
                for (a, b) in pairs {
                    near("own pair", a.as_deref().unwrap_or(&[]), b.as_deref().unwrap_or(&[]));
                }
                let error = masked.backward(&saved, &x, &grad_y).unwrap_err();
                assert!(matches!(error, Error::Saved { what: "mask", .. }), "{error}");
            }
            let of = |bn: &BatchNorm<f64, G>| -> Vec<f64> {
                bn.named_parameters().flat_map(|(_, p)| p.grad().unwrap().to_vec()).collect()
            };
            let (a, b) = (of(&layers[0]), of(&layers[1]));
            assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 1e-11 * b.abs().max(1.0)));
        }
    }
}

fn nothing_that_counts_renormalizes_by_its_rule<G: Engine<Memory = Host>>(engine: &G) {
    let shape = Shape::new(&[4, 2], 1).unwrap();
    let (x, places) = ([1f64, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], [0; 4]);
    for all_masked in [AllMasked::Keep, AllMasked::Zero, AllMasked::Nan] {
        let config = Config::keras().renorm(Renorm::keras());
        let mut bn = BatchNorm::<f64, G>::new(engine, 2, config).unwrap();
        let mask = Mask::<Host>::new(&places).all_masked(all_masked);
        let (y, _) = bn.forward_masked(&shape, &x, mask).unwrap();
        let kept = bn.running().unwrap();
        let stddev = &kept.renorm.as_ref().unwrap().moving_stddev;
        let near = |a: &[f64], b: f64| a.iter().all(|a| (a - b).abs() < 1e-12);
        match all_masked {
            AllMasked::Nan => assert!(y.iter().chain(&kept.mean).all(|v| v.is_nan())),
            // Keras' weight of a batch, 0.01, and its eps, 1e-3.
            AllMasked::Zero => assert!(near(stddev, 0.99 + 0.01 * 1e-3f64.sqrt())),
            _ => assert!(near(&kept.mean, 0.0) && near(stddev, 1.0) && near(&kept.var, 1.0)),
        }
        let mask = Mask::<Host>::new(&places[..2]).without_last(4);
        let shape = Shape::new(&[1, 2, 4], 1).unwrap();
        let error = bn.forward_masked(&shape, &x, mask).unwrap_err().to_string();
        assert!(
            error.starts_with("mask: with renormalization: expected one of positions"),
            "{error}"
        );
    }
}

/// The statistics move between two passes over x, so all is looked at before the first.
fn what_is_refused_changes_nothing<G: Engine<Memory = Host>>(engine: &G) {
    let config = Config::keras().renorm(Renorm::keras());
    let mut bn = BatchNorm::<f64, G>::new(engine, 2, config).unwrap();
    let (shape, x) = (Shape::new(&[2, 2], 1).unwrap(), [1.0, 2.0, 3.0, 4.0]);
    let (ones, two) = ([1u8; 2], [1u8, 2]);
    for (x, residual, places, len, expected) in [
        (&x[..], None, &ones, 3, "y: expected 4 elements, got 3"),
        (&x[..3], None, &ones, 4, "x: expected 4 elements, got 3"),
        (&x, Some(&x[..3]), &ones, 4, "residual: expected 4 elements, got 3"),
        (&x, None, &two, 4, "mask: expected 0 or 1 at every place, got 2 at place 1"),
    ] {
        let (mut y, mut saved) = (vec![7.0; len], Saved::new());
        let mask = Mask::<Host>::new(places);
        let error = bn.forward_masked_into(&shape, x, residual, mask, &mut y, &mut saved);
        assert_eq!(error.unwrap_err().to_string(), expected);
        let kept = bn.running().unwrap();
        let of_renorm = kept.renorm.as_ref().unwrap();
        assert_eq!((&kept.mean[..], &kept.var[..]), (&[0.0; 2][..], &[1.0; 2][..]), "{expected}");
        assert_eq!((&of_renorm.moving_stddev[..], kept.num_batches_tracked), (&[1.0; 2][..], 0));
        assert_eq!((y, saved.shape()), (vec![7.0; len], None), "{expected}");
    }
}
