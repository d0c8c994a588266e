//! Calls with everything in them that an operation takes, and a fault: what the engine says, and that it
//! wrote nothing.
pub use super::blank::Blank;
use super::call::{Held, Views, Whole};
pub use super::desk::{Called, Desk};
use super::run::{self, SavedOn};
use batchnorm::{
    Argument, Arguments, DType, Element, Engine, Error, LayerNormSaved, Memory, Op, Real, Request,
    Result, Role, Saved, Shape,
};

/// What is wrong with a call, if anything.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// An argument, and by how much it is too long.
    pub length: (&'static str, isize),
    pub eps: f64,
    pub factor: f64,
    pub in_place: bool,
    /// An evaluation by a record.
    pub by_record: bool,
    /// An argument that is left out.
    pub without: &'static str,
    /// An argument that starts an element behind the start of its memory, on a device.
    pub late: &'static str,
    /// A training forward, or statistics, with a mask.
    pub mask: bool,
    /// A backward without what only engines that serve everything have: a residual, sums.
    pub plain: bool,
}

/// A call that is right.
pub const NONE: Fault = Fault {
    length: ("", 0),
    eps: 1e-5,
    factor: 0.1,
    in_place: false,
    by_record: false,
    without: "",
    late: "",
    mask: false,
    plain: false,
};

/// What every buffer holds before the call; positive, so that it does for a variance.
pub fn pattern(len: usize) -> Vec<f64> {
    (0..len).map(|i| 0.5 + 0.25 * (i % 11) as f64).collect()
}

/// An engine, and an argument that lies in another place than the others, if one does.
pub struct On<'e, G: Engine> {
    pub engine: &'e G,
    pub elsewhere: Option<(&'static str, &'e G::Memory)>,
}

impl<'e, G: Engine> From<&'e G> for On<'e, G> {
    fn from(engine: &'e G) -> Self {
        Self { engine, elsewhere: None }
    }
}

/// The operations, by what they take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    Train,
    Eval,
    EvalByRecord,
    Backward,
    DoubleBackward,
    Stats,
    Merge,
    OptimizerStep,
    Regularize,
    Constrain,
    Renormalize,
    RenormalizeBackward,
    LayerNorm,
    LayerNormBackward,
}

/// What a forward on `G` saves of the rows of tensors of `E`.
pub type RowsOn<G, E> = LayerNormSaved<<G as Engine>::Memory, <E as Element>::Acc>;

/// The same elements as rows of the channels.
fn rows(shape: &Shape) -> Shape {
    Shape::new(&[shape.len() / shape.channels(), shape.channels()], 1).unwrap()
}

impl Operation {
    pub const ALL: [Self; 12] = [
        Self::Train,
        Self::Eval,
        Self::EvalByRecord,
        Self::Backward,
        Self::DoubleBackward,
        Self::Stats,
        Self::Merge,
        Self::OptimizerStep,
        Self::Regularize,
        Self::Constrain,
        Self::Renormalize,
        Self::RenormalizeBackward,
    ];

    /// All of [`ALL`](Self::ALL), which an engine serves or refuses by its limits, and those on rows where it
    /// has any: a backward has no forward otherwise.
    pub fn known_to<G: Engine>(engine: &G) -> Vec<Self> {
        let request = Request::new(Op::LayerNorm, DType::F32);
        let rows = engine.supports(&Shape::new(&[2, 2], 1).unwrap(), request).is_ok();
        let rows = [Self::LayerNorm, Self::LayerNormBackward].into_iter().filter(|_| rows);
        Self::ALL.into_iter().chain(rows).collect()
    }

    /// All arguments that such a call may have.
    pub fn arguments<E: Element, G: Engine>(self, engine: &G, fault: Fault) -> Vec<Argument> {
        let (desk, saved) = (Desk { on: engine.into(), fault, sizes: (0, 1) }, Saved::new());
        let mut blank = Blank::<E, G>::new(engine);
        let list = |held: Held| held.arguments().collect();
        let fault = Fault { by_record: self == Self::EvalByRecord, ..fault };
        match self {
            Self::Train => list(desk.held(&mut blank.train(fault), |_| None)),
            Self::Eval | Self::EvalByRecord => list(desk.held(&mut blank.eval(fault), |_| None)),
            Self::Backward => list(desk.held(&mut blank.backward(fault, &saved), |_| None)),
            Self::DoubleBackward => list(desk.held(&mut blank.double_backward(&saved), |_| None)),
            Self::Stats => list(desk.held(&mut blank.stats(fault), |_| None)),
            Self::Merge => list(desk.held(&mut blank.merge(fault), |_| None)),
            Self::LayerNorm => list(desk.held(&mut blank.layer_norm(fault), |_| None)),
            Self::LayerNormBackward => {
                let saved = RowsOn::<G, E>::new();
                list(desk.held(&mut blank.layer_norm_backward(&saved), |_| None))
            }
            Self::OptimizerStep => list(desk.held(&mut blank.optimizer_step(), |_| None)),
            Self::Regularize => list(desk.held(&mut blank.regularize(), |_| None)),
            Self::Constrain => list(desk.held(&mut blank.constrain(), |_| None)),
            Self::Renormalize => list(desk.held(&mut blank.renormalize(fault), |_| None)),
            Self::RenormalizeBackward => {
                list(desk.held(&mut blank.renormalize_backward(), |_| None))
            }
        }
    }

    /// Runs it, with a fault if there is one; `saved` is for a backward, records of a merge hold two
    /// parts of 7 values.
    pub fn call<E: Element, G: Engine>(
        self,
        desk: &Desk<'_, G>,
        shape: &Shape,
        saved: &SavedOn<G, E>,
        views: impl Views<G::Memory>,
    ) -> Called {
        match self {
            Self::Train => desk.train::<E>(shape, None, views),
            Self::Eval | Self::EvalByRecord => desk.eval::<E>(shape, None, views),
            Self::Backward => desk.backward::<E>(shape, saved, views),
            Self::DoubleBackward => desk.double_backward::<E>(shape, saved, views),
            Self::Stats => desk.stats::<E>(shape, views),
            Self::Merge => {
                let record = [vec![0.5; 3 * shape.channels()], vec![7.0]].concat();
                desk.merge::<E::Acc>(&record.repeat(2), views)
            }
            Self::LayerNorm => desk.layer_norm::<E>(&rows(shape), None, views),
            Self::LayerNormBackward => {
                let (fault, mut saved) = (Fault { plain: true, ..NONE }, RowsOn::<G, E>::new());
                let right = Self::LayerNorm.desk(desk.on.engine, fault, shape);
                right.layer_norm::<E>(&rows(shape), Some(&mut saved), Whole).result.unwrap();
                desk.layer_norm_backward::<E>(&rows(shape), &saved, views)
            }
            Self::OptimizerStep => desk.optimizer_step::<E>(views),
            Self::Regularize => desk.regularize::<E>(views),
            Self::Constrain => desk.constrain::<E>(views),
            Self::Renormalize => desk.renormalize::<E>(views),
            Self::RenormalizeBackward => desk.renormalize_backward::<E>(views),
        }
    }
    pub fn desk<'e, G: Engine>(
        self,
        on: impl Into<On<'e, G>>,
        fault: Fault,
        shape: &Shape,
    ) -> Desk<'e, G> {
        let fault = Fault { by_record: self == Self::EvalByRecord, ..fault };
        Desk { on: on.into(), fault, sizes: (shape.len(), shape.channels()) }
    }
    /// The same: what it says, and that a refusal wrote nothing.
    pub fn run<'e, E: Element, G: Engine>(
        self,
        on: impl Into<On<'e, G>>,
        shape: &Shape,
        fault: Fault,
        saved: &SavedOn<G, E>,
    ) -> Option<Error> {
        let desk = self.desk(on, fault, shape);
        self.call::<E, G>(&desk, shape, saved, Whole).refused(&fault)
    }
}

/// A forward by the most that the engine serves, what that is, and a backward without a fault.
pub fn saved_by_most<E: Element, G: Engine>(
    engine: &G,
    shape: &Shape,
) -> (SavedOn<G, E>, run::Epilogue, Fault) {
    let plain = Fault { plain: true, ..NONE };
    for (epilogue, fault) in [(run::Epilogue::FULL, NONE), (run::Epilogue::PLAIN, plain)] {
        let inputs = run::Inputs::<E>::new(shape, epilogue, 1);
        let mut saved = SavedOn::<G, E>::new();
        match run::forward(engine, &inputs, run::Mode::Train(None), Some(&mut saved)) {
            Err(Error::Unsupported { engine: "cudnn", .. }) => {}
            done => return done.map(|_| (saved, epilogue, fault)).unwrap(),
        }
    }
    panic!("{} serves no forward", engine.name());
}

/// Every argument of every operation, if it alone lies on another device: refused by its name, and
/// nothing is written.
pub fn refuses_memory_of_another_device<G: Engine>(
    engine: &G,
    other: &G::Memory,
    expected: impl Fn(&str) -> String,
) {
    fn refuses<E: Element, G: Engine>(
        engine: &G,
        other: &G::Memory,
        expected: impl Fn(&str) -> String,
    ) {
        let shape = Shape::new(&[3, 5, 7], 1).unwrap();
        let (saved, _, fault) = saved_by_most::<E, G>(engine, &shape);
        for operation in Operation::known_to(engine) {
            for Argument { name, .. } in operation.arguments::<E, G>(engine, fault) {
                let on = On { engine, elsewhere: Some((name, other)) };
                let error = operation.run::<E, G>(on, &shape, fault, &saved);
                let error = error.unwrap_or_else(|| panic!("{operation:?} takes a foreign {name}"));
                assert_eq!(error.to_string(), expected(name), "{operation:?}");
            }
        }
    }
    refuses::<f32, G>(engine, other, &expected);
    refuses::<half::f16, G>(engine, other, &expected);
}

pub fn train<E: Element, G: Engine>(
    engine: &G,
    shape: &Shape,
    fault: Fault,
    saved: Option<&mut SavedOn<G, E>>,
) -> Option<Error> {
    let desk = Operation::Train.desk(engine, fault, shape);
    desk.train::<E>(shape, saved, Whole).refused(&fault)
}

pub fn eval<E: Element, G: Engine>(
    engine: &G,
    shape: &Shape,
    fault: Fault,
    saved: Option<&mut SavedOn<G, E>>,
) -> Option<Error> {
    let operation = if fault.by_record { Operation::EvalByRecord } else { Operation::Eval };
    operation.desk(engine, fault, shape).eval::<E>(shape, saved, Whole).refused(&fault)
}

pub fn back<E: Element, G: Engine>(
    engine: &G,
    shape: &Shape,
    fault: Fault,
    saved: &SavedOn<G, E>,
) -> Option<Error> {
    Operation::Backward.run::<E, G>(engine, shape, fault, saved)
}

pub fn stats<E: Element, G: Engine>(engine: &G, shape: &Shape, fault: Fault) -> Option<Error> {
    Operation::Stats.run::<E, G>(engine, shape, fault, &Saved::new())
}

/// With these records.
pub fn merge<P: Real, G: Engine>(
    engine: &G,
    channels: usize,
    fault: Fault,
    records: &[f64],
) -> Option<Error> {
    let desk = Desk { on: engine.into(), fault, sizes: (0, channels) };
    desk.merge::<P>(records, Whole).refused(&fault)
}
