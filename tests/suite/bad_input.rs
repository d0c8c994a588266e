//! Every wrong argument of every operation: the typed error with both sides in its message, and
//! nothing written, bit for bit.
use crate::support::engines::engines;
use crate::support::faults::{
    Fault, NONE, Operation, back, eval, merge, pattern, saved_by_most, stats, train,
};
use crate::support::oracle::served;
use crate::support::run::{self, Epilogue, Inputs, Mode, Outcome, SavedOn, Want, same_bits};
use crate::support::shapes::SMALL;
use batchnorm::{
    Argument, BatchNorm, Config, Cpu, Element, Engine, Error, Memory, Op, Reference, Request,
    Result, Role, Saved, Shape,
};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cudnn, gpu] [
    every_wrong_length_is_refused,
    training_refuses_values_without_meaning,
    an_eps_too_small_for_the_parameters_is_refused,
    evaluation_refuses_values_without_meaning,
    backward_refuses_a_saved_of_another_forward,
    merging_refuses_records_of_no_length,
    merging_refuses_what_is_no_batch,
    what_was_saved_survives_a_refused_forward,
    the_harness_accepts_what_is_right,
] }

/// What is said of an argument of a wrong length; nothing where a merge may have that many records.
fn refusal(operation: Operation, argument: Argument, right: isize, got: isize) -> Option<String> {
    let Argument { name, role, .. } = argument;
    match (operation, role) {
        (Operation::Merge, Role::Record) => {
            Some(format!("{name}: expected 3C + 1 elements for 1 channel or more, got {got}"))
        }
        // It says how long a parameter is: what comes next has another length then.
        (Operation::Constrain, _) => None,
        (Operation::OptimizerStep | Operation::Regularize, _) if name == "value" => {
            Some(format!("grad: expected {got} elements, got {right}"))
        }
        (Operation::Renormalize, _) if name == "moving_mean" => {
            Some(format!("record: expected {} elements, got {}", 3 * got + 1, 3 * right + 1))
        }
        (Operation::RenormalizeBackward, _) if name == "r" => {
            Some(format!("d: expected {got} elements, got {right}"))
        }
        (_, Role::Records) if got > 0 && got % (right / 2) == 0 => None,
        (_, Role::Records) => Some(format!(
            "{name}: expected a multiple of 3C + 1 = {} elements, got {got}",
            right / 2
        )),
        _ => Some(format!("{name}: expected {right} elements, got {got}")),
    }
}

/// The message of a refusal, which there must be.
fn message(error: Option<Error>) -> String {
    error.expect("a refusal").to_string()
}

/// Every argument of every operation by itself: one more, one less, none, twice.
fn every_wrong_length_is_refused<G: Engine>(engine: &G) {
    fn refuses<E: Element, G: Engine>(engine: &G) {
        let shape = SMALL.shape();
        let (saved, _, right) = saved_by_most::<E, G>(engine, &SMALL.shape());
        for operation in Operation::known_to(engine) {
            let masked = Request::new(Op::ForwardTrain, E::DTYPE).mask(true);
            let mask = engine.supports(&shape, masked).is_ok();
            for fault in [right, Fault { in_place: true, ..right }, Fault { mask, ..right }] {
                let arguments = operation.arguments::<E, G>(engine, fault);
                let least = if operation == Operation::Constrain { 1 } else { 2 };
                assert!(arguments.len() >= least, "{operation:?}");
                for argument in arguments {
                    let parts = if argument.role == Role::Records { 2 } else { 1 };
                    let right = (parts * argument.role.len(shape.len(), 5)) as isize;
                    for by in [1, -1, -right, right] {
                        let fault = Fault { length: (argument.name, by), ..fault };
                        let Some(expected) = refusal(operation, argument, right, right + by) else {
                            continue;
                        };
                        let error = operation.run::<E, G>(engine, &shape, fault, &saved);
                        assert_eq!(message(error), expected);
                    }
                }
            }
        }
        // What a forward was to fill stays empty.
        let mut saved = SavedOn::<G, E>::new();
        for argument in Operation::Train.arguments::<E, G>(engine, NONE) {
            let fault = Fault { length: (argument.name, 1), ..NONE };
            assert!(train::<E, G>(engine, &shape, fault, Some(&mut saved)).is_some());
            assert_eq!(saved.shape(), None);
        }
        for argument in Operation::Eval.arguments::<E, G>(engine, NONE) {
            let fault = Fault { length: (argument.name, 1), ..NONE };
            assert!(eval::<E, G>(engine, &shape, fault, Some(&mut saved)).is_some());
            assert_eq!(saved.shape(), None);
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

fn merging_refuses_records_of_no_length<G: Engine>(engine: &G) {
    for got in [0, 1, 15, 17, 31, 33] {
        let error = merge::<f64, G>(engine, 5, NONE, &pattern(got));
        let expected = format!("records: expected a multiple of 3C + 1 = 16 elements, got {got}");
        assert_eq!(message(error), expected);
    }
}

/// An eps whose root has an inverse in f64 and none in f32: a constant channel would be NaN.
fn an_eps_too_small_for_the_parameters_is_refused<G: Engine>(engine: &G) {
    let (shape, fault) = (SMALL.shape(), Fault { eps: 1e-80, ..NONE });
    let expected = "eps: expected one whose 1 / sqrt(eps) is finite in f32, got 1e-80";
    assert_eq!(message(train::<f32, G>(engine, &shape, fault, None)), expected);
    assert_eq!(message(train::<bf16, G>(engine, &shape, fault, None)), expected);
    assert_eq!(message(eval::<f16, G>(engine, &shape, fault, None)), expected);
    let config = Config::default().eps(1e-80);
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
    let records = pattern(16);
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
    let (most, _, right) = saved_by_most::<f32, G>(engine, &SMALL.shape());
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
    let (mut saved, epilogue, right) = saved_by_most::<f32, G>(engine, &SMALL.shape());
    let inputs = Inputs::<f32>::new(&SMALL.shape(), epilogue, 1);
    let look = |saved: &SavedOn<G, f32>| -> (Vec<f32>, Vec<f32>, Outcome) {
        let on = engine.memory();
        let mean = on.download(saved.mean().unwrap()).unwrap();
        let invstd = on.download(saved.invstd().unwrap()).unwrap();
        let want = Want { sums: !right.plain, ..Want::all(epilogue) };
        (mean, invstd, run::backward(engine, &inputs, want, saved, None).unwrap())
    };
    let before = look(&saved);
    let arguments = Operation::Train.arguments::<f32, G>(engine, NONE).into_iter();
    let length = |argument: Argument| Fault { length: (argument.name, 1), ..NONE };
    // Those that an evaluation has too.
    let evaluated = Operation::Eval.arguments::<f32, G>(engine, NONE);
    let mut faults: Vec<Fault> =
        arguments.filter(|argument| evaluated.contains(argument)).map(length).collect();
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
    let (most, _, right) = saved_by_most::<f32, G>(engine, &SMALL.shape());
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
