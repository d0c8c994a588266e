//! Kind `optimizer`: steps of `torch.optim` or of Keras on weight and bias, with factors and frozen ones.
use super::super::Document;
use super::Outcome;
use super::vectors::{download, note, upload};
use anyhow::{Result, bail};
use batchnorm::{Algorithm, BatchNorm, Config, Element, Engine, Optimizer};
use serde_json::Value;

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let channels = document.values("weight")?.len();
    let mut bn = BatchNorm::<E::Acc, G>::new(engine, channels, Config::default())?;
    for (name, param) in bn.named_parameters_mut() {
        param.value = upload::<G, E::Acc>(engine, document.values(name)?)?;
        param.lr_factor = document.number(&format!("{name}_lr_factor"))?;
        param.weight_decay_factor = document.number(&format!("{name}_decay_factor"))?;
        param.requires_grad = *document.value(&format!("freeze_{name}"))? == Value::Bool(false);
    }
    let lr = |i: usize| document.value("lr").map(|lr| lr[i].as_f64().unwrap_or(f64::NAN));
    let decay = document.number("weight_decay")?;
    let mut optimizer = Optimizer::new(&bn, algorithm(document)?, lr(0)?)?.weight_decay(decay)?;
    let mut outcome = Outcome::default();
    for i in 0..document.count("steps")? {
        for (name, param) in bn.named_parameters_mut() {
            let grad = document.values(&format!("grad_{name}_{i}"))?;
            param.set_grad(upload::<G, E::Acc>(engine, grad)?)?;
        }
        optimizer.set_lr(lr(i)?)?;
        optimizer.step(&mut bn)?;
        for (name, param) in bn.named_parameters() {
            let got = download::<G, E::Acc>(engine, &param.value)?;
            note(&mut outcome, document, &format!("{name}_{i}"), got)?;
        }
    }
    Ok(outcome)
}

/// By the options' names in torch, or the defaults there.
fn algorithm(document: &Document) -> Result<Algorithm> {
    let options = document.value("options")?;
    let number = |value: &Value, otherwise: f64| value.as_f64().unwrap_or(otherwise);
    let (beta1, beta2) = (number(&options["betas"][0], 0.9), number(&options["betas"][1], 0.999));
    let eps = number(&options["eps"], 1e-8);
    let is = |name: &str| options[name].as_bool().unwrap_or(false);
    let (amsgrad, nesterov) = (is("amsgrad"), is("nesterov"));
    let momentum = number(&options["momentum"], 0.0);
    Ok(match document.text("algorithm")? {
        "sgd" => {
            Algorithm::Sgd { momentum, dampening: number(&options["dampening"], 0.0), nesterov }
        }
        "adam" => Algorithm::Adam { beta1, beta2, eps, amsgrad },
        "adamw" => Algorithm::AdamW { beta1, beta2, eps, amsgrad },
        "keras_sgd" => Algorithm::KerasSgd { momentum, nesterov },
        "keras_adam" => Algorithm::KerasAdam { beta1, beta2, eps, amsgrad },
        "matlab_sgdm" => Algorithm::MatlabSgdm { momentum },
        other => bail!("algorithm: expected one of Algorithm's names, got {other:?}"),
    })
}
