//! Calls with a fault in them: what the engine says, and that it wrote nothing.
use super::run::{self, Buf, SavedOn};
use batchnorm::{
    Activation, Backward, Element, Engine, Error, ForwardEval, ForwardTrain, Input, Memory,
    MergeStats, Real, Result, Running, Shape, Statistics, Stats,
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
    plain: false,
};

/// What a plain backward leaves out.
pub const NOT_PLAIN: [&str; 3] = ["grad_residual", "sums", "total_sums"];

/// What every buffer holds before the call; positive, so that it does for a variance.
pub fn pattern<E: Element>(len: usize) -> Vec<E> {
    (0..len).map(|i| run::narrow(0.5 + 0.25 * (i % 11) as f64)).collect()
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

/// Makes buffers for one call, and looks at them after a refusal.
struct Desk<'e, G: Engine> {
    on: On<'e, G>,
    fault: Fault,
}

impl<G: Engine> Desk<'_, G> {
    /// Where an argument lies.
    fn place(&self, what: &str) -> &G::Memory {
        match self.on.elsewhere {
            Some((name, there)) if name == what => there,
            _ => self.on.engine.memory(),
        }
    }
    fn buf<E: Element>(&self, what: &str, len: usize) -> Buf<G, E> {
        let by = if self.fault.length.0 == what { self.fault.length.1 } else { 0 };
        let len = len.checked_add_signed(by).unwrap();
        self.place(what).upload(&pattern::<E>(len)).unwrap()
    }
    fn refused<E: Element>(
        &self,
        result: Result<()>,
        tensors: &[&Buf<G, E>],
        parameters: &[&Buf<G, E::Acc>],
    ) -> Option<Error> {
        let error = result.err()?;
        tensors.iter().for_each(|buf| self.untouched::<E>(buf));
        parameters.iter().for_each(|buf| self.untouched::<E::Acc>(buf));
        Some(error)
    }
    fn untouched<E: Element>(&self, buf: &Buf<G, E>) {
        let here = self.on.engine.memory();
        let foreign =
            self.on.elsewhere.filter(|_| here.check_here("", &G::Memory::view(buf)).is_err());
        let place = foreign.map_or(here, |(_, there)| there);
        let values = place.download(G::Memory::view(buf)).unwrap();
        assert_eq!(values, pattern::<E>(values.len()), "{:?}", self.fault);
    }
}

pub fn train<'e, E: Element, G: Engine>(
    on: impl Into<On<'e, G>>,
    shape: &Shape,
    fault: Fault,
    saved: Option<&mut SavedOn<G, E>>,
) -> Option<Error> {
    let (desk, n, c) = (Desk { on: on.into(), fault }, shape.len(), shape.channels());
    let [x, residual, mut y] = ["x", "residual", "y"].map(|what| desk.buf::<E>(what, n));
    let [weight, bias] = ["weight", "bias"].map(|what| desk.buf::<E::Acc>(what, c));
    let running = ["running_mean", "running_var"];
    let [mut mean, mut var] = running.map(|what| desk.buf::<E::Acc>(what, c));
    let args = ForwardTrain::<G::Memory, E> {
        x: G::Memory::view(&x),
        residual: Some(G::Memory::view(&residual)),
        weight: Some(G::Memory::view(&weight)),
        bias: Some(G::Memory::view(&bias)),
        activation: Activation::Relu,
        eps: fault.eps,
        running: Some(Running {
            mean: G::Memory::view_mut(&mut mean),
            var: G::Memory::view_mut(&mut var),
            factor: fault.factor,
        }),
        y: G::Memory::view_mut(&mut y),
        saved,
    };
    let result = desk.on.engine.forward_train(shape, args);
    desk.refused::<E>(result, &[&x, &residual, &y], &[&weight, &bias, &mean, &var])
}

pub fn eval<'e, E: Element, G: Engine>(
    on: impl Into<On<'e, G>>,
    shape: &Shape,
    fault: Fault,
    saved: Option<&mut SavedOn<G, E>>,
) -> Option<Error> {
    let (desk, n, c) = (Desk { on: on.into(), fault }, shape.len(), shape.channels());
    let [x, residual, mut y] = ["x", "residual", "y"].map(|what| desk.buf::<E>(what, n));
    let [weight, bias] = ["weight", "bias"].map(|what| desk.buf::<E::Acc>(what, c));
    let [mean, var] = ["mean", "var"].map(|what| desk.buf::<E::Acc>(what, c));
    let record = desk.buf::<f64>("record", 3 * c + 1);
    let args = ForwardEval::<G::Memory, E> {
        x: if fault.in_place { Input::InPlace } else { Input::View(G::Memory::view(&x)) },
        residual: Some(G::Memory::view(&residual)),
        weight: Some(G::Memory::view(&weight)),
        bias: Some(G::Memory::view(&bias)),
        activation: Activation::Relu,
        statistics: match fault.by_record {
            true => Statistics::Record(G::Memory::view(&record)),
            false => Statistics::Given { mean: G::Memory::view(&mean), var: G::Memory::view(&var) },
        },
        eps: fault.eps,
        y: G::Memory::view_mut(&mut y),
        saved,
    };
    let result = desk.on.engine.forward_eval(shape, args);
    desk.refused::<E>(result, &[&x, &residual, &y], &[&weight, &bias, &mean, &var])
}

pub fn back<'e, E: Element, G: Engine>(
    on: impl Into<On<'e, G>>,
    shape: &Shape,
    fault: Fault,
    saved: &SavedOn<G, E>,
) -> Option<Error> {
    let (desk, n, c) = (Desk { on: on.into(), fault }, shape.len(), shape.channels());
    let [x, grad_y] = ["x", "grad_y"].map(|what| desk.buf::<E>(what, n));
    let [mut grad_x, mut grad_residual] =
        ["grad_x", "grad_residual"].map(|what| desk.buf::<E>(what, n));
    let [mut grad_weight, mut grad_bias] =
        ["grad_weight", "grad_bias"].map(|what| desk.buf::<E::Acc>(what, c));
    let [mut sums, total] = ["sums", "total_sums"].map(|what| desk.buf::<E::Acc>(what, 2 * c + 1));
    let has = |what| fault.without != what && !(fault.plain && NOT_PLAIN.contains(&what));
    let args = Backward::<G::Memory, E> {
        saved,
        x: G::Memory::view(&x),
        residual: None,
        grad_y: match fault.in_place {
            true => Input::InPlace,
            false => Input::View(G::Memory::view(&grad_y)),
        },
        grad_x: has("grad_x").then(|| G::Memory::view_mut(&mut grad_x)),
        grad_residual: has("grad_residual").then(|| G::Memory::view_mut(&mut grad_residual)),
        grad_weight: Some(G::Memory::view_mut(&mut grad_weight)),
        grad_bias: Some(G::Memory::view_mut(&mut grad_bias)),
        accumulate: false,
        sums: has("sums").then(|| G::Memory::view_mut(&mut sums)),
        total_sums: has("total_sums").then(|| G::Memory::view(&total)),
    };
    let result = desk.on.engine.backward(shape, args);
    let parameters = [&grad_weight, &grad_bias, &sums, &total];
    desk.refused::<E>(result, &[&x, &grad_y, &grad_x, &grad_residual], &parameters)
}

pub fn stats<'e, E: Element, G: Engine>(
    on: impl Into<On<'e, G>>,
    shape: &Shape,
    fault: Fault,
) -> Option<Error> {
    let desk = Desk { on: on.into(), fault };
    let x = desk.buf::<E>("x", shape.len());
    let mut record = desk.buf::<f64>("record", 3 * shape.channels() + 1);
    let (x_view, record_view) = (G::Memory::view(&x), G::Memory::view_mut(&mut record));
    let result =
        desk.on.engine.stats(shape, Stats::<G::Memory, E> { x: x_view, record: record_view });
    let error = desk.refused::<E>(result, &[&x], &[])?;
    desk.untouched::<f64>(&record);
    Some(error)
}

/// `records` apart, as their content says how many values there are.
pub fn merge<'e, P: Real, G: Engine>(
    on: impl Into<On<'e, G>>,
    channels: usize,
    fault: Fault,
    records: &[f64],
) -> Option<Error> {
    let desk = Desk { on: on.into(), fault };
    let mut record = desk.buf::<f64>("record", 3 * channels + 1);
    let running = ["running_mean", "running_var"];
    let [mut running_mean, mut running_var] = running.map(|what| desk.buf::<P>(what, channels));
    let records = desk.place("records").upload(records).unwrap();
    let args = MergeStats::<G::Memory, P> {
        records: G::Memory::view(&records),
        known: 0,
        running: Some(Running {
            mean: G::Memory::view_mut(&mut running_mean),
            var: G::Memory::view_mut(&mut running_var),
            factor: fault.factor,
        }),
        record: G::Memory::view_mut(&mut record),
    };
    let result = desk.on.engine.merge_stats(args);
    let error = desk.refused::<P>(result, &[&running_mean, &running_var], &[])?;
    desk.untouched::<f64>(&record);
    Some(error)
}
