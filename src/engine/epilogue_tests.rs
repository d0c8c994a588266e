use super::*;
use approx::{abs_diff_eq, assert_relative_eq};
use half::{bf16, f16};

#[test]
fn derivatives_are_those_of_the_values() {
    for activation in Activation::ALL {
        // Between the kinks at -3, 0, 3 and 6.
        for z in (-80..=80).map(|k| 0.1 * f64::from(k) + 0.017) {
            let h = 1e-5;
            let slope = (activation.value(z + h) - activation.value(z - h)) / (2.0 * h);
            let derivative = activation.derivative::<f64>(z);
            assert!(
                abs_diff_eq!(slope, derivative, epsilon = 1e-8),
                "{activation} at {z}: {derivative}"
            );
        }
    }
}

#[test]
fn second_derivatives_are_those_of_the_derivatives() {
    for activation in Activation::ALL {
        for z in (-80..=80).map(|k| 0.1 * f64::from(k) + 0.017) {
            let h = 1e-5;
            let [above, below] = [z + h, z - h].map(|z| activation.derivative::<f64>(z));
            let (slope, second) =
                ((above - below) / (2.0 * h), activation.second_derivative::<f64>(z));
            assert!(abs_diff_eq!(slope, second, epsilon = 1e-8), "{activation} at {z}: {second}");
            assert!(activation.is_curved() || second == 0.0, "{activation}");
        }
    }
    // Far out nothing is left of it, and NaN stays.
    for activation in [Activation::Silu, Activation::Gelu, Activation::HardSwish] {
        assert_eq!([-1e200, 1e200].map(|z| activation.second_derivative::<f64>(z)), [0.0; 2]);
    }
    assert!(Activation::Silu.second_derivative::<f64>(f64::NAN).is_nan());
    assert_eq!(Activation::HardSwish.second_derivative::<bf16>(2.999), 0.0);
}

#[test]
fn kinks_are_decided_as_pytorch_decides_them() {
    let leaky = Activation::LeakyRelu { negative_slope: 0.25 };
    // torch.autograd.grad of each at these points, PyTorch 2.11.
    for (activation, z, derivative) in [
        (Activation::Relu, 0.0, 0.0),
        (leaky, 0.0, 0.25),
        (leaky, f64::NAN, 0.25),
        (Activation::Relu, f64::NAN, 1.0),
        (Activation::Relu6, 0.0, 0.0),
        (Activation::Relu6, 6.0, 0.0),
        (Activation::Relu6, f64::NAN, 1.0),
        (Activation::HardSwish, -3.0, 0.0),
        (Activation::HardSwish, 3.0, 1.0),
    ] {
        assert_eq!(activation.derivative::<f64>(z), derivative, "{activation} at {z}");
    }
    // What rounds to a kink stands on it.
    assert_eq!(Activation::Relu6.derivative::<f16>(5.9999), 0.0);
    assert_eq!(Activation::Relu6.derivative::<f32>(5.9999), 1.0);
    assert_eq!(Activation::HardSwish.derivative::<bf16>(-2.999), 0.0);
    assert_eq!(leaky.derivative::<f16>(1e-9), 0.25);
}

#[test]
fn slopes_that_are_equal_are_one_activation() {
    let leaky = |negative_slope| Activation::LeakyRelu { negative_slope };
    assert_eq!(leaky(0.0), leaky(-0.0));
    assert_ne!(leaky(0.1), leaky(0.2));
    assert_ne!(leaky(0.0), Activation::Relu);
    assert!(leaky(f64::NAN).check().is_err() && leaky(-0.5).check().is_ok());
}

#[test]
fn tails_keep_their_digits() {
    // mpmath, 30 digits.
    let tail = Activation::Gelu.value(-10.0);
    assert_relative_eq!(tail, -7.619_853_024_160_526e-23, epsilon = 0.0, max_relative = 1e-13);
    let tail = Activation::Silu.value(-700.0);
    let right = -700.0 * (-700f64).exp();
    assert_relative_eq!(tail, right, epsilon = 0.0, max_relative = 1e-13);
}
