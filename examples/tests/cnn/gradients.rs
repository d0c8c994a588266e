//! The network's arithmetic against definitions: the convolution against its sum, gradients against
//! differences of the loss.
use approx::abs_diff_eq;
use batchnorm::{Cpu, StateDict};

use super::example::backend::{Backend, HostBackend, Operand};
use super::example::data::Data;
use super::example::gather;
use super::example::network::Network;
use super::example::random::Random;
use super::example::spatial::{HostSpatial, Images, Layout, Spatial};
use super::{BATCH, LAYOUTS};

/// Element (n, c, y, x) of images, 0 around them.
fn at(of: Images, values: &[f32], [n, c]: [usize; 2], [y, x]: [isize; 2]) -> f64 {
    let (h, w, channels) = (of.height, of.width, of.channels);
    if !(0..h as isize).contains(&y) || !(0..w as isize).contains(&x) {
        return 0.0;
    }
    let (y, x) = (y as usize, x as usize);
    f64::from(match of.layout {
        Layout::Nchw => values[((n * channels + c) * h + y) * w + x],
        Layout::Nhwc => values[((n * h + y) * w + x) * channels + c],
    })
}

#[test]
fn windows_times_weights_are_a_convolution() {
    const OUTPUTS: usize = 2;
    for layout in LAYOUTS {
        let of = Images { count: 2, channels: 3, height: 4, width: 5, layout };
        let mut random = Random::new(1, 0);
        let (x, weight) = (random.normals(of.len(), 1.0), random.normals(OUTPUTS * 27, 1.0));
        let mut columns = vec![0.0; of.windows().len()];
        HostSpatial.im2col(of, &x, &mut columns).unwrap();
        let mut y = vec![0.0; of.of(OUTPUTS).len()];
        let (columns, pixels) = (Operand::Plain(&columns[..]), of.pixels());
        match layout {
            Layout::Nchw => {
                let weight = Operand::Plain(&weight[..]);
                HostBackend.matmul([OUTPUTS, 27, pixels], weight, columns, &mut y)
            }
            Layout::Nhwc => {
                let weight = Operand::Transposed(&weight[..]);
                HostBackend.matmul([of.count * pixels, 27, OUTPUTS], columns, weight, &mut y)
            }
        }
        .unwrap();
        for (n, o, i) in
            (0..2).flat_map(|n| (0..OUTPUTS).flat_map(move |o| (0..20).map(move |i| (n, o, i))))
        {
            let (py, px) = ((i / 5) as isize, (i % 5) as isize);
            let taps = (0..27).map(|k| {
                let (c, dy, dx) = (k / 9, (k / 3 % 3) as isize - 1, (k % 3) as isize - 1);
                f64::from(weight[o * 27 + k]) * at(of, &x, [n, c], [py + dy, px + dx])
            });
            let (expected, got) = (taps.sum::<f64>(), at(of.of(OUTPUTS), &y, [n, o], [py, px]));
            assert!(
                abs_diff_eq!(got, expected, epsilon = 1e-5),
                "{layout:?} {n} {o} {i}: {got} for {expected}"
            );
        }
    }
}

#[test]
fn squares_have_their_mean() {
    for layout in LAYOUTS {
        let of = Images { count: 2, channels: 3, height: 4, width: 6, layout };
        let x = Random::new(2, 0).normals(of.len(), 1.0);
        let mut y = vec![0.0; of.pooled(2).len()];
        HostSpatial.mean_pool(of, 2, &x, &mut y).unwrap();
        for (n, c, py, px) in [(0, 0, 0, 0), (1, 2, 1, 2), (0, 1, 1, 0), (1, 0, 0, 1)] {
            let four = [(0, 0), (0, 1), (1, 0), (1, 1)];
            let four = four.map(|(dy, dx)| at(of, &x, [n, c], [2 * py + dy, 2 * px + dx]));
            let got = at(of.pooled(2), &y, [n, c], [py, px]);
            let mean = four.iter().sum::<f64>() / 4.0;
            assert!(abs_diff_eq!(got, mean, epsilon = 1e-6), "{layout:?}");
        }
        let error = HostSpatial.mean_pool(of, 4, &x, &mut y).unwrap_err().to_string();
        assert_eq!(error, "mean_pool: expected squares that fill 4 x 6, got size 4");
    }
}

/// Moving one tensor along its gradient g by h changes the loss by h |g|^2.
#[test]
fn gradients_are_those_of_finite_differences() {
    let data = Data::digits().unwrap();
    let (x, labels) = gather(&data.train, &(0..BATCH).collect::<Vec<_>>());
    for layout in LAYOUTS {
        let beside = (&HostBackend, &HostSpatial);
        let mut random = Random::new(4, 0);
        let mut network =
            Network::new(&Cpu::default(), beside, layout, [BATCH, BATCH], &mut random).unwrap();
        // Away from where weights of normalizations are all 1 and biases all 0.
        for _ in 0..5 {
            network.step(&x, &labels, 0.1).unwrap();
        }
        let before = network.state_dict().unwrap();
        network.step(&x, &labels, 1.0).unwrap();
        let after = network.state_dict().unwrap();
        let of = |dict: &StateDict, name: &str| dict.get::<f64>(name).unwrap().unwrap().1;
        let names: Vec<&str> =
            before.names().filter(|n| n.ends_with("weight") || n.ends_with("bias")).collect();
        assert_eq!(names.len(), 3 * 3 + 2);
        for name in names {
            let (old, new) = (of(&before, name), of(&after, name));
            let grad: Vec<f64> = old.iter().zip(&new).map(|(old, new)| old - new).collect();
            let square: f64 = grad.iter().map(|g| g * g).sum();
            assert!(square > 1e-5, "{layout:?} {name}: {square} is too small to tell");
            let h = 2e-3 / square.sqrt();
            let mut loss = |h: f64| {
                let mut dict = before.clone();
                let (shape, _) = before.get::<f64>(name).unwrap().unwrap();
                let moved = old.iter().zip(&grad).map(|(old, g)| (old + h * g) as f32);
                dict.insert(name, shape, &moved.collect::<Vec<_>>()).unwrap();
                network.load_state_dict(&dict).unwrap();
                network.step(&x, &labels, 1e-30).unwrap();
                network.trained().unwrap().loss
            };
            let got = (loss(h) - loss(-h)) / (2.0 * h);
            let wrong = (got / square - 1.0).abs();
            assert!(wrong < 0.03, "{layout:?} {name}: {got} for {square}");
        }
    }
}
