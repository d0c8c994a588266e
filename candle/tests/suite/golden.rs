//! The golden cases of the repository, through candle's tensors.
use crate::support::CPU;
use anyhow::{Context, Result, ensure};
use batchnorm_candle::{Activation, BatchNorm};
use candle_core::{DType, Tensor, Var};
use candle_nn::ModuleT;
use safetensors::SafeTensors;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

struct Case {
    name: String,
    metadata: HashMap<String, String>,
    tensors: HashMap<String, Tensor>,
}

impl Case {
    fn text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(|text| text.trim_matches('"'))
    }
    fn number(&self, key: &str) -> Result<f64> {
        let text = self.text(key).with_context(|| format!("{}: {key}", self.name))?;
        Ok(text.parse()?)
    }
    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("{}: {name}", self.name))
    }
    fn activation(&self) -> Result<Activation> {
        let Some(text) = self.text("activation") else { return Ok(Activation::Identity) };
        let known = Activation::ALL.into_iter().find(|known| known.name() == text);
        Ok(match known.with_context(|| format!("{}: activation {text}", self.name))? {
            Activation::LeakyRelu { .. } => {
                Activation::LeakyRelu { negative_slope: self.number("negative_slope")? }
            }
            other => other,
        })
    }
}

/// Cases of one training step, and of frozen statistics.
fn cases() -> Result<Vec<Case>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let mut cases = vec![];
    for folder in [folder.clone(), folder.join("frameworks")] {
        let mut files: Vec<_> = std::fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
        files.sort_by_key(|file| file.path());
        for path in files.iter().map(|file| file.path()) {
            if path.extension().is_none_or(|extension| extension != "safetensors") {
                continue;
            }
            let bytes = std::fs::read(&path)?;
            let metadata =
                SafeTensors::read_metadata(&bytes)?.1.metadata().clone().unwrap_or_default();
            if metadata.get("kind").is_some_and(|kind| kind != "\"frozen\"") {
                continue;
            }
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            cases.push(Case {
                name,
                metadata,
                tensors: candle_core::safetensors::load(path, &CPU)?,
            });
        }
    }
    Ok(cases)
}

/// A tensor with the axis of channels behind that of the batch, as candle's layers have it.
fn turned(t: &Tensor, axis: usize) -> Result<Tensor> {
    let mut axes: Vec<usize> = (0..t.rank()).filter(|k| *k != axis).collect();
    axes.insert(1.min(axes.len()), axis);
    Ok(t.permute(axes)?)
}

/// The other way round.
fn turned_back(t: &Tensor, axis: usize) -> Result<Tensor> {
    let mut axes: Vec<usize> = (0..t.rank()).filter(|k| *k != 1).collect();
    axes.insert(axis, 1);
    Ok(t.permute(axes)?)
}

fn values(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

/// How far rounding to a type, and sums of it, may be from the case, in parts of its largest value.
fn bar(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-11,
        DType::F32 => 2e-4,
        DType::F16 => 4e-3,
        _ => 2e-2,
    }
}

fn near(case: &Case, name: &str, got: &Tensor, bar: f64, floor: f64) -> Result<()> {
    // In the type of what was computed, in which large values overflow.
    let want = case.tensor(name)?.to_dtype(got.dtype())?;
    let (got, want) = (values(got)?, values(&want)?);
    ensure!(got.len() == want.len(), "{} {name}: {} of {}", case.name, got.len(), want.len());
    let max = want.iter().fold(0f64, |max, v| max.max(if v.is_finite() { v.abs() } else { 0. }));
    for (k, (got, want)) in got.iter().zip(&want).enumerate() {
        let same = got == want || got.is_nan() && want.is_nan();
        ensure!(
            same || (got - want).abs() <= (bar * max).max(floor),
            "{} {name} {k}: {got}, not {want}",
            case.name
        );
    }
    Ok(())
}

/// What a pass through the layer computes, in the order of the case's axes; `_eval` behind gradients' names
/// where the statistics are the running ones.
fn computed(case: &Case, axis: usize, train: bool) -> Result<Vec<(String, Tensor)>> {
    let dtype = case.tensor("x")?.dtype();
    let own = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = case.tensor("x")?;
    let channels = x.dim(axis)?;
    let of = |name: &str, or: f64| -> Result<Var> {
        let given = case.tensors.get(name).map(|t| t.to_dtype(own)).transpose()?;
        let default = || Tensor::full(or, channels, &CPU)?.to_dtype(own);
        Ok(Var::from_tensor(&given.map_or_else(default, Ok)?)?)
    };
    let (weight, bias) = (of("weight", 1.)?, of("bias", 0.)?);
    let (mean, var) = (of("running_mean", 0.)?, of("running_var", 1.)?);
    let momentum = case.number("momentum").unwrap_or(0.1);
    let [m, v, w, b] = [&mean, &var, &weight, &bias].map(|var| var.as_tensor().clone());
    let bn = BatchNorm::new_with_momentum(channels, m, v, w, b, case.number("eps")?, momentum)?;
    let bn = bn.with_activation(case.activation()?);
    let x = Var::from_tensor(x)?;
    let residual = case.tensors.get("residual").map(Var::from_tensor).transpose()?;
    let seen = turned(&x, axis)?;
    let y = match &residual {
        Some(residual) => bn.forward_add(&seen, &turned(residual, axis)?, train)?,
        None => bn.forward_t(&seen, train)?,
    };
    let y = turned_back(&y, axis)?;
    let grads = (&y * case.tensor("grad_y")?)?.sum_all()?.backward()?;
    let eval = if train { "" } else { "_eval" };
    let mut all = vec![(format!("y{eval}"), y)];
    let residual = residual.as_ref().map(|residual| ("residual", residual));
    let given = [("weight", &weight), ("bias", &bias)];
    let given = given.into_iter().filter(|(name, _)| case.tensors.contains_key(*name));
    for (name, var) in [("x", &x)].into_iter().chain(residual).chain(given) {
        let grad = grads.get(var).with_context(|| format!("{}: grad_{name}", case.name))?;
        all.push((format!("grad_{name}{eval}"), grad.clone()));
    }
    if train {
        all.push(("new_running_mean".into(), mean.into_inner()));
        all.push(("new_running_var".into(), var.into_inner()));
    }
    Ok(all)
}

/// Whether an output rounds to 0 that is none: behind a ReLU the gradient there is the rounded output's, not the
/// case's. The library's own suite judges these.
fn rounds_to_a_kink(case: &Case, train: bool) -> Result<bool> {
    let name = if train || case.metadata.contains_key("kind") { "y" } else { "y_eval" };
    let exact = case.tensor(name)?;
    let rounded = exact.to_dtype(case.tensor("x")?.dtype())?;
    let pairs = values(exact)?.into_iter().zip(values(&rounded)?);
    Ok(pairs.into_iter().any(|(exact, rounded)| exact != 0.0 && rounded == 0.0))
}

/// How large the terms are whose difference the gradient of x is.
fn terms(case: &Case) -> Result<f64> {
    let Ok(var) = case.tensor("batch_var") else { return Ok(1e-3) };
    let (least, eps) =
        (values(var)?.into_iter().fold(f64::INFINITY, f64::min), case.number("eps")?);
    let largest = |name: &str| -> Result<f64> {
        let all = case.tensors.get(name).map(values).transpose()?.unwrap_or_else(|| vec![1.0]);
        Ok(all.into_iter().fold(0.0, |max, v| v.abs().max(max)))
    };
    // Of the accumulating type's rounding, of which the bar has a thousand.
    Ok(1e-3 * largest("grad_y")? * largest("weight")? / (least + eps).sqrt())
}

#[test]
fn every_case_of_a_step() -> Result<()> {
    let cases = cases()?;
    let (mut dtypes, mut judged) = (BTreeSet::new(), 0);
    for case in &cases {
        let axis = case.number("axis")? as usize;
        let frozen = case.metadata.contains_key("kind");
        let bar = bar(case.tensor("x")?.dtype());
        for train in [true, false].into_iter().filter(|train| !(frozen && *train)) {
            for (name, got) in computed(case, axis, train)? {
                if rounds_to_a_kink(case, train)? && name.starts_with("grad") {
                    continue;
                }
                // Files of frozen layers name what they hold without the mode.
                let name = if frozen { name.trim_end_matches("_eval") } else { &name };
                let floor = if name == "grad_x" { bar * terms(case)? } else { 1e-3 * bar };
                near(case, name, &got, bar, floor)?;
                judged += 1;
            }
        }
        dtypes.insert(case.tensor("x")?.dtype().as_str());
    }
    assert_eq!(dtypes.into_iter().collect::<Vec<_>>(), ["bf16", "f16", "f32", "f64"]);
    assert!(cases.len() > 40 && judged > 400, "{} cases, {judged} tensors", cases.len());
    Ok(())
}
