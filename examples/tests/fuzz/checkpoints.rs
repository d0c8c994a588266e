//! Checkpoints of the `train` example with changes in them: what is refused is an error, what is accepted is a run.
use crate::bytes::{Bytes, changed};
use crate::example::backend::HostBackend;
use crate::example::checkpoint;
use crate::example::data::Data;
use crate::example::experiment::Experiment;
use crate::example::options::Options;
use batchnorm::{Cpu, StateDict};
use clap::Parser;
use std::cell::RefCell;
use std::sync::OnceLock;

struct Desk {
    run: Experiment<'static, Cpu, HostBackend>,
    /// After two steps, the second one's test among them.
    good: Vec<u8>,
}

thread_local! {
    static DESK: RefCell<Option<Desk>> = const { RefCell::new(None) };
}

pub fn run(input: &[u8]) {
    DESK.with(|desk| {
        // Apart from its place: after a panic there is none, and the next input makes another.
        let mut own = desk.take().unwrap_or_else(Desk::new);
        own.take(&mut Bytes(input));
        desk.replace(Some(own));
    });
}

impl Desk {
    fn new() -> Self {
        static DATA: OnceLock<Data> = OnceLock::new();
        let data = DATA.get_or_init(|| Data::digits().expect("the digits"));
        let options = Options::try_parse_from(["train", "--test-every", "2", "--batch", "8"]);
        let settings = options.expect("a command line").settings();
        let mut run =
            Experiment::new(&Cpu::default(), &HostBackend, settings, data).expect("a run");
        for _ in 0..2 {
            run.record().and_then(|()| run.step()).expect("a step");
        }
        run.record().expect("a test");
        let good = checkpoint::to_bytes(&run).expect("a checkpoint");
        Self { run, good }
    }

    fn take(&mut self, input: &mut Bytes) {
        let bytes = match input.below(8) {
            0 => input.rest().to_vec(),
            1..=4 => {
                let mut dict = StateDict::from_bytes(&self.good).expect("a checkpoint");
                (0..input.below(3)).for_each(|_| replace(&mut dict, input));
                changed(&dict.to_bytes().expect("short names"), input)
            }
            _ => changed(&self.good, input),
        };
        let run = &mut self.run;
        if checkpoint::load(&bytes, run).is_err() {
            return;
        }
        assert!(run.curve.is_sorted_by(|a, b| a.step < b.step), "{:?}", run.curve);
        assert!(run.step <= 1 << 53 && run.curve.last().is_none_or(|point| point.step <= run.step));
        let scores = run.curve.iter().flat_map(|point| [point.with, point.without]);
        scores.for_each(|score| assert!((0.0..=1.0).contains(&score.accuracy), "{score:?}"));
        let again = checkpoint::to_bytes(run).expect("what was loaded can be saved");
        checkpoint::load(&again, run).expect("and loaded");
        // But for NaN, which differs from itself.
        assert!(checkpoint::to_bytes(run).expect("and saved") == again, "another run");
        run.step().expect("a step");
    }
}

/// One tensor by another of any shape and numbers.
fn replace(dict: &mut StateDict, input: &mut Bytes) {
    let names: Vec<String> = dict.names().map(String::from).collect();
    let name = match input.below(6) {
        0 => "step",
        1 => "curve",
        2 => "options",
        3 => "another",
        _ => &names[input.below(names.len())],
    };
    let shape =
        input.pick(&[&[][..], &[1], &[5], &[1, 5], &[2, 5], &[0, 5], &[0], &[100], &[5, 1]]);
    let numbers = [
        2.0,
        0.0,
        1.0,
        2.5,
        -1.0,
        -0.0,
        f64::NAN,
        f64::INFINITY,
        1e300,
        9007199254740992.0,
        65.0,
        300.0,
    ];
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| input.pick(&numbers)).collect();
    let single: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let inserted = match input.below(3) {
        0 => dict.insert(name, shape, &single),
        _ => dict.insert(name, shape, &values),
    };
    inserted.expect("as many values as the shape has");
}
