//! The golden cases of the repository, through burn's tensors.
use crate::support::{device, values};
use anyhow::{Context, Result, ensure};
use batchnorm_burn::{Activation, BatchNormConfig, OneValue, Variance};
use burn::module::{Param, RunningState};
use burn::tensor::{DType, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

struct Case {
    name: String,
    metadata: HashMap<String, String>,
    tensors: HashMap<String, TensorData>,
}

impl Case {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path)?;
        let metadata = SafeTensors::read_metadata(&bytes)?.1.metadata().clone().unwrap_or_default();
        let mut tensors = HashMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
            let dtype = match view.dtype() {
                Dtype::F64 => DType::F64,
                Dtype::F32 => DType::F32,
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                _ => continue, // counts
            };
            let (bytes, dims) = (view.data().to_vec(), view.shape().to_vec());
            tensors.insert(name, TensorData::from_bytes_vec(bytes, dims, dtype));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, metadata, tensors })
    }
    fn text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(|text| text.trim_matches('"'))
    }
    fn number(&self, key: &str) -> Result<f64> {
        let text = self.text(key).with_context(|| format!("{}: {key}", self.name))?;
        Ok(text.parse()?)
    }
    fn data(&self, name: &str) -> Result<&TensorData> {
        self.tensors.get(name).with_context(|| format!("{}: {name}", self.name))
    }
    fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        Ok(self.data(name)?.clone().convert::<f64>().try_to_vec().expect("numbers"))
    }
    fn dtype(&self) -> Result<DType> {
        Ok(self.data("x")?.dtype())
    }
    fn is_frozen(&self) -> bool {
        self.metadata.contains_key("kind")
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
            let case = Case::read(&path)?;
            if case.metadata.get("kind").is_none_or(|kind| kind == "\"frozen\"") {
                cases.push(case);
            }
        }
    }
    Ok(cases)
}

/// The axes of a case with that of channels behind that of the batch, as burn's layers have it; and back.
fn turns<const D: usize>(axis: usize) -> [[usize; D]; 2] {
    let mut axes: Vec<usize> = (0..D).filter(|k| *k != axis).collect();
    axes.insert(1, axis);
    let mut back = [0; D];
    axes.iter().enumerate().for_each(|(k, &axis)| back[axis] = k);
    [axes.try_into().expect("as many"), back]
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

/// What was computed: its name in the case, its type, its values.
type Computed = (String, DType, Vec<f64>);

fn near(
    case: &Case,
    name: &str,
    (dtype, got): (DType, &[f64]),
    bar: f64,
    floor: f64,
) -> Result<()> {
    // In the type of what was computed, in which large values overflow.
    let want = case.data(name)?.clone().convert_dtype(dtype).convert::<f64>();
    let want: Vec<f64> = want.try_to_vec().expect("numbers");
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
fn computed<const D: usize>(case: &Case, axis: usize, trains: bool) -> Result<Vec<Computed>> {
    let dtype = case.dtype()?;
    let own = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = Tensor::<D>::from_data(case.data("x")?.clone(), (&device(), dtype)).require_grad();
    let channels = x.dims()[axis];
    let of = |name: &str, or: f64| {
        let default = || TensorData::new(vec![or; channels], [channels]);
        let data = case.tensors.get(name).cloned().unwrap_or_else(default).convert_dtype(own);
        Tensor::<1>::from_data(data, (&device(), own))
    };
    let config = BatchNormConfig::new(channels).with_epsilon(case.number("eps")?);
    let config = config.with_momentum(case.number("momentum").unwrap_or(0.1));
    let bn = config.try_init(&device())?.with_activation(case.activation()?);
    let mut bn = bn.with_variance(Variance::Unbiased).with_one_value(OneValue::Refuse); // PyTorch's
    bn.gamma = Param::from_tensor(of("weight", 1.));
    bn.beta = Param::from_tensor(of("bias", 0.));
    bn.running_mean = RunningState::new(of("running_mean", 0.));
    bn.running_var = RunningState::new(of("running_var", 1.));
    bn.training = bn.training.with_value(trains);

    let [to, back] = turns::<D>(axis);
    let tensor = |name: &str| -> Result<Tensor<D>> {
        Ok(Tensor::from_data(case.data(name)?.clone(), (&device(), dtype)))
    };
    let residual = case.tensors.contains_key("residual").then(|| tensor("residual")).transpose()?;
    let residual = residual.map(Tensor::require_grad);
    let seen = x.clone().permute(to);
    let y = match &residual {
        Some(residual) => bn.try_forward_add(seen, residual.clone().permute(to))?,
        None => bn.try_forward(seen)?,
    };
    let y = y.permute(back);
    let grad_y = case.data("grad_y")?.clone().convert_dtype(dtype);
    let grad_y = Tensor::<D>::from_data(grad_y, (&device(), dtype));
    let grads = (y.clone() * grad_y).sum().backward();
    let eval = if trains { "" } else { "_eval" };
    let grad = |name: &str| format!("grad_{name}{eval}");
    let mut all = vec![(format!("y{eval}"), dtype, values(&y))];
    for (name, t) in [("x", Some(&x)), ("residual", residual.as_ref())] {
        let Some(t) = t else { continue };
        all.push((grad(name), dtype, values(&t.grad(&grads).context("no gradient")?)));
    }
    for (name, param) in [("weight", &bn.gamma), ("bias", &bn.beta)] {
        if case.tensors.contains_key(name) {
            let got = param.val().grad(&grads).context("no gradient")?;
            all.push((grad(name), own, values(&got)));
        }
    }
    if trains {
        all.push(("new_running_mean".into(), own, values(&bn.running_mean.value_sync())));
        all.push(("new_running_var".into(), own, values(&bn.running_var.value_sync())));
    }
    Ok(all)
}

/// Whether an output rounds to 0 that is none: behind a ReLU the gradient there is the rounded output's, not the
/// case's. The library's own suite judges these.
fn rounds_to_a_kink(case: &Case, trains: bool) -> Result<bool> {
    let name = if trains || case.is_frozen() { "y" } else { "y_eval" };
    let exact = case.numbers(name)?;
    let rounded = case.data(name)?.clone().convert_dtype(case.dtype()?).convert::<f64>();
    let rounded: Vec<f64> = rounded.try_to_vec().expect("numbers");
    Ok(exact.iter().zip(&rounded).any(|(exact, rounded)| *exact != 0.0 && *rounded == 0.0))
}

/// How large the terms are whose difference the gradient of x is.
fn terms(case: &Case) -> Result<f64> {
    let Ok(var) = case.numbers("batch_var") else { return Ok(1e-3) };
    let (least, eps) = (var.into_iter().fold(f64::INFINITY, f64::min), case.number("eps")?);
    let largest = |name: &str| {
        let all = case.numbers(name).unwrap_or_else(|_| vec![1.0]);
        all.into_iter().fold(0.0, |max, v| v.abs().max(max))
    };
    // Of the accumulating type's rounding, of which the bar has a thousand.
    Ok(1e-3 * largest("grad_y") * largest("weight") / (least + eps).sqrt())
}

#[test]
fn every_case_of_a_step() -> Result<()> {
    let cases = cases()?;
    let (mut dtypes, mut judged) = (BTreeSet::new(), 0);
    for case in &cases {
        let axis = case.number("axis")? as usize;
        let bar = bar(case.dtype()?);
        for trains in [true, false].into_iter().filter(|trains| !(case.is_frozen() && *trains)) {
            let all = match case.data("x")?.shape().len() {
                2 => computed::<2>(case, axis, trains)?,
                3 => computed::<3>(case, axis, trains)?,
                4 => computed::<4>(case, axis, trains)?,
                5 => computed::<5>(case, axis, trains)?,
                rank => anyhow::bail!("{}: rank {rank}", case.name),
            };
            for (name, dtype, got) in all {
                if rounds_to_a_kink(case, trains)? && name.starts_with("grad") {
                    continue;
                }
                // Files of frozen layers name what they hold without the mode.
                let name = if case.is_frozen() { name.trim_end_matches("_eval") } else { &name };
                let floor = if name == "grad_x" { bar * terms(case)? } else { 1e-3 * bar };
                near(case, name, (dtype, &got), bar, floor)?;
                judged += 1;
            }
        }
        dtypes.insert(format!("{:?}", case.dtype()?));
    }
    assert_eq!(dtypes.into_iter().collect::<Vec<_>>(), ["BF16", "F16", "F32", "F64"]);
    assert!(cases.len() > 40 && judged > 400, "{} cases, {judged} tensors", cases.len());
    Ok(())
}
