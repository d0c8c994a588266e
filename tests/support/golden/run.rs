//! Runs an engine over a case, and stores what it computed.
use super::{COMPUTED, Case, Entry, Tensors, narrow, widen};
use anyhow::{Context, Result, ensure};
use batchnorm::{
    Backward, DType, Derivative, Element, Engine, Error, ForwardEval, ForwardTrain, Input, Memory,
    Real, Reference, Running, Saved, Statistics, Stats, dispatch,
};
use safetensors::{Dtype, tensor::TensorView};

/// What an engine makes of a case.
#[derive(Debug, Clone)]
pub struct Ran {
    pub tensors: Tensors,
    /// What it does not serve, and why: those tensors are not there.
    pub refused: Vec<String>,
}

impl Ran {
    /// By an engine that serves everything.
    pub fn all(tensors: Tensors) -> Self {
        Self { tensors, refused: Vec::new() }
    }
}

/// All of [`COMPUTED`] that the case has, by this engine in the case's own dtype.
pub fn compute<G: Engine>(engine: &G, case: &Case) -> Result<Tensors> {
    let Ran { tensors, refused } = compute_served(engine, case)?;
    ensure!(refused.is_empty(), "{}: {}: refused {refused:?}", case.name, engine.name());
    Ok(tensors)
}

/// The same by an engine that may refuse an operation.
pub fn compute_served<G: Engine>(engine: &G, case: &Case) -> Result<Ran> {
    dispatch!(case.dtype, E => Run::<G, E>::new(engine, case)?.all())
        .with_context(|| format!("{}: {}", case.name, engine.name()))
}

/// Training alone, or evaluation alone, by the reference: for cases that have the golden tensors of one.
pub fn compute_pass(case: &Case, eval: bool) -> Result<Tensors> {
    dispatch!(case.dtype, E => {
        let mut run = Run::<Reference, E>::new(&Reference, case)?;
        if eval { run.eval(true)? } else { run.train()? }
        Ok(run.computed)
    })
}

/// What was computed, all of it or what an engine served, as a safetensors file: elements in the case's dtype, everything else in the
/// type of the parameters, metadata as in the case.
pub fn serialize(case: &Case, computed: &Tensors) -> Result<Vec<u8>> {
    let entries = COMPUTED.iter().filter_map(|entry| Some((entry, computed.get(entry.name)?)));
    let bytes: Vec<_> = entries
        .map(|(entry, values)| (entry, encode(values, case.dtype_of(entry.content))))
        .collect();
    let views: Result<Vec<_>, _> = bytes
        .iter()
        .map(|(Entry { name, content, .. }, (dtype, bytes))| {
            let view = TensorView::new(*dtype, case.dims_of(*content), bytes);
            view.map(|view| (*name, view)).with_context(|| *name)
        })
        .collect();
    Ok(safetensors::serialize(views?, Some(case.metadata.clone()))?)
}

fn encode(values: &[f64], dtype: DType) -> (Dtype, Vec<u8>) {
    fn each<E: Element, const N: usize>(values: &[f64], bytes: fn(E) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|&v| bytes(narrow(v))).collect()
    }
    match dtype {
        DType::F64 => (Dtype::F64, each(values, f64::to_le_bytes)),
        DType::F32 => (Dtype::F32, each(values, f32::to_le_bytes)),
        DType::F16 => (Dtype::F16, each(values, half::f16::to_le_bytes)),
        DType::Bf16 => (Dtype::BF16, each(values, half::bf16::to_le_bytes)),
        other => panic!("{other} has no bytes here"),
    }
}

type Buf<G, T> = <<G as Engine>::Memory as Memory>::Buf<T>;

/// A case in an engine's memory.
struct Run<'a, G: Engine, E: Element> {
    engine: &'a G,
    case: &'a Case,
    x: Buf<G, E>,
    grad_y: Buf<G, E>,
    residual: Option<Buf<G, E>>,
    weight: Option<Buf<G, E::Acc>>,
    bias: Option<Buf<G, E::Acc>>,
    computed: Tensors,
}

/// A whole buffer, if there is one.
fn view<M: Memory, T: batchnorm::Plain>(buf: &Option<M::Buf<T>>) -> Option<M::View<'_, T>> {
    buf.as_ref().map(M::view)
}

fn upload<M: Memory, T: Element>(memory: &M, values: &[f64]) -> batchnorm::Result<M::Buf<T>> {
    memory.upload(&values.iter().map(|&v| narrow(v)).collect::<Vec<T>>())
}

impl<'a, G: Engine, E: Element> Run<'a, G, E> {
    fn new(engine: &'a G, case: &'a Case) -> Result<Self> {
        let memory = engine.memory();
        Ok(Self {
            engine,
            case,
            x: upload(memory, case.tensor("x")?)?,
            grad_y: upload(memory, case.tensor("grad_y")?)?,
            residual: case.optional("residual").map(|v| upload(memory, v)).transpose()?,
            weight: case.optional("weight").map(|v| upload(memory, v)).transpose()?,
            bias: case.optional("bias").map(|v| upload(memory, v)).transpose()?,
            computed: Tensors::new(),
        })
    }

    fn all(mut self) -> Result<Ran> {
        let mut refused = Vec::new();
        let mut is_refused = |name: &str, done: Result<()>| match done {
            Err(error) => match error.downcast_ref() {
                Some(Error::Unsupported { .. }) => {
                    refused.push(format!("{name}: {error}"));
                    Ok(true)
                }
                _ => Err(error),
            },
            Ok(()) => Ok(false),
        };
        is_refused("stats", self.stats())?;
        is_refused("train", self.train())?;
        if is_refused("eval and back", self.eval(true))? {
            is_refused("eval", self.eval(false))?;
        }
        Ok(Ran { tensors: self.computed, refused })
    }

    fn keep<T: Element>(&mut self, name: &'static str, buf: &Buf<G, T>) -> Result<()> {
        let values = self.engine.memory().download(G::Memory::view(buf))?;
        self.computed.insert(name, values.into_iter().map(widen).collect());
        Ok(())
    }

    fn stats(&mut self) -> Result<()> {
        let Self { engine, case, .. } = *self;
        let (memory, channels) = (engine.memory(), case.shape.channels());
        let mut record: Buf<G, f64> = memory.zeros(3 * channels + 1)?;
        let x = G::Memory::view(&self.x);
        engine
            .stats(&case.shape, Stats::<G::Memory, E>::new(x, G::Memory::view_mut(&mut record)))?;
        let record = memory.download(G::Memory::view(&record))?;
        let (m, got) = (case.shape.per_channel(), record[3 * channels]);
        ensure!(got == m as f64, "stats: expected {m} values per channel, got {got}");
        // In the type that a case has them in.
        let rounded =
            |values: &[f64]| values.iter().map(|&v| E::Acc::from_f64(v).to_f64()).collect();
        self.computed.insert("batch_mean", rounded(&record[..channels]));
        self.computed.insert("batch_var", rounded(&record[2 * channels..3 * channels]));
        Ok(())
    }

    fn train(&mut self) -> Result<()> {
        let Self { engine, case, .. } = *self;
        let memory = engine.memory();
        let channels = case.shape.channels();
        let statistics = |name| case.optional(name).map_or(vec![0.0; channels], <[f64]>::to_vec);
        let mut mean: Buf<G, E::Acc> = upload(memory, &statistics("running_mean"))?;
        let mut var: Buf<G, E::Acc> = upload(memory, &statistics("running_var"))?;
        let mut y: Buf<G, E> = memory.zeros(case.shape.len())?;
        let mut saved = Saved::new();
        let mut args = ForwardTrain::<G::Memory, E>::new(
            G::Memory::view(&self.x),
            G::Memory::view_mut(&mut y),
        )
        .activation(case.activation)
        .eps(case.eps)
        .running(G::Memory::view_mut(&mut mean), G::Memory::view_mut(&mut var), case.momentum)
        .saved(&mut saved);
        args.residual = view::<G::Memory, _>(&self.residual);
        args.weight = view::<G::Memory, _>(&self.weight);
        args.bias = view::<G::Memory, _>(&self.bias);
        engine.forward_train(&case.shape, args)?;
        self.keep("y", &y)?;
        self.keep("new_running_mean", &mean)?;
        self.keep("new_running_var", &var)?;
        self.backward(&saved, ["grad_x", "grad_residual", "grad_weight", "grad_bias"])
    }

    /// With a backward, or alone.
    fn eval(&mut self, saves: bool) -> Result<()> {
        let Self { engine, case, .. } = *self;
        let memory = engine.memory();
        let mean: Buf<G, E::Acc> = upload(memory, case.tensor("running_mean")?)?;
        let var: Buf<G, E::Acc> = upload(memory, case.tensor("running_var")?)?;
        let mut y: Buf<G, E> = memory.zeros(case.shape.len())?;
        let mut saved = Saved::new();
        let mut args = ForwardEval::<G::Memory, E>::new(
            G::Memory::view(&self.x),
            G::Memory::view_mut(&mut y),
            G::Memory::view(&mean),
            G::Memory::view(&var),
        )
        .activation(case.activation)
        .eps(case.eps);
        args.residual = view::<G::Memory, _>(&self.residual);
        args.weight = view::<G::Memory, _>(&self.weight);
        args.bias = view::<G::Memory, _>(&self.bias);
        args.saved = saves.then_some(&mut saved);
        engine.forward_eval(&case.shape, args)?;
        self.keep("y_eval", &y)?;
        if !saves {
            return Ok(());
        }
        let names = ["grad_x_eval", "grad_residual_eval", "grad_weight_eval", "grad_bias_eval"];
        self.backward(&saved, names)
    }

    /// Gradients of x, residual, weight and bias, of those that the case has.
    fn backward(
        &mut self,
        saved: &Saved<G::Memory, E::Acc>,
        [x, residual, weight, bias]: [&'static str; 4],
    ) -> Result<()> {
        let Self { engine, case, .. } = *self;
        let (memory, shape) = (engine.memory(), &case.shape);
        let mut grad_x: Buf<G, E> = memory.zeros(shape.len())?;
        let mut grad_residual: Option<Buf<G, E>> =
            self.residual.as_ref().map(|_| memory.zeros(shape.len())).transpose()?;
        let channels = || memory.zeros(shape.channels());
        let mut grad_weight: Option<Buf<G, E::Acc>> =
            self.weight.as_ref().map(|_| channels()).transpose()?;
        let mut grad_bias: Option<Buf<G, E::Acc>> =
            self.bias.as_ref().map(|_| channels()).transpose()?;
        let mut args = Backward::<G::Memory, E>::new(
            saved,
            G::Memory::view(&self.x),
            G::Memory::view(&self.grad_y),
        )
        .grad_x(G::Memory::view_mut(&mut grad_x));
        if case.activation.derivative_from(self.residual.is_some()) == Derivative::FromResidual {
            args.residual = view::<G::Memory, _>(&self.residual);
        }
        args.grad_residual = grad_residual.as_mut().map(G::Memory::view_mut);
        args.grad_weight = grad_weight.as_mut().map(G::Memory::view_mut);
        args.grad_bias = grad_bias.as_mut().map(G::Memory::view_mut);
        engine.backward(shape, args)?;
        self.keep(x, &grad_x)?;
        if let Some(gradient) = &grad_residual {
            self.keep(residual, gradient)?;
        }
        for (name, gradient) in [(weight, &grad_weight), (bias, &grad_bias)] {
            if let Some(gradient) = gradient {
                self.keep(name, gradient)?;
            }
        }
        Ok(())
    }
}
