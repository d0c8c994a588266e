//! Layers and their state dicts: what torch wrote, what comes back, what does not fit.
use crate::support::engines::engines;
use crate::support::layer::*;
use crate::support::state::*;
use crate::support::tolerance::Kind;
use batchnorm::*;
use half::{bf16, f16};

engines! { [reference, cpu, cuda, gpu] [
    torch_files_give_what_torch_computes,
    layers_come_back_from_bytes_bit_for_bit,
    several_layers_share_a_file,
    a_missing_counter_keeps_the_layers_own,
    strict_loading_lists_everything_and_changes_nothing,
    lenient_loading_takes_what_fits_and_reports_the_rest,
    narrow_types_widen_and_others_are_refused,
    counters_are_integers_from_zero_on,
    many_layers_share_a_dict,
    untracked_and_bare_layers_have_fewer_names,
] }
engines! { [reference_on_host, cpu_on_host] [loading_writes_into_the_memory_that_is_there] }

fn lists<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(String::from).to_vec()
}

/// A layer for [`small`] in which nothing is a default.
fn trained<P: Real, G: Engine>(engine: &G) -> BatchNorm<P, G> {
    let mut bn = layer(engine, Config::default());
    forward(&mut bn, &small(), &numbers::<P>(small().len(), 1)).unwrap();
    bn
}
/// A layer of defaults, to load into.
fn fresh<P: Real, G: Engine>(engine: &G) -> BatchNorm<P, G> {
    BatchNorm::new(engine, 3, Config::default()).unwrap()
}

fn torch_files_give_what_torch_computes<G: Engine>(engine: &G) {
    /// Loads a file and evaluates its input in `E`.
    fn case<E: Element, G: Engine>(engine: &G, name: &str, prefix: &str, config: Config) {
        let mut bn = BatchNorm::<E::Acc, G>::new(engine, 5, config).unwrap();
        bn.load_state_dict(&dict(name), prefix, Strict::Yes).unwrap();
        let expected = dict("expected");
        let tensor = |what| expected.get::<f64>(&format!("{name}.{what}")).unwrap().unwrap();
        let (dims, x) = tensor("input");
        let x: Vec<E> = x.iter().map(|v| E::narrow(Real::from_f64(*v))).collect();
        let y = infer(&bn, &Shape::new(dims, 1).unwrap(), &x).unwrap();
        assert_near(&y, &tensor("output").1, Kind::Element);
        if let Some(running) = bn.running() {
            assert_eq!(running.num_batches_tracked, if name == "version1" { 0 } else { 2 });
        }
    }
    let config = Config::default();
    case::<f32, G>(engine, "float", "", config);
    case::<f16, G>(engine, "half", "", config);
    case::<bf16, G>(engine, "bfloat16", "", config);
    case::<f64, G>(engine, "double", "", config);
    case::<f32, G>(engine, "network", "layer1.0.bn1.", config);
    case::<f32, G>(engine, "version1", "", config);
    case::<f32, G>(engine, "bias_false", "", config.bias(false));
    let bare = config.weight(false).bias(false);
    case::<f32, G>(engine, "affine_false", "", bare);
    let untracked = config.track_running_stats(false);
    case::<f32, G>(engine, "track_running_stats_false", "", untracked);
}

fn layers_come_back_from_bytes_bit_for_bit<G: Engine>(engine: &G) {
    fn comes_back<P: Real, G: Engine>(engine: &G) {
        let bn = trained::<P, G>(engine);
        let bytes = bn.state_dict("a.").unwrap().to_bytes().unwrap();
        let read = StateDict::from_bytes(&bytes).unwrap();
        assert_eq!(read, bn.state_dict("a.").unwrap());
        assert_eq!(read.to_bytes().unwrap(), bytes);
        let mut loaded = fresh::<P, G>(engine);
        assert!(loaded.load_state_dict(&read, "a.", Strict::Yes).unwrap().is_empty());
        assert_eq!(snapshot(&loaded), snapshot(&bn));
    }
    comes_back::<f32, G>(engine);
    comes_back::<f64, G>(engine);

    // NaN, infinities and -0 are values like others.
    let mut bn = trained::<f32, G>(engine);
    let odd = [f32::NAN, f32::NEG_INFINITY, -0.0];
    bn.running_mut().unwrap().mean = up(engine, &odd);
    let mut loaded = fresh::<f32, G>(engine);
    loaded.load_state_dict(&bn.state_dict("").unwrap(), "", Strict::Yes).unwrap();
    let mean = down(engine, &loaded.running().unwrap().mean);
    assert_eq!(mean.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), odd.map(f32::to_bits));
}

fn several_layers_share_a_file<G: Engine>(engine: &G) {
    let (first, second) = (trained::<f32, G>(engine), layer::<f64, G>(engine, Config::default()));
    let mut dict = first.state_dict("bn1.").unwrap();
    dict.extend(second.state_dict("bn10.").unwrap());
    dict.insert("conv.weight", &[2, 1], &[0.5f32, 0.25]).unwrap();
    assert_eq!(dict.names().count(), 11);
    let read = StateDict::from_bytes(&dict.to_bytes().unwrap()).unwrap();

    let (mut into_first, mut into_second) = (fresh::<f32, G>(engine), fresh::<f64, G>(engine));
    into_first.load_state_dict(&read, "bn1.", Strict::Yes).unwrap();
    into_second.load_state_dict(&read, "bn10.", Strict::Yes).unwrap();
    assert_eq!(snapshot(&into_first), snapshot(&first));
    assert_eq!(snapshot(&into_second), snapshot(&second));
    let (shape, values) = read.get::<f64>("conv.weight").unwrap().unwrap();
    assert_eq!((shape, values), (&[2, 1][..], vec![0.5, 0.25]));
    assert!(read.get::<f32>("conv.bias").unwrap().is_none());
}

fn a_missing_counter_keeps_the_layers_own<G: Engine>(engine: &G) {
    let mut bn = BatchNorm::<f32, G>::new(engine, 5, Config::default()).unwrap();
    bn.running_mut().unwrap().num_batches_tracked = 7;
    for strict in [Strict::Yes, Strict::No] {
        let report = bn.load_state_dict(&dict("version1"), "", strict).unwrap();
        assert!(report.is_empty(), "{report}");
        assert_eq!(bn.running().unwrap().num_batches_tracked, 7);
    }
    assert_ne!(down(engine, &bn.running().unwrap().mean), [0.0; 5]);
}

/// With one of each fault, under `p.`; `running_mean` is right.
fn faulty() -> (StateDict, LoadReport) {
    let mut dict = StateDict::new();
    dict.insert("p.running_mean", &[3], &[1f32, 2.0, 3.0]).unwrap();
    dict.insert("p.running_var", &[4], &[1f32; 4]).unwrap();
    dict.insert("p.bias", &[3, 1], &[1f32; 3]).unwrap();
    dict.insert::<f32>("p.num_batches_tracked", &[], &[1.5]).unwrap();
    dict.insert("p.gamma", &[3], &[1f32; 3]).unwrap();
    dict.insert("p.deeper.weight", &[3], &[1f32; 3]).unwrap();
    dict.insert("weight", &[3], &[1f32; 3]).unwrap(); // not under the prefix
    let mismatch = |name: &str, expected: &str, got: &str| Mismatch {
        name: name.into(),
        expected: expected.into(),
        got: got.into(),
    };
    let floats = "f32, f16 or bf16 [3]";
    let report = LoadReport {
        missing: lists(["p.weight"]),
        unexpected: lists(["p.deeper.weight", "p.gamma"]),
        mismatched: vec![
            mismatch("p.bias", floats, "f32 [3, 1]"),
            mismatch("p.running_var", floats, "f32 [4]"),
            mismatch("p.num_batches_tracked", "one whole number from 0 to i64::MAX", "1.5"),
        ],
    };
    (dict, report)
}

fn strict_loading_lists_everything_and_changes_nothing<G: Engine>(engine: &G) {
    let (dict, report) = faulty();
    let mut bn = trained::<f32, G>(engine);
    let before = snapshot(&bn);
    let error = bn.load_state_dict(&dict, "p.", Strict::Yes).unwrap_err();
    assert_eq!(error, Error::Load(report));
    assert_eq!(
        error.to_string(),
        "state dict: missing p.weight; unexpected p.deeper.weight, p.gamma; \
         p.bias: expected f32, f16 or bf16 [3], got f32 [3, 1]; \
         p.running_var: expected f32, f16 or bf16 [3], got f32 [4]; \
         p.num_batches_tracked: expected one whole number from 0 to i64::MAX, got 1.5"
    );
    assert_eq!(snapshot(&bn), before);

    // Each kind of fault suffices.
    let good = bn.state_dict("p.").unwrap();
    let mut extra = good.clone();
    extra.extend(dict.clone());
    extra.extend(good.clone());
    let error = bn.load_state_dict(&extra, "p.", Strict::Yes).unwrap_err();
    let unexpected = lists(["p.deeper.weight", "p.gamma"]);
    assert_eq!(error, Error::Load(LoadReport { unexpected, ..LoadReport::default() }));
    let error = bn.load_state_dict(&good, "q.", Strict::Yes).unwrap_err();
    let missing = lists(["q.weight", "q.bias", "q.running_mean", "q.running_var"]);
    assert_eq!(error, Error::Load(LoadReport { missing, ..LoadReport::default() }));
    assert_eq!(snapshot(&bn), before);
}

fn lenient_loading_takes_what_fits_and_reports_the_rest<G: Engine>(engine: &G) {
    let (dict, expected) = faulty();
    let mut bn = trained::<f32, G>(engine);
    let mut after = snapshot(&bn);
    after.running.as_mut().unwrap().0 = vec![1.0, 2.0, 3.0];
    let report = bn.load_state_dict(&dict, "p.", Strict::No).unwrap();
    assert_eq!(report, expected);
    assert!(!report.is_empty());
    assert_eq!(snapshot(&bn), after);
}

fn narrow_types_widen_and_others_are_refused<G: Engine>(engine: &G) {
    /// What loading a weight of type `E` into a layer with `P` gives.
    fn load<E: Element, P: Real, G: Engine>(engine: &G) -> Result<Vec<P>> {
        let mut bn = trained::<P, G>(engine);
        let before = snapshot(&bn);
        let mut dict = bn.state_dict("").unwrap();
        let values = [0.1, 65504.0, 1e-7].map(|v| E::narrow(Real::from_f64(v)));
        dict.insert("weight", &[3], &values).unwrap();
        let loaded = bn.load_state_dict(&dict, "", Strict::Yes);
        let Err(error) = loaded else {
            let weight = down(engine, &bn.weight().unwrap().value);
            assert_eq!(wide(&weight), wide(&values));
            return Ok(weight);
        };
        assert_eq!(snapshot(&bn), before);
        Err(error)
    }
    load::<f16, f32, G>(engine).unwrap();
    load::<bf16, f32, G>(engine).unwrap();
    load::<f32, f32, G>(engine).unwrap();
    load::<f16, f64, G>(engine).unwrap();
    load::<bf16, f64, G>(engine).unwrap();
    load::<f32, f64, G>(engine).unwrap();
    load::<f64, f64, G>(engine).unwrap();
    let error = load::<f64, f32, G>(engine).unwrap_err().to_string();
    assert_eq!(error, "state dict: weight: expected f32, f16 or bf16 [3], got f64 [3]");

    // An integer under a name of floats.
    let bytes = [vec![0; 24], vec![1; 12]].concat();
    let header = [info("weight", "I64", "[3]", [0, 24]), info("bias", "I32", "[3]", [24, 36])];
    let dict = handmade(&header, &bytes);
    let report = fresh::<f64, G>(engine).load_state_dict(&dict, "", Strict::No).unwrap();
    let got: Vec<_> = report.mismatched.iter().map(|m| m.got.as_str()).collect();
    assert_eq!(got, ["i64 [3]", "i32 [3]"]);
    assert_eq!(report.mismatched[0].expected, "f64, f32, f16 or bf16 [3]");
    assert!(dict.get::<f64>("weight").is_err());
}

fn counters_are_integers_from_zero_on<G: Engine>(engine: &G) {
    let mut bn = trained::<f32, G>(engine);
    let mut load = |dtype: &str, shape: &str, data: &[u8]| {
        let mut dict = bn.state_dict("").unwrap();
        let counter = info("num_batches_tracked", dtype, shape, [0, data.len() as u64]);
        dict.extend(handmade(&[counter], data));
        let loaded = bn.load_state_dict(&dict, "", Strict::Yes);
        let count = bn.running().unwrap().num_batches_tracked;
        loaded.map(|_| count).map_err(|error| (error.to_string(), count))
    };
    assert_eq!(load("I64", "[]", &i64::MAX.to_le_bytes()), Ok(i64::MAX as u64));
    assert_eq!(load("I64", "[]", &5i64.to_le_bytes()), Ok(5));
    assert_eq!(load("I64", "[1]", &6i64.to_le_bytes()), Ok(6));
    let refusal = |got: &str| {
        let expected = "one whole number from 0 to i64::MAX";
        Err((format!("state dict: num_batches_tracked: expected {expected}, got {got}"), 6))
    };
    // As of a dict whose tensors were all converted: PyTorch copies them, whatever their type.
    assert_eq!(load("I8", "[]", &[7]), Ok(7));
    assert_eq!(load("U8", "[]", &[200]), Ok(200));
    assert_eq!(load("I16", "[]", &300i16.to_le_bytes()), Ok(300));
    assert_eq!(load("U16", "[]", &65_535u16.to_le_bytes()), Ok(65_535));
    assert_eq!(load("I32", "[]", &70_000i32.to_le_bytes()), Ok(70_000));
    assert_eq!(load("U32", "[1]", &u32::MAX.to_le_bytes()), Ok(u32::MAX.into()));
    assert_eq!(load("U64", "[]", &12u64.to_le_bytes()), Ok(12));
    assert_eq!(load("F16", "[]", &f16::from_f32(2048.0).to_le_bytes()), Ok(2048));
    assert_eq!(load("BF16", "[]", &bf16::from_f32(256.0).to_le_bytes()), Ok(256));
    assert_eq!(load("F32", "[]", &16_777_216f32.to_le_bytes()), Ok(16_777_216));
    assert_eq!(load("BOOL", "[]", &[1]), Ok(1));
    assert_eq!(load("BOOL", "[1]", &[0]), Ok(0));
    assert_eq!(load("F64", "[]", &6f64.to_le_bytes()), Ok(6));
    assert_eq!(load("I8", "[]", &[255]), refusal("-1"));
    assert_eq!(load("F32", "[]", &0.5f32.to_le_bytes()), refusal("0.5"));
    assert_eq!(load("F16", "[]", &f16::NAN.to_le_bytes()), refusal("NaN"));
    assert_eq!(load("F64", "[]", &2f64.powi(63).to_le_bytes()), refusal("9223372036854776000"));
    assert_eq!(load("U64", "[]", &(1u64 << 63).to_le_bytes()), refusal("9223372036854775808"));
    assert_eq!(load("I64", "[]", &(-1i64).to_le_bytes()), refusal("-1"));
    assert_eq!(load("I64", "[2]", &[0; 16]), refusal("i64 [2]"));
    assert_eq!(load("I64", "[0]", &[]), refusal("i64 [0]"));
    assert_eq!(load("BOOL", "[]", &[2]), refusal("bool []"));
    assert_eq!(load("F32", "[]", &f32::INFINITY.to_le_bytes()), refusal("inf"));
    assert_eq!(load("BF16", "[]", &bf16::from_f32(-2.0).to_le_bytes()), refusal("-2"));

    // The most that a dict holds is saved again, and stays the most.
    let running = bn.running_mut().unwrap();
    running.num_batches_tracked = i64::MAX as u64;
    running.count();
    assert_eq!(running.num_batches_tracked, i64::MAX as u64);
    assert!(bn.state_dict("").is_ok());
    bn.running_mut().unwrap().num_batches_tracked = u64::MAX;
    assert!(matches!(bn.state_dict(""), Err(Error::State(_))));
}

/// A layer looks at its own names, not at all of them: among many layers it loads about as fast as
/// among two. The shortest of several rounds counts, so that other work on the machine does not.
fn many_layers_share_a_dict<G: Engine>(engine: &G) {
    const LAYERS: usize = 10_000;
    let layers = |from: usize| {
        let mut dict = StateDict::new();
        for layer in from..LAYERS {
            for name in ["weight", "bias", "running_mean", "running_var"] {
                dict.insert(format!("{layer}.{name}"), &[1], &[layer as f32]).unwrap();
            }
        }
        dict
    };
    let (many, two) = (layers(0), layers(LAYERS - 2));
    let mut bn = BatchNorm::<f32, G>::new(engine, 1, Config::default()).unwrap();
    let mut time = |dict: &StateDict, layers: [usize; 2]| {
        let start = std::time::Instant::now();
        for layer in layers.into_iter().cycle().take(50) {
            bn.load_state_dict(dict, &format!("{layer}."), Strict::Yes).unwrap();
            assert_eq!(down(engine, &bn.weight().unwrap().value), [layer as f32]);
        }
        start.elapsed()
    };
    let last = [LAYERS - 2, LAYERS - 1];
    // By turns, as what else the machine does comes and goes.
    let turns = [(); 20].map(|()| (time(&two, last), time(&many, last)));
    let alone = turns.iter().map(|turn| turn.0).min().unwrap();
    let among = turns.iter().map(|turn| turn.1).min().unwrap();
    assert!(among < 5 * alone, "{}: {among:?} among many, {alone:?} among two", engine.name());
    for layer in 0..LAYERS {
        bn.load_state_dict(&many, &format!("{layer}."), Strict::Yes).unwrap();
    }
    assert_eq!(down(engine, &bn.weight().unwrap().value), [(LAYERS - 1) as f32]);
}

fn untracked_and_bare_layers_have_fewer_names<G: Engine>(engine: &G) {
    let names = |config| {
        let bn = BatchNorm::<f32, G>::new(engine, 3, config).unwrap();
        bn.state_dict("p.").unwrap().names().map(String::from).collect::<Vec<_>>()
    };
    let config = Config::default();
    let [weight, bias] = ["p.weight", "p.bias"];
    let [mean, var, count] = ["p.running_mean", "p.running_var", "p.num_batches_tracked"];
    assert_eq!(names(config), [bias, count, mean, var, weight]);
    assert_eq!(names(config.bias(false)), [count, mean, var, weight]);
    assert_eq!(names(config.track_running_stats(false)), [bias, weight]);

    // What a layer has not, it does not expect.
    let full = trained::<f32, G>(engine).state_dict("p.").unwrap();
    let bare = config.weight(false).track_running_stats(false);
    let mut bn = BatchNorm::<f32, G>::new(engine, 3, bare).unwrap();
    let report = bn.load_state_dict(&full, "p.", Strict::No).unwrap();
    let unexpected = lists([count, mean, var, weight]);
    assert_eq!(report, LoadReport { unexpected, ..LoadReport::default() });
    assert_eq!(down(engine, &bn.bias().unwrap().value), [0.75, 0.25, -0.5]);
}

fn loading_writes_into_the_memory_that_is_there<G: Engine<Memory = Host>>(engine: &G) {
    let mut bn = fresh::<f32, G>(engine);
    let addresses = |bn: &BatchNorm<f32, G>| {
        let running = bn.running().unwrap();
        let values = [&bn.weight().unwrap().value, &bn.bias().unwrap().value];
        [values[0], values[1], &running.mean, &running.var].map(|buf| buf.as_ptr())
    };
    let before = addresses(&bn);
    let dict = trained::<f32, G>(engine).state_dict("").unwrap();
    bn.load_state_dict(&dict, "", Strict::Yes).unwrap();
    assert_eq!(addresses(&bn), before);
}
