//! Decides whether what an engine computed is right.
use super::super::oracle::derivative;
use super::super::tolerance::agrees;
use super::bars::Bars;
use super::run::compute_pass;
use super::{COMPUTED, Case, Content, Entry, Ran, Tensors, narrow, widen};
use anyhow::{Result, ensure};
use batchnorm::{Activation, DType, dispatch};

/// What is to be said of one tensor: of the element that is nearest to its tolerance, or furthest
/// beyond it.
#[derive(Debug, Clone)]
pub struct Verdict<N = &'static str> {
    pub tensor: N,
    pub index: usize,
    pub channel: usize,
    pub expected: f64,
    pub got: f64,
    /// `|got - expected|`; 0 where infinities or NaN agree, infinite where they do not.
    pub error: f64,
    pub tolerance: f64,
    pub pass: bool,
    /// What differs if not the value.
    pub note: Option<String>,
}

/// One verdict for each of [`COMPUTED`] that the case has, in that order.
///
/// At a kink of the activation a gradient is that of the engine's own side, which its y shows. Where
/// that is not PyTorch's in float64, the value before the activation must lie within y's tolerance of
/// the kink, otherwise y is wrong; and the gradients expected are those of the reference in f64 by the
/// engine's own derivatives.
pub fn judge(case: &Case, computed: &Tensors) -> Result<Vec<Verdict>> {
    let training = Pass::new(case, computed, false)?;
    let frozen = Pass::new(case, computed, true)?;
    let entries = COMPUTED.iter().filter(|entry| case.has(entry));
    entries
        .map(|entry| {
            let pass = if entry.name.ends_with("_eval") { &frozen } else { &training };
            pass.verdict(entry)
        })
        .collect()
}

impl Verdict {
    /// The same of a tensor that has another name elsewhere.
    pub fn named<N>(self, tensor: N) -> Verdict<N> {
        let Self { tensor: _, index, channel, expected, got, error, tolerance, pass, note } = self;
        Verdict { tensor, index, channel, expected, got, error, tolerance, pass, note }
    }
}

impl Ran {
    /// [`judge`], of those that were computed where the engine has refused any.
    pub fn judge(&self, case: &Case) -> Result<Vec<Verdict>> {
        if self.refused.is_empty() {
            return judge(case, &self.tensors);
        }
        judge_served(case, &self.tensors)
    }
}

/// [`judge`], of those that were computed.
pub fn judge_served(case: &Case, computed: &Tensors) -> Result<Vec<Verdict>> {
    let mut verdicts = Vec::new();
    for (eval, y) in [(false, "y"), (true, "y_eval")] {
        if !computed.contains_key(y) {
            continue;
        }
        let pass = Pass::new(case, computed, eval)?;
        let own = |entry: &&Entry| entry.name.ends_with("_eval") == eval;
        let there = |entry: &&Entry| computed.contains_key(entry.name);
        for entry in COMPUTED.iter().filter(own).filter(there) {
            verdicts.push(pass.verdict(entry)?);
        }
    }
    Ok(verdicts)
}

/// Training, or the same with the running statistics given.
struct Pass<'a> {
    case: &'a Case,
    computed: &'a Tensors,
    bars: Bars,
    /// The engine's own derivatives where they are not all the golden ones.
    own: Option<Own>,
}

struct Own {
    /// By the reference in f64 on `derivative * grad_y` and without an activation: y is the value
    /// before it, the gradients are those that the derivatives ask for.
    reference: Tensors,
    /// Where they are not the golden ones.
    differs: Vec<usize>,
}

fn got<'a>(case: &Case, computed: &'a Tensors, entry: &Entry) -> Result<&'a [f64]> {
    let values = computed.get(entry.name).map_or(&[][..], |v| v);
    let expected: usize = case.dims_of(entry.content).iter().product();
    let (name, tensor) = (&case.name, entry.name);
    ensure!(
        values.len() == expected,
        "{name}: {tensor}: expected {expected} elements, got {}",
        values.len()
    );
    Ok(values)
}

impl<'a> Pass<'a> {
    fn new(case: &'a Case, computed: &'a Tensors, eval: bool) -> Result<Self> {
        let y = if eval { "y_eval" } else { "y" };
        let entry = Entry { name: y, content: Content::Elements, with: None };
        let (got, golden) = (got(case, computed, &entry)?, case.tensor(y)?);
        let mut linear = case.widened();
        linear.activation = Activation::Identity;
        let z = match case.activation {
            Activation::Identity => golden.to_vec(),
            _ => compute_pass(&linear, eval)?.remove(y).unwrap_or_default(),
        };
        let at = |y: &[f64], derivative: fn(Activation, f64, f64) -> f64| -> Vec<f64> {
            z.iter().zip(y).map(|(&z, &y)| derivative(case.activation, z, y)).collect()
        };
        let own = at(got, dispatch!(case.dtype, E => derivative::<E>));
        let golden = at(golden, derivative::<f64>);
        let bars = Bars::new(case, eval, &own)?;
        let differs: Vec<usize> = (0..own.len()).filter(|&i| own[i] != golden[i]).collect();
        let own =
            (!differs.is_empty()).then(|| Own::new(linear, eval, &own, differs)).transpose()?;
        Ok(Self { case, computed, bars, own })
    }

    fn verdict(&self, entry: &Entry) -> Result<Verdict> {
        let Self { case, computed, .. } = *self;
        let (tensor, is_gradient) = (entry.name, entry.name.starts_with("grad_"));
        let got = got(case, computed, entry)?;
        let expected = match &self.own {
            Some(own) if is_gradient => own.reference.get(tensor).map_or(&[][..], |values| values),
            _ => case.tensor(tensor)?,
        };
        let dtype = case.dtype_of(entry.content);
        let max_abs = max_abs(dtype, expected);
        let mut worst: Option<(f64, Verdict)> = None;
        for (index, (&got, &expected)) in got.iter().zip(expected).enumerate() {
            let channel = match entry.content {
                Content::Elements => case.channel_of(index),
                _ => index,
            };
            let tolerance = self.bars.tolerance(entry, channel, max_abs);
            let mut pass = agrees(got, expected, tolerance, dtype);
            let mut error = (got - expected).abs();
            if !error.is_finite() {
                error = if pass { 0.0 } else { f64::INFINITY };
            }
            let mut note = None;
            if let Some(own) = self.own.as_ref().filter(|_| tensor.starts_with('y'))
                && own.differs.binary_search(&index).is_ok()
                && let Some(before) = own.reference.get(tensor).map(|y| y[index])
                && let distance = from_kink(case.activation, before)
                && distance > tolerance
            {
                (pass, error) = (false, distance);
                let activation = case.activation;
                note = Some(format!("another side of {activation}'s kink: {before:e} before it"));
            }
            let severity = error / tolerance;
            if worst.as_ref().is_none_or(|(most, _)| severity > *most) {
                let verdict =
                    Verdict { tensor, index, channel, expected, got, error, tolerance, pass, note };
                worst = Some((severity, verdict));
            }
        }
        let empty = || Verdict {
            tensor,
            index: 0,
            channel: 0,
            expected: 0.0,
            got: 0.0,
            error: 0.0,
            tolerance: 0.0,
            pass: true,
            note: None,
        };
        Ok(worst.map_or_else(empty, |(_, verdict)| verdict))
    }
}

/// The largest value, of those that the dtype can hold: what lies beyond it says nothing about how
/// the others are rounded.
fn max_abs(dtype: DType, values: &[f64]) -> f64 {
    let fits = |v: f64| dispatch!(dtype, E => widen(narrow::<E>(v)).is_finite());
    values.iter().filter(|v| fits(**v)).fold(0.0, |max, v| v.abs().max(max))
}

/// How far a value is from where the derivative jumps; NaN and what has no such place are infinitely far.
fn from_kink(activation: Activation, z: f64) -> f64 {
    let kinks: &[f64] = match activation {
        Activation::Relu | Activation::LeakyRelu { .. } => &[0.0],
        Activation::Relu6 => &[0.0, 6.0],
        Activation::HardSwish => &[-3.0, 3.0],
        _ => &[],
    };
    kinks.iter().map(|kink| (z - kink).abs()).fold(f64::INFINITY, f64::min)
}

impl Own {
    /// `linear` is the case in f64, without its activation.
    fn new(mut linear: Case, eval: bool, derivatives: &[f64], differs: Vec<usize>) -> Result<Self> {
        let g = linear.tensor("grad_y")?.iter().zip(derivatives);
        let g = g.map(|(&g, &by)| if by == 0.0 { 0.0 } else { g * by }).collect();
        linear.set("grad_y", g);
        Ok(Self { reference: compute_pass(&linear, eval)?, differs })
    }
}
