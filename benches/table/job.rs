//! An operation ready to run again and again on an engine, into memory that exists.
use super::check::{self, Got};
use super::floor::{Floor, HostFloor};
use super::{Case, Pass, data};
use anyhow::{Context, Result, ensure};
use batchnorm::{
    Activation, Backward, Cpu, DType, Element, Engine, ForwardEval, ForwardTrain, Memory,
    Reference, Saved, Shape,
};
use half::{bf16, f16};
use std::time::Instant;

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// How long an operation takes on an engine. Engines on a device measure there instead.
pub trait Timed: Engine {
    /// For version lines: the engine and what it runs on.
    fn describe(&self) -> String;
    /// The host's threads that it works on; 0 where it works on a device.
    fn threads(&self) -> usize {
        rayon::current_num_threads()
    }
    /// What runs for a case.
    fn explain(&self, case: &Case) -> Result<String> {
        Ok(format!("{} {}", self.name(), case.shape()?))
    }
    /// Seconds that `operation` takes, when all of its work is done.
    fn time(&self, operation: impl FnOnce() -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        operation()?;
        Ok(start.elapsed().as_secs_f64())
    }
    /// What the memory that it works in takes for as many bytes as the case must move.
    fn floor(&self, case: &Case) -> Result<Box<dyn Floor>> {
        Ok(Box::new(HostFloor::new(case)?))
    }
}

impl Timed for Cpu {
    fn describe(&self) -> String {
        match self.simd_level() {
            Ok(level) => format!("cpu {level}"),
            Err(error) => format!("cpu ({error})"),
        }
    }
}
impl Timed for Reference {
    fn describe(&self) -> String {
        "reference".into()
    }
}

/// What a peer is called and which version of it runs: `batchnorm 0.1.0 cpu avx512`.
pub fn version(engine: &impl Timed) -> String {
    format!("batchnorm {} {}", env!("CARGO_PKG_VERSION"), engine.describe())
}

/// One operation with its tensors.
pub trait Job {
    /// Runs it once; seconds.
    fn time(&mut self) -> Result<f64>;
}

/// A job that was run once, so that all its memory has been touched, and found right.
pub struct Ready {
    pub job: Box<dyn Job>,
    /// What ran.
    pub what: String,
    /// `[sum |y|]`, or `[sum |grad_x|, sum |grad_weight|, sum |grad_bias|]`.
    pub sums: Vec<f64>,
}

/// Makes the case's tensors, runs it once and compares with the f64 reference.
///
/// # Errors
/// An engine that does not serve the case, too little memory, a result that is wrong.
pub fn prepare<G: Timed>(engine: &G, case: &Case) -> Result<Ready> {
    check_memory(case)?;
    match case.dtype {
        DType::F32 => Work::<f32, G>::prepare(engine, case),
        DType::F16 => Work::<f16, G>::prepare(engine, case),
        DType::Bf16 => Work::<bf16, G>::prepare(engine, case),
        other => anyhow::bail!("dtype: expected f32, bf16 or f16, got {other}"),
    }
}

/// A failed allocation would end the process, and with it a whole comparison.
fn check_memory(case: &Case) -> Result<()> {
    let elements = case.dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    // Six tensors at most, a copy of two while they are made or checked.
    let needed = elements.and_then(|n| n.checked_mul(8 * case.width()));
    let Some(available) = available_memory() else { return Ok(()) };
    let needed = needed.with_context(|| format!("shape: {:?} overflows", case.dims))?;
    ensure!(
        needed < available / 10 * 9,
        "{case} needs about {} MiB, of which {} are available",
        needed >> 20,
        available >> 20
    );
    Ok(())
}

/// Bytes; none where the system does not tell as Linux does.
fn available_memory() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib << 10)
}

type Mem<G> = <G as Engine>::Memory;
type Buf<G, T> = <Mem<G> as Memory>::Buf<T>;

/// The tensors of one case.
struct Work<E: Element<Acc = f32>, G: Engine> {
    engine: G,
    case: Case,
    shape: Shape,
    x: Buf<G, E>,
    residual: Option<Buf<G, E>>,
    weight: Buf<G, f32>,
    bias: Buf<G, f32>,
    running_mean: Buf<G, f32>,
    running_var: Buf<G, f32>,
    y: Buf<G, E>,
    saved: Saved<Mem<G>, f32>,
    gradients: Option<Gradients<E, G>>,
}

/// What only a backward has.
struct Gradients<E: Element<Acc = f32>, G: Engine> {
    of_y: Buf<G, E>,
    of_x: Buf<G, E>,
    of_residual: Option<Buf<G, E>>,
    of_weight: Buf<G, f32>,
    of_bias: Buf<G, f32>,
}

impl<E: Element<Acc = f32>, G: Timed> Work<E, G> {
    fn prepare(engine: &G, case: &Case) -> Result<Ready> {
        let mut work = Self::new(engine, case)?;
        if case.op.pass == Pass::Backward {
            work.train()?;
        }
        work.run()?;
        let got = work.results()?;
        check::against_reference(case, &work.shape, &got)?;
        let what = engine.explain(case)?;
        Ok(Ready { sums: check::sums(&got), what, job: Box::new(work) })
    }

    fn new(engine: &G, case: &Case) -> Result<Self> {
        let (memory, shape) = (engine.memory(), case.shape()?);
        let (n, c) = (shape.len(), shape.channels());
        let tensor = |seed| memory.upload(&data::tensor::<E>(case, seed));
        let residual = |seed| case.op.residual.then(|| tensor(seed)).transpose();
        let gradients = || {
            let of_residual = case.op.residual.then(|| memory.zeros(n)).transpose()?;
            anyhow::Ok(Gradients {
                of_y: tensor(data::GRAD_Y)?,
                of_x: memory.zeros(n)?,
                of_residual,
                of_weight: memory.zeros(c)?,
                of_bias: memory.zeros(c)?,
            })
        };
        Ok(Self {
            engine: engine.clone(),
            case: case.clone(),
            shape,
            x: tensor(data::X)?,
            residual: residual(data::RESIDUAL)?,
            weight: memory.upload(&data::weight(c))?,
            bias: memory.upload(&data::bias(c))?,
            running_mean: memory.zeros(c)?,
            running_var: memory.upload(&vec![1.0; c])?,
            y: memory.zeros(n)?,
            saved: Saved::new(),
            gradients: (case.op.pass == Pass::Backward).then(gradients).transpose()?,
        })
    }

    fn run(&mut self) -> Result<()> {
        match self.case.op.pass {
            Pass::Train => self.train(),
            Pass::Infer => self.infer(),
            Pass::Backward => self.backward(),
        }
    }

    fn activation(&self) -> Activation {
        if self.case.op.relu { Activation::Relu } else { Activation::Identity }
    }

    fn train(&mut self) -> Result<()> {
        let activation = self.activation();
        let mean = Mem::<G>::view_mut(&mut self.running_mean);
        let var = Mem::<G>::view_mut(&mut self.running_var);
        let mut args = ForwardTrain::<Mem<G>, E>::new(
            Mem::<G>::view(&self.x),
            Mem::<G>::view_mut(&mut self.y),
        )
        .weight(Mem::<G>::view(&self.weight))
        .bias(Mem::<G>::view(&self.bias))
        .activation(activation)
        .eps(EPS)
        .running(mean, var, MOMENTUM)
        .saved(&mut self.saved)
        .y_is_kept(true);
        args.residual = self.residual.as_ref().map(|r| Mem::<G>::view(r));
        Ok(self.engine.forward_train(&self.shape, args)?)
    }

    fn infer(&mut self) -> Result<()> {
        let activation = self.activation();
        let mut args = ForwardEval::<Mem<G>, E>::new(
            Mem::<G>::view(&self.x),
            Mem::<G>::view_mut(&mut self.y),
            Mem::<G>::view(&self.running_mean),
            Mem::<G>::view(&self.running_var),
        )
        .weight(Mem::<G>::view(&self.weight))
        .bias(Mem::<G>::view(&self.bias))
        .activation(activation)
        .eps(EPS);
        args.residual = self.residual.as_ref().map(|r| Mem::<G>::view(r));
        Ok(self.engine.forward_eval(&self.shape, args)?)
    }

    fn backward(&mut self) -> Result<()> {
        let gradients = self.gradients.as_mut().context("backward: no gradients to write")?;
        let mut args = Backward::<Mem<G>, E>::new(
            &self.saved,
            Mem::<G>::view(&self.x),
            Mem::<G>::view(&gradients.of_y),
        )
        .grad_x(Mem::<G>::view_mut(&mut gradients.of_x))
        .grad_weight(Mem::<G>::view_mut(&mut gradients.of_weight))
        .grad_bias(Mem::<G>::view_mut(&mut gradients.of_bias));
        args.y = Some(Mem::<G>::view(&self.y));
        args.grad_residual = gradients.of_residual.as_mut().map(|r| Mem::<G>::view_mut(r));
        Ok(self.engine.backward(&self.shape, args)?)
    }

    fn results(&self) -> Result<Got<E>> {
        let memory = self.engine.memory();
        let tensor = |buf: &Buf<G, E>| memory.download(Mem::<G>::view(buf));
        let channels = |buf: &Buf<G, f32>| memory.download(Mem::<G>::view(buf));
        let gradients = self.gradients.as_ref().map(|g| {
            anyhow::Ok(check::Gradients {
                of_x: tensor(&g.of_x)?,
                of_residual: g.of_residual.as_ref().map(tensor).transpose()?,
                of_weight: channels(&g.of_weight)?,
                of_bias: channels(&g.of_bias)?,
            })
        });
        Ok(Got {
            y: tensor(&self.y)?,
            running_mean: channels(&self.running_mean)?,
            running_var: channels(&self.running_var)?,
            gradients: gradients.transpose()?,
        })
    }
}

impl<E: Element<Acc = f32>, G: Timed> Job for Work<E, G> {
    fn time(&mut self) -> Result<f64> {
        let engine = self.engine.clone();
        engine.time(|| self.run())
    }
}
