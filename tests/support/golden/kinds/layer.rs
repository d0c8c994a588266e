//! A layer with the parameters of a document, and what it computes, judged as the cases of one step are.
use super::super::{Case, Document, Tensors, judge_served, narrow, widen};
use super::Outcome;
use anyhow::{Context, Result};
use batchnorm::{BatchNorm, Config, Element, Engine, Memory, Plain, Saved, Shape, Stats};

/// y, and what is for a backward.
type Forward<G, E> = (Vec<f64>, Saved<<G as Engine>::Memory, <E as Element>::Acc>);
type Buf<G, T> = <<G as Engine>::Memory as Memory>::Buf<T>;

/// A layer on an engine, fed with tensors of a document.
pub struct Layer<'a, G: Engine, E: Element> {
    pub bn: BatchNorm<E::Acc, G>,
    document: &'a Document,
}

impl<'a, G: Engine, E: Element> Layer<'a, G, E> {
    /// With what the document has of weight, bias and running statistics; `config` says the rest.
    pub fn new(engine: &G, document: &'a Document, x: &str, config: Config) -> Result<Self> {
        let config = config
            .weight(document.has("weight"))
            .bias(document.has("bias"))
            .activation(document.activation()?)
            .eps(document.number("eps")?);
        let mut bn = BatchNorm::new(engine, document.shape_of(x)?.channels(), config)?;
        for (name, param) in bn.named_parameters_mut() {
            param.value = upload(engine, document.values(name)?)?;
        }
        if let Some(running) = bn.running_mut() {
            running.mean = upload(engine, document.values("running_mean")?)?;
            if document.has("running_var") {
                running.var = upload(engine, document.values("running_var")?)?;
            }
        }
        Ok(Self { bn, document })
    }
    /// Running mean and variance.
    pub fn running(&self) -> Result<(Vec<f64>, Vec<f64>)> {
        let running = self.bn.running().context("a layer with running statistics")?;
        Ok((self.download(&running.mean)?, self.download(&running.var)?))
    }
    pub fn set_running(&mut self, mean: &[f64], var: &[f64]) -> Result<()> {
        let engine = self.bn.engine().clone();
        let running = self.bn.running_mut().context("a layer with running statistics")?;
        (running.mean, running.var) = (upload(&engine, mean)?, upload(&engine, var)?);
        Ok(())
    }
    /// Mean and biased variance of that tensor.
    pub fn moments(&self, x: &str) -> Result<(Vec<f64>, Vec<f64>)> {
        let (engine, shape) = (self.bn.engine(), self.document.shape_of(x)?);
        let (memory, channels) = (engine.memory(), shape.channels());
        let mut record: Buf<G, f64> = memory.zeros(3 * channels + 1)?;
        let x = self.upload(x)?;
        let (x, to) = (G::Memory::view(&x), G::Memory::view_mut(&mut record));
        engine.stats(&shape, Stats::<G::Memory, E>::new(x, to))?;
        let record = memory.download(G::Memory::view(&record))?;
        Ok((record[..channels].to_vec(), record[2 * channels..3 * channels].to_vec()))
    }
    /// A tensor of the document in the engine's memory, in the type of x.
    pub fn upload(&self, name: &str) -> Result<Buf<G, E>> {
        upload(self.bn.engine(), self.document.values(name)?)
    }
    pub fn download<T: Element>(&self, buf: &Buf<G, T>) -> Result<Vec<f64>> {
        let values = self.bn.engine().memory().download(G::Memory::view(buf))?;
        Ok(values.into_iter().map(widen).collect())
    }
    /// y of that tensor (plus the residual, if there is one of that name), and what is for a backward.
    pub fn forward(&mut self, x: &str, residual: &str) -> Result<Forward<G, E>> {
        let shape = self.document.shape_of(x)?;
        let input = self.upload(x)?;
        let (y, saved) = if self.document.has(residual) {
            let residual = self.upload(residual)?;
            self.bn.forward_add(&shape, G::Memory::view(&input), G::Memory::view(&residual))?
        } else {
            self.bn.forward(&shape, G::Memory::view(&input))?
        };
        Ok((self.download(&y)?, saved))
    }
    /// y of that tensor in evaluation.
    pub fn infer(&self, x: &str) -> Result<Vec<f64>> {
        let input = self.upload(x)?;
        let y = self.bn.infer(&self.document.shape_of(x)?, G::Memory::view(&input))?;
        self.download(&y)
    }
    /// All gradients, under the names of a case of one step with this suffix.
    pub fn backward(
        &mut self,
        saved: &Saved<G::Memory, E::Acc>,
        names: [&'static str; 4],
        computed: &mut Tensors,
    ) -> Result<()> {
        let (x, grad_y) = (self.upload("x")?, self.upload("grad_y")?);
        let (x, grad_y) = (G::Memory::view(&x), G::Memory::view(&grad_y));
        if self.document.has("residual") {
            let residual = self.upload("residual")?;
            let residual = Some(G::Memory::view(&residual));
            let (grad_x, grad_residual) = self.bn.backward_add(saved, x, residual, grad_y)?;
            computed.insert(names[0], self.download(&grad_x)?);
            computed.insert(names[1], self.download(&grad_residual)?);
        } else {
            let grad_x = self.bn.backward(saved, x, grad_y)?;
            computed.insert(names[0], self.download(&grad_x)?);
        }
        for (name, param) in self.bn.named_parameters() {
            let gradient = param.grad().map(|grad| self.download(grad)).transpose()?;
            let name = names[if name == "weight" { 2 } else { 3 }];
            gradient.and_then(|gradient| computed.insert(name, gradient));
        }
        Ok(())
    }
}

fn upload<G: Engine, T: Element + Plain>(engine: &G, values: &[f64]) -> Result<Buf<G, T>> {
    let values: Vec<T> = values.iter().map(|&v| narrow(v)).collect();
    Ok(engine.memory().upload(&values)?)
}

/// A case of one step with the document's parameters, to judge by: `x`, and for every name of the case the
/// golden tensor of that name in the document. A forward alone has no grad_y: zeros.
pub fn step(
    document: &Document,
    x: &str,
    golden: &[(&'static str, &str)],
) -> Result<(Case, Shape)> {
    let shape = document.shape_of(x)?;
    let tensor = document.tensor(x)?;
    let (eps, activation) = (document.number("eps")?, document.activation()?);
    let mut case = Case::of(&document.name, &tensor.dims, shape, document.dtype, activation, eps);
    case.set("x", tensor.values.clone());
    case.set("grad_y", vec![0.0; shape.len()]);
    for name in ["weight", "bias"] {
        if document.has(name) {
            case.set(name, document.values(name)?.to_vec());
        }
    }
    for (name, of) in golden {
        if document.has(of) {
            case.set(name, document.values(of)?.to_vec());
        }
    }
    Ok((case, shape))
}

/// The batch's mean and biased variance in f64, where the document does not give them.
pub fn set_batch_statistics(case: &mut Case) -> Result<()> {
    let (x, shape) = (case.tensor("x")?, case.shape);
    let (mut means, mut vars) = (Vec::new(), Vec::new());
    for c in 0..shape.channels() {
        let xs = || x.iter().enumerate().filter(|(i, _)| case.channel_of(*i) == c).map(|(_, x)| x);
        let m = shape.per_channel().max(1) as f64;
        let first = xs().next().copied().unwrap_or(0.0);
        let mean = first + xs().map(|x| x - first).sum::<f64>() / m;
        means.push(mean);
        vars.push(xs().map(|x| (x - mean).powi(2)).sum::<f64>() / m);
    }
    case.set("batch_mean", means);
    case.set("batch_var", vars);
    Ok(())
}

/// Judges what was computed as a step's tensors, and notes it under the document's names.
pub fn note(
    outcome: &mut Outcome,
    case: &Case,
    computed: Tensors,
    golden: &[(&'static str, &str)],
) -> Result<()> {
    let name_of = |name: &str| {
        let found = golden.iter().find(|(step, _)| *step == name);
        found.map_or(name, |(_, document)| document).to_owned()
    };
    for verdict in judge_served(case, &computed)? {
        let tensor = name_of(verdict.tensor);
        outcome.verdicts.push(verdict.named(tensor));
    }
    let computed = computed.into_iter().map(|(name, values)| (name_of(name), values));
    outcome.computed.extend(computed);
    Ok(())
}
