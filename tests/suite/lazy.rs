//! Layers that learn their number of channels from a first input or a state dict.
use crate::support::engines::engines;
use crate::support::layer::*;
use batchnorm::*;

engines! { [reference, cpu, cuda, gpu] [
    the_first_input_says_how_many_channels,
    a_refused_first_input_says_nothing,
    nothing_is_there_before_the_first_input,
] }
#[cfg(feature = "safetensors")]
engines! { [reference_on_host, cpu_on_host] [
    a_state_dict_says_how_many_channels,
    state_dicts_that_do_not_say_are_refused,
] }

fn lazy<G: Engine>(engine: &G) -> LazyBatchNorm<f32, G> {
    LazyBatchNorm::new(engine, Config::keras()).unwrap()
}
fn lazy_forward<G: Engine>(
    lazy: &mut LazyBatchNorm<f32, G>,
    engine: &G,
    shape: &Shape,
    x: &[f32],
) -> Result<Vec<f32>> {
    let (y, _) = lazy.forward(shape, view::<G, f32>(&up(engine, x)))?;
    Ok(down(engine, &y))
}

fn the_first_input_says_how_many_channels<G: Engine>(engine: &G) {
    let (mut lazy, x) = (lazy(engine), numbers::<f32>(small().len(), 1));
    let y = lazy_forward(&mut lazy, engine, &small(), &x).unwrap();
    let mut plain = BatchNorm::<f32, G>::new(engine, 3, Config::keras()).unwrap();
    assert_eq!(y, forward(&mut plain, &small(), &x).unwrap().0);
    assert_eq!(snapshot(lazy.get().unwrap()), snapshot(&plain));
    assert_eq!(lazy.to_string(), plain.to_string());
    // From now on that is their number.
    let other = Shape::new(&[4, 5], 1).unwrap();
    let error = lazy_forward(&mut lazy, engine, &other, &[0.0; 20]).unwrap_err();
    assert_eq!(error, Error::Length { what: "channels", expected: 3, got: 5 });
    assert_eq!(lazy.into_inner().unwrap().channels(), 3);
}

fn a_refused_first_input_says_nothing<G: Engine>(engine: &G) {
    let mut lazy = lazy(engine);
    let error = lazy_forward(&mut lazy, engine, &small(), &[0.0; 5]).unwrap_err();
    assert_eq!(error, Error::Length { what: "x", expected: small().len(), got: 5 });
    assert!(!lazy.is_initialized());
    let other = Shape::new(&[4, 5], 1).unwrap();
    lazy_forward(&mut lazy, engine, &other, &[0.0; 20]).unwrap();
    assert_eq!(lazy.get().unwrap().channels(), 5);
}

fn nothing_is_there_before_the_first_input<G: Engine>(engine: &G) {
    let mut lazy = lazy(engine);
    assert_eq!(lazy.get().err().unwrap(), Error::Uninitialized);
    assert_eq!(lazy.get_mut().err().unwrap(), Error::Uninitialized);
    #[cfg(feature = "safetensors")]
    assert_eq!(lazy.state_dict("").unwrap_err(), Error::Uninitialized);
    let shown = "LazyBatchNorm(?, eps=0.001, momentum=0.010000000000000009, affine=True, \
                 track_running_stats=True, variance=biased, one_value=zero_variance, empty_batch=nan)";
    assert_eq!(lazy.to_string(), shown);
    // The mode comes before the channels, and goes with them.
    lazy.eval();
    assert!(!lazy.is_training());
    let (x, y) = ([1.5f32, -2.0, 0.5], [1.5f32, -2.0, 0.5].map(f64::from));
    let y = y.map(|x| x / (1f64 + 1e-3).sqrt());
    let got = lazy_forward(&mut lazy, engine, &Shape::new(&[3], 0).unwrap(), &x).unwrap();
    assert_near(&got, &y, crate::support::tolerance::Kind::Element);
    lazy.train(true);
    assert!(lazy.is_training() && lazy.get().unwrap().is_training());
    assert_eq!(lazy.into_inner().unwrap().running().unwrap().num_batches_tracked, 0);

    let error = LazyBatchNorm::<f32, G>::new(engine, Config::default().eps(0.0)).unwrap_err();
    assert_eq!(error.to_string(), "eps: expected a finite number above 0, got 0");
    let mut lazy = LazyBatchNorm::<f32, G>::new(engine, Config::default()).unwrap();
    let error = lazy.initialize(0).err().unwrap();
    assert_eq!(error.to_string(), "channels: expected at least 1, got 0");
    assert!(!lazy.is_initialized());
}

#[cfg(feature = "safetensors")]
fn a_state_dict_says_how_many_channels<G: Engine<Memory = Host>>(engine: &G) {
    let mut first: BatchNorm<f32, G> = layer(engine, Config::keras());
    forward(&mut first, &small(), &numbers::<f32>(small().len(), 1)).unwrap();
    let dict = first.state_dict("net.bn.").unwrap();
    let mut lazy = lazy(engine);
    assert!(lazy.load_state_dict(&dict, "net.bn.", Strict::Yes).unwrap().is_empty());
    assert_eq!(snapshot(lazy.get().unwrap()).values, snapshot(&first).values);
    assert_eq!(snapshot(lazy.get().unwrap()).running, snapshot(&first).running);
    assert_eq!(lazy.state_dict("net.bn.").unwrap(), dict);
    // Again, into the layer that is there.
    assert!(lazy.load_state_dict(&dict, "net.bn.", Strict::Yes).unwrap().is_empty());
}

#[cfg(feature = "safetensors")]
fn state_dicts_that_do_not_say_are_refused<G: Engine<Memory = Host>>(engine: &G) {
    let refused = |dict: &StateDict, message: &str| {
        let mut lazy = lazy(engine);
        let error = lazy.load_state_dict(dict, "bn.", Strict::Yes).unwrap_err();
        assert_eq!(error.to_string(), format!("state dict: {message}"));
        assert!(!lazy.is_initialized());
    };
    refused(&StateDict::new(), "missing bn.weight, bn.bias, bn.running_mean, bn.running_var");
    let mut dict = StateDict::new();
    dict.insert("bn.weight", &[2, 2], &[0f32; 4]).unwrap();
    dict.insert("bn.gamma", &[1], &[0f32]).unwrap();
    refused(
        &dict,
        "missing bn.bias, bn.running_mean, bn.running_var; unexpected bn.gamma; bn.weight: expected a \
         vector of at least 1, got f32 [2, 2]",
    );
    // The first vector says it: another length is what does not fit.
    let plain = BatchNorm::<f32, G>::new(engine, 3, Config::default()).unwrap();
    let mut dict = plain.state_dict("bn.").unwrap();
    dict.insert("bn.bias", &[4], &[0f32; 4]).unwrap();
    refused(&dict, "bn.bias: expected f32, f16 or bf16 [3], got f32 [4]");
    // Leniently what fits is taken, and what does not say is no error.
    let mut lazy = lazy(engine);
    let report = lazy.load_state_dict(&StateDict::new(), "bn.", Strict::No).unwrap();
    assert_eq!((report.missing.len(), lazy.is_initialized()), (4, false));
    let report = lazy.load_state_dict(&dict, "bn.", Strict::No).unwrap();
    assert_eq!(report.mismatched.len(), 1);
    assert_eq!(lazy.get().unwrap().channels(), 3);
    // A layer without any state takes no number from anything.
    let bare = Config::default().weight(false).bias(false).track_running_stats(false);
    let mut bare = LazyBatchNorm::<f32, G>::new(engine, bare).unwrap();
    assert!(bare.load_state_dict(&StateDict::new(), "bn.", Strict::Yes).unwrap().is_empty());
    assert!(bare.load_state_dict(&dict, "bn.", Strict::Yes).is_err());
    assert!(!bare.is_initialized());
}
