//! Every wrong argument of every operation: the typed error with both sides in its message, and
//! nothing written, bit for bit.
use crate::support::engines::engines;
use crate::support::faults::{Fault, NONE, NOT_PLAIN, back, eval, merge, pattern, stats, train};
use crate::support::oracle::served;
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, SavedOn, Want, same_bits};
use crate::support::shapes::SMALL;
use batchnorm::{
    BatchNorm, Config, Cpu, Element, Engine, Error, Memory, Reference, Result, Saved, Shape,
};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cudnn, gpu] [
    training_refuses_every_wrong_length,
    training_refuses_values_without_meaning,
    an_eps_too_small_for_the_parameters_is_refused,
    evaluation_refuses_every_wrong_length,
    evaluation_refuses_values_without_meaning,
    backward_refuses_every_wrong_length,
    backward_refuses_a_saved_of_another_forward,
    records_refuse_every_wrong_length,
    merging_refuses_what_is_no_batch,
    what_was_saved_survives_a_refused_forward,
    the_harness_accepts_what_is_right,
] }

/// The lengths that are wrong where `right` is right: one more, one less, none, twice.
fn wrong(what: &'static str, right: usize) -> impl Iterator<Item = (Fault, String)> {
    let right = right as isize;
    [1, -1, -right, right].into_iter().map(move |by| {
        let message = format!("{what}: expected {right} elements, got {}", right + by);
        (Fault { length: (what, by), ..NONE }, message)
    })
}

/// The message of a refusal, which there must be.
fn message(error: Option<Error>) -> String {
    error.expect("a refusal").to_string()
}

fn training_refuses_every_wrong_length<G: Engine>(engine: &G) {
    fn refuses<E: Element, G: Engine>(engine: &G) {
        let (shape, mut saved) = (SMALL.shape(), SavedOn::<G, E>::new());
        let tensors = ["x", "residual", "y"].map(|what| (what, shape.len()));
        let parameters = ["weight", "bias", "running_mean", "running_var"].map(|what| (what, 5));
        for (what, right) in tensors.into_iter().chain(parameters) {
            for (fault, expected) in wrong(what, right) {
                assert_eq!(message(train::<E, G>(engine, &shape, fault, None)), expected);
                let error = train::<E, G>(engine, &shape, fault, Some(&mut saved));
                assert!(matches!(error, Some(Error::Length { .. })), "{error:?}");
                assert_eq!(saved.shape(), None);
            }
        }
    }
    refuses::<f64, G>(engine);
    refuses::<f32, G>(engine);
    refuses::<f16, G>(engine);
    refuses::<bf16, G>(engine);
}

fn evaluation_refuses_every_wrong_length<G: Engine>(engine: &G) {
    fn refuses<E: Element, G: Engine>(engine: &G) {
        let (shape, mut saved) = (SMALL.shape(), SavedOn::<G, E>::new());
        let tensors = ["x", "residual", "y"].map(|what| (what, shape.len()));
        let parameters = ["weight", "bias", "mean", "var"].map(|what| (what, 5));
        for (what, right) in tensors.into_iter().chain(parameters) {
            for (fault, expected) in wrong(what, right) {
                let error = eval::<E, G>(engine, &shape, fault, Some(&mut saved));
                assert_eq!(message(error), expected);
                assert_eq!(saved.shape(), None);
                if what != "x" {
                    let in_place = Fault { in_place: true, ..fault };
                    assert_eq!(message(eval::<E, G>(engine, &shape, in_place, None)), expected);
                }
            }
        }
    }
    refuses::<f64, G>(engine);
    refuses::<f32, G>(engine);
    refuses::<f16, G>(engine);
    refuses::<bf16, G>(engine);
}

/// A `Saved` by inputs of `SMALL`'s shape, through batch statistics, if the engine serves that.
fn saved_by<E: Element, G: Engine>(engine: &G, epilogue: Epilogue) -> Option<SavedOn<G, E>> {
    let mut saved = SavedOn::<G, E>::new();
    let inputs = Inputs::<E>::new(&SMALL.shape(), epilogue, 1);
    served_by(engine, run::forward(engine, &inputs, Mode::Train(None), Some(&mut saved)))?;
    Some(saved)
}

/// The same by the most that the engine serves, what that is, and a backward without a fault.
fn saved_by_most<E: Element, G: Engine>(engine: &G) -> Option<(SavedOn<G, E>, Epilogue, Fault)> {
    let full = saved_by::<E, G>(engine, Epilogue::FULL).map(|saved| (saved, Epilogue::FULL, NONE));
    let plain = || Some((saved_by::<E, G>(engine, Epilogue::PLAIN)?, Epilogue::PLAIN, PLAIN));
    full.or_else(plain)
}
const PLAIN: Fault = Fault { plain: true, ..NONE };

/// A result; none where the one engine that does not serve everything says so.
fn served_by<G: Engine, T>(engine: &G, result: Result<T>) -> Option<T> {
    let result = served(result);
    assert!(result.is_some() || engine.name() == "cudnn", "{} serves everything", engine.name());
    result
}

/// Whether such a call is served. It is right, so that there is no other error.
fn serves<G: Engine>(engine: &G, error: Option<Error>) -> bool {
    served_by(engine, error.map_or(Ok(()), Err)).is_some()
}

fn backward_refuses_every_wrong_length<G: Engine>(engine: &G) {
    fn refuses<E: Element, G: Engine>(engine: &G) {
        let Some((saved, _, right)) = saved_by_most::<E, G>(engine) else { return };
        let shape = SMALL.shape();
        let tensors = ["x", "grad_y", "grad_x", "grad_residual"].map(|what| (what, shape.len()));
        let parameters = ["grad_weight", "grad_bias"].map(|what| (what, 5));
        let sums = ["sums", "total_sums"].map(|what| (what, 11));
        let all = tensors.into_iter().chain(parameters).chain(sums);
        for (what, len) in all.filter(|(what, _)| !right.plain || !NOT_PLAIN.contains(what)) {
            for (fault, expected) in wrong(what, len) {
                let fault = Fault { plain: right.plain, ..fault };
                assert_eq!(message(back::<E, G>(engine, &shape, fault, &saved)), expected);
                if what != "grad_y" {
                    let in_place = Fault { in_place: true, ..fault };
                    let error = back::<E, G>(engine, &shape, in_place, &saved);
                    assert_eq!(message(error), expected);
                }
            }
        }
    }
    refuses::<f64, G>(engine);
    refuses::<f32, G>(engine);
    refuses::<f16, G>(engine);
    refuses::<bf16, G>(engine);
}

fn records_refuse_every_wrong_length<G: Engine>(engine: &G) {
    let shape = SMALL.shape();
    for (what, right) in [("x", shape.len()), ("record", 16)] {
        for (fault, expected) in wrong(what, right) {
            assert_eq!(message(stats::<f64, G>(engine, &shape, fault)), expected);
            assert_eq!(message(stats::<f16, G>(engine, &shape, fault)), expected);
        }
    }
    let records = pattern::<f64>(32);
    for what in ["running_mean", "running_var"] {
        for (fault, expected) in wrong(what, 5) {
            assert_eq!(message(merge::<f32, G>(engine, 5, fault, &records)), expected);
        }
    }
    for got in [0, 1, 15, 17, 31, 33] {
        let error = merge::<f64, G>(engine, 5, NONE, &pattern::<f64>(got));
        let expected = format!("records: expected a multiple of 3C + 1 = 16 elements, got {got}");
        assert_eq!(message(error), expected);
    }
    for by in [-1, 1] {
        let fault = Fault { length: ("record", by), ..NONE };
        let got = 16 + by;
        let expected = format!("record: expected 3C + 1 elements for 1 channel or more, got {got}");
        assert_eq!(message(merge::<f32, G>(engine, 5, fault, &records)), expected);
    }
}

/// An eps whose root has an inverse in f64 and none in f32: a constant channel would be NaN.
fn an_eps_too_small_for_the_parameters_is_refused<G: Engine>(engine: &G) {
    let (shape, fault) = (SMALL.shape(), Fault { eps: 1e-80, ..NONE });
    let expected = "eps: expected one whose 1 / sqrt(eps) is finite in f32, got 1e-80";
    assert_eq!(message(train::<f32, G>(engine, &shape, fault, None)), expected);
    assert_eq!(message(train::<bf16, G>(engine, &shape, fault, None)), expected);
    assert_eq!(message(eval::<f16, G>(engine, &shape, fault, None)), expected);
    let config = Config { eps: 1e-80, ..Config::default() };
    let error = BatchNorm::<f32, G>::new(engine, 5, config).err();
    assert_eq!(message(error), expected);
    assert!(BatchNorm::<f64, G>::new(engine, 5, config).is_ok());
}

fn meaningless_eps() -> impl Iterator<Item = (Fault, String)> {
    [f64::NAN, 0.0, -1e-5, f64::INFINITY, f64::NEG_INFINITY].into_iter().map(|eps| {
        let message = format!("eps: expected a finite number above 0, got {eps}");
        (Fault { eps, ..NONE }, message)
    })
}

fn meaningless_factors() -> impl Iterator<Item = (Fault, String)> {
    [f64::NAN, -0.1, 1.1, f64::INFINITY].into_iter().map(|factor| {
        (Fault { factor, ..NONE }, format!("momentum: expected 0 to 1, got {factor}"))
    })
}

const ONE_VALUE: &str = "x: training needs more than 1 value per channel, got 1";
const ONE_VALUE_MERGED: &str = "records: training needs more than 1 value per channel, got 1";

fn training_refuses_values_without_meaning<G: Engine>(engine: &G) {
    let mut saved = SavedOn::<G, f32>::new();
    for (fault, expected) in meaningless_eps().chain(meaningless_factors()) {
        let error = train::<f32, G>(engine, &SMALL.shape(), fault, Some(&mut saved));
        assert_eq!(message(error), expected);
    }
    for dims in [&[1, 3][..], &[1, 3, 1, 1]] {
        let one = Shape::new(dims, 1).unwrap();
        let error = train::<f32, G>(engine, &one, NONE, Some(&mut saved));
        assert_eq!(message(error), ONE_VALUE);
    }
    assert_eq!(saved.shape(), None);
}

fn evaluation_refuses_values_without_meaning<G: Engine>(engine: &G) {
    let (shape, mut saved) = (SMALL.shape(), SavedOn::<G, f32>::new());
    for (fault, expected) in meaningless_eps() {
        assert_eq!(message(eval::<f32, G>(engine, &shape, fault, Some(&mut saved))), expected);
    }
    let in_place = Fault { in_place: true, ..NONE };
    let error = eval::<f32, G>(engine, &shape, in_place, Some(&mut saved));
    let expected = "x: in place leaves no x for a backward: expected no saved, got one";
    assert_eq!(message(error), expected);
    assert_eq!(saved.shape(), None);
}

fn merging_refuses_what_is_no_batch<G: Engine>(engine: &G) {
    let records = pattern::<f64>(16);
    for (fault, expected) in meaningless_factors() {
        assert_eq!(message(merge::<f32, G>(engine, 5, fault, &records)), expected);
    }
    let none = merge::<f32, G>(engine, 0, NONE, &[2.0]);
    assert_eq!(message(none), "record: expected 3C + 1 elements for 1 channel or more, got 1");
    // One value in all: among empty parts, too. What an engine does not serve it does not look at.
    if !serves(engine, merge::<f64, G>(engine, 1, NONE, &[0.5, 0.0, 0.0, 2.0])) {
        return;
    }
    let one = [0.5, 0.0, 0.0, 1.0];
    assert_eq!(message(merge::<f64, G>(engine, 1, NONE, &one)), ONE_VALUE_MERGED);
    for count in [0.5, -1.0, f64::NAN, f64::INFINITY] {
        let none = merge::<f64, G>(engine, 1, NONE, &[one, [0.5, 0.0, 0.0, count]].concat());
        let expected = format!(
            "records: expected counts that are whole numbers from 0 on, got {count} in record 1"
        );
        assert_eq!(message(none), expected);
    }
    let among = [[0.0; 4], one, [0.0; 4]].concat();
    assert_eq!(message(merge::<f64, G>(engine, 1, NONE, &among)), ONE_VALUE_MERGED);
}

fn backward_refuses_a_saved_of_another_forward<G: Engine>(engine: &G) {
    let shape = SMALL.shape();
    let refusal = |saved: &SavedOn<G, f32>, shape: &Shape, fault: Fault| {
        message(back::<f32, G>(engine, shape, fault, saved))
    };
    let Some((most, _, right)) = saved_by_most::<f32, G>(engine) else { return };
    let without = |without| Fault { without, ..right };

    let empty = refusal(&Saved::new(), &shape, right);
    assert_eq!(empty, "saved: expected what a forward saved, got an empty one");

    let other = Shape::new(&[3, 7, 5], 1).unwrap();
    let expected = "saved: the forward had shape 3 x 5 x 7 (outer x channels x inner, batch 3), \
                    this backward has 3 x 7 x 5 (outer x channels x inner, batch 3)";
    assert_eq!(refusal(&most, &other, right), expected);

    let dtype = message(back::<bf16, G>(engine, &shape, right, &most));
    assert_eq!(dtype, "saved: the forward had dtype f32, this backward has bf16");

    let plain = saved_by::<f32, G>(engine, Epilogue::PLAIN).expect("served by every engine");
    let expected =
        "saved: the forward had residual none, this backward has a grad_residual to write";
    assert_eq!(refusal(&plain, &shape, NONE), expected);

    let in_place = Fault { in_place: true, ..without("grad_x") };
    let expected = "grad_y: in place: expected a grad_x that holds it, got none";
    assert_eq!(refusal(&most, &shape, in_place), expected);
}

/// Statistics, gate, shape and all: the backward gives what it gave before.
fn what_was_saved_survives_a_refused_forward<G: Engine>(engine: &G) {
    let Some((mut saved, epilogue, right)) = saved_by_most::<f32, G>(engine) else { return };
    let inputs = Inputs::<f32>::new(&SMALL.shape(), epilogue, 1);
    let look = |saved: &SavedOn<G, f32>| -> (Vec<f32>, Vec<f32>, Outcome) {
        let on = engine.memory();
        let mean = on.download(saved.mean().unwrap()).unwrap();
        let invstd = on.download(saved.invstd().unwrap()).unwrap();
        let want = Want { sums: !right.plain, ..Want::all(epilogue) };
        (mean, invstd, run::backward(engine, &inputs, want, saved, None).unwrap())
    };
    let before = look(&saved);
    let lengths = ["x", "y", "residual", "weight", "bias"].map(|what| wrong(what, 5).next());
    let mut faults: Vec<Fault> = lengths.into_iter().flatten().map(|(fault, _)| fault).collect();
    faults.push(Fault { eps: f64::NAN, ..NONE });
    let one = Shape::new(&[1, 5], 1).unwrap();
    for fault in faults {
        // Of its own shape, and of another, which would need other buffers.
        for shape in [SMALL.shape(), Shape::new(&[9, 11, 2], 1).unwrap()] {
            assert!(train::<f32, G>(engine, &shape, fault, Some(&mut saved)).is_some());
            assert!(eval::<f32, G>(engine, &shape, fault, Some(&mut saved)).is_some());
        }
        assert!(train::<f32, G>(engine, &one, NONE, Some(&mut saved)).is_some());
        let after = look(&saved);
        assert_eq!((&before.0, &before.1), (&after.0, &after.1), "{fault:?}");
        assert!(same_bits(&before.2, &after.2), "{fault:?}");
        assert_eq!((saved.shape(), saved.is_frozen()), (Some(SMALL.shape()), Some(false)));
    }
}

/// Without a fault the same calls run, so that a refusal above is about its fault.
fn the_harness_accepts_what_is_right<G: Engine>(engine: &G) {
    let (shape, mut saved) = (SMALL.shape(), SavedOn::<G, f32>::new());
    serves(engine, train::<f32, G>(engine, &shape, NONE, Some(&mut saved)));
    serves(engine, eval::<f32, G>(engine, &shape, NONE, Some(&mut saved)));
    let in_place = Fault { in_place: true, ..NONE };
    serves(engine, eval::<f32, G>(engine, &shape, in_place, None));
    serves(engine, eval::<f32, G>(engine, &shape, Fault { by_record: true, ..NONE }, None));
    serves(engine, stats::<f32, G>(engine, &shape, NONE));
    let records = [&[0.5; 15][..], &[2.0]].concat();
    serves(engine, merge::<f32, G>(engine, 5, NONE, &records));
    let (most, _, right) = saved_by_most::<f32, G>(engine).expect("served by every engine");
    assert_eq!(back::<f32, G>(engine, &shape, right, &most), None);
    serves(engine, back::<f32, G>(engine, &shape, Fault { in_place: true, ..right }, &most));
}

/// Two engines on one memory share the type of their `Saved`, not what lies in it.
#[test]
fn backward_refuses_a_saved_of_another_engine() {
    fn refuses<A: Engine, B: Engine<Memory = A::Memory>>(forward: &A, backward: &B) {
        let saved = saved_by::<f32, A>(forward, Epilogue::FULL).expect("served");
        let (made_by, used_by) = (forward.name(), backward.name());
        let expected =
            format!("saved: the forward had engine {made_by}, this backward has {used_by}");
        assert_eq!(message(back::<f32, B>(backward, &SMALL.shape(), NONE, &saved)), expected);
    }
    refuses(&Reference, &Cpu::default());
    refuses(&Cpu::default(), &Reference);
}
