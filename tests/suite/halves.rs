//! Parameters, statistics and gradients as the two halves of one buffer, as a framework hands over a tensor of shape
//! [2, C].
use crate::support::engines::engines;
use crate::support::oracle::served;
use crate::support::run::{self, Epilogue, Inputs, Mode, SavedOn, Want, widen};
use batchnorm::{
    Activation, Backward, Element, Engine, ForwardEval, ForwardTrain, Memory, Real, Saved, Shape,
};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cuda_split, cudnn, gpu] [halves_are_what_two_buffers_are] }

/// Channels of which the second half starts at an odd element, and others.
fn halves_are_what_two_buffers_are<G: Engine>(on: &G) {
    for (dims, axis) in
        [(&[6, 5, 7][..], 1), (&[33, 3], 1), (&[4, 8, 6, 6], 1), (&[3, 4, 2, 66], 3)]
    {
        let shape = Shape::new(dims, axis).unwrap();
        train::<f32, G>(on, &shape);
        train::<f64, G>(on, &shape);
        train::<f16, G>(on, &shape);
        train::<bf16, G>(on, &shape);
    }
}

/// One buffer of two arrays.
fn both<G: Engine, P: Real>(on: &G, [first, second]: [&[P]; 2]) -> run::Buf<G, P> {
    on.memory().upload(&[first, second].concat()).unwrap()
}

fn train<E: Element, G: Engine>(on: &G, shape: &Shape) -> Option<()> {
    let (inputs, c) = (Inputs::<E>::new(shape, Epilogue::PLAIN, 3), shape.channels());
    let mut apart = SavedOn::<G, E>::new();
    let mode = Mode::Train(Some(0.1));
    let forward = served(run::forward(on, &inputs, mode, Some(&mut apart)))?;
    let want = Want { sums: false, ..Want::all(inputs.epilogue) };
    let backward = served(run::backward(on, &inputs, want, &apart, None))?;

    let memory = on.memory();
    let (x, grad_y) = (memory.upload(&inputs.x).unwrap(), memory.upload(&inputs.grad_y).unwrap());
    let [mut y, mut grad_x] = [(); 2].map(|()| memory.zeros(shape.len()).unwrap());
    let parameters = both(on, [&inputs.weight, &inputs.bias]);
    let mut running = both(on, [&inputs.mean, &inputs.var]);
    let mut gradients = memory.zeros::<E::Acc>(2 * c).unwrap();

    let parameters = G::Memory::view(&parameters);
    let weight = G::Memory::slice(&parameters, 0..c).unwrap();
    let bias = G::Memory::slice(&parameters, c..2 * c).unwrap();
    let mut saved = Saved::new();
    {
        let mut running = G::Memory::view_mut(&mut running);
        let (mean, var) = G::Memory::split_at_mut(&mut running, c).unwrap();
        let (x, y) = (G::Memory::view(&x), G::Memory::view_mut(&mut y));
        let args = ForwardTrain::<G::Memory, E>::new(x, y)
            .weight(G::Memory::reborrow(&weight))
            .bias(G::Memory::reborrow(&bias))
            .activation(Activation::Identity)
            .eps(inputs.eps)
            .running(mean, var, 0.1)
            .saved(&mut saved);
        on.forward_train(shape, args).unwrap();
    }
    {
        let mut gradients = G::Memory::view_mut(&mut gradients);
        let (grad_weight, grad_bias) = G::Memory::split_at_mut(&mut gradients, c).unwrap();
        let (x, grad_y) = (G::Memory::view(&x), G::Memory::view(&grad_y));
        let args = Backward::<G::Memory, E>::new(&saved, x, grad_y)
            .grad_x(G::Memory::view_mut(&mut grad_x))
            .grad_weight(grad_weight)
            .grad_bias(grad_bias);
        on.backward(shape, args).unwrap();
    }
    let tensor = |buf: &run::Buf<G, E>| widen(&memory.download::<E>(G::Memory::view(buf)).unwrap());
    let halves = |buf: &run::Buf<G, E::Acc>| {
        let values = widen(&memory.download::<E::Acc>(G::Memory::view(buf)).unwrap());
        (values[..c].to_vec(), values[c..].to_vec())
    };
    let (mean, var) = halves(&running);
    let (grad_weight, grad_bias) = halves(&gradients);
    for (name, got, wanted) in [
        ("y", tensor(&y), &forward),
        ("running_mean", mean, &forward),
        ("running_var", var, &forward),
        ("grad_x", tensor(&grad_x), &backward),
        ("grad_weight", grad_weight, &backward),
        ("grad_bias", grad_bias, &backward),
    ] {
        assert_eq!(got, wanted[name], "{}, {}, {shape}: {name}", on.name(), E::DTYPE);
    }

    // And in evaluation, by the statistics as they were.
    let given = both(on, [&inputs.mean, &inputs.var]);
    let wanted = served(run::forward(on, &inputs, Mode::Eval, None))?;
    let given = G::Memory::view(&given);
    let args = ForwardEval::<G::Memory, E>::new(
        G::Memory::view(&x),
        G::Memory::view_mut(&mut y),
        G::Memory::slice(&given, 0..c).unwrap(),
        G::Memory::slice(&given, c..2 * c).unwrap(),
    );
    let args = args.weight(G::Memory::reborrow(&weight)).bias(G::Memory::reborrow(&bias));
    on.forward_eval(shape, args.eps(inputs.eps)).unwrap();
    assert_eq!(tensor(&y), wanted["y"], "{}, {}, {shape}: y_eval", on.name(), E::DTYPE);
    Some(())
}
