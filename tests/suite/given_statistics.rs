//! A backward by statistics that somebody else kept, beside that by what the forward saved.
use crate::support::engines::engines;
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want};
use batchnorm::{Activation, Element, Engine, Error, GivenStatistics, Memory, Saved, Shape};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cuda_split, cudnn, gpu] [
    gradients_are_those_of_a_forward,
    what_is_wrong_is_refused,
] }

fn gradients_are_those_of_a_forward<G: Engine>(on: &G) {
    let mut served = 0;
    for (dims, axis) in [(&[6, 5, 7][..], 1), (&[33, 3], 1), (&[3, 4, 2, 66], 3), (&[2, 1, 5], 1)] {
        let shape = Shape::new(dims, axis).unwrap();
        for epilogue in Epilogue::all().chain(Epilogue::others()) {
            for mode in [Mode::Train(Some(0.1)), Mode::Eval] {
                served += u32::from(agrees::<f32, G>(on, &shape, epilogue, mode, 1e-5));
                served += u32::from(agrees::<f64, G>(on, &shape, epilogue, mode, 1e-13));
                served += u32::from(agrees::<f16, G>(on, &shape, epilogue, mode, 2e-3));
                served += u32::from(agrees::<bf16, G>(on, &shape, epilogue, mode, 1e-2));
            }
        }
    }
    assert!(served >= 16 || takes_cudnn(on), "{served}");
}

fn takes_cudnn<G: Engine>(on: &G) -> bool {
    ["cudnn", "gpu"].contains(&on.name())
}

/// Whether the engine serves it; then the gradients agree, and bit for bit where no mean was rounded.
fn agrees<E: Element, G: Engine>(
    on: &G,
    shape: &Shape,
    epilogue: Epilogue,
    mode: Mode,
    bar: f64,
) -> bool {
    let inputs = Inputs::<E>::new(shape, epilogue, 7);
    let mut saved = SavedOn::<G, E>::new();
    if run::forward(on, &inputs, mode, Some(&mut saved)).is_err() {
        return false;
    }
    let (weight, bias) = (on.memory().upload(&inputs.weight), on.memory().upload(&inputs.bias));
    let (weight, bias) = (weight.unwrap(), bias.unwrap());
    let (mean, invstd) = (saved.mean().unwrap(), saved.invstd().unwrap());
    let mut given = GivenStatistics::<G::Memory, E::Acc>::new(mean, invstd);
    given.weight = epilogue.weight.then(|| G::Memory::view(&weight));
    given.bias = epilogue.bias.then(|| G::Memory::view(&bias));
    let given = given.activation(epilogue.activation).residual(epilogue.residual);
    let mut filled = Saved::new();
    match filled.fill_from::<E, G>(on, shape, given.frozen(mode == Mode::Eval)) {
        Ok(()) => {}
        Err(Error::Unsupported { engine, reason }) => {
            // One bit for each value is what they cannot say, nor what cuDNN keeps for itself.
            let needs = epilogue.activation != Activation::Identity || takes_cudnn(on);
            assert!(needs && engine == on.name(), "{engine}: {reason}");
            assert!(reason.contains(epilogue.activation.name()), "{reason}");
            return false;
        }
        Err(error) => panic!("{error}"),
    }
    let want = Want::all(epilogue);
    let of = |saved| run::backward(on, &inputs, want, saved, None);
    // Who refuses the one refuses the other.
    let (Ok(wanted), Ok(got)) = (of(&saved), of(&filled)) else { return false };
    for (name, wanted) in wanted {
        let largest = wanted.iter().fold(1e-3f64, |max, v| max.max(v.abs()));
        for (k, (got, wanted)) in got[name].iter().zip(&wanted).enumerate() {
            let near = (got - wanted).abs() <= bar * largest * 8.0;
            let same = mode != Mode::Eval || got == wanted;
            assert!(near && same, "{name} {k} of {epilogue:?} {mode:?}: {got} beside {wanted}");
        }
    }
    true
}

fn what_is_wrong_is_refused<G: Engine>(on: &G) {
    let shape = Shape::new(&[4, 3], 1).unwrap();
    let of = |n: usize| on.memory().upload(&vec![1f32; n]).unwrap();
    let (right, wrong) = (of(3), of(4));
    let (right, wrong) = (|| G::Memory::view(&right), || G::Memory::view(&wrong));
    let mut saved = Saved::<G::Memory, f32>::new();
    let mut refuses = |what: &str, given: GivenStatistics<'_, G::Memory, f32>| {
        let error = saved.fill_from::<f32, G>(on, &shape, given).unwrap_err();
        let Error::Length { what: said, expected: 3, got: 4 } = error else { panic!("{error}") };
        assert_eq!(said, what);
        assert!(saved.shape().is_none());
    };
    refuses("mean", GivenStatistics::new(wrong(), right()));
    refuses("invstd", GivenStatistics::new(right(), wrong()));
    refuses("weight", GivenStatistics::new(right(), right()).weight(wrong()));
    refuses("bias", GivenStatistics::new(right(), right()).bias(wrong()));
    let slope = Activation::LeakyRelu { negative_slope: f64::NAN };
    let given = GivenStatistics::new(right(), right()).activation(slope);
    let error = saved.fill_from::<f32, G>(on, &shape, given).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. } | Error::Unsupported { .. }), "{error}");
}
