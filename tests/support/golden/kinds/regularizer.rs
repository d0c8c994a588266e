//! Kind `regularizer`: the loss and the gradients of L1 and L2 penalties, by Keras' rule and the halved one.
use super::super::Document;
use super::Outcome;
use super::vectors::{download, note, upload};
use anyhow::Result;
use batchnorm::{BatchNorm, Config, Element, Engine, Memory, Regularizer};

type Rule = fn(f64, f64) -> Regularizer;

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for (rule, regularizer) in [("keras", Regularizer::new as Rule), ("half", Regularizer::halved)]
    {
        let channels = document.values("weight")?.len();
        let mut bn = BatchNorm::<E::Acc, G>::new(engine, channels, Config::default())?;
        for (name, param) in bn.named_parameters_mut() {
            param.value = upload::<G, E::Acc>(engine, document.values(name)?)?;
            let of = if name == "weight" { "" } else { "_bias" };
            let [l1, l2] = [format!("l1{of}"), format!("l2{of}")].map(|key| document.number(&key));
            param.regularizer = regularizer(l1?, l2?);
        }
        let mut loss = engine.memory().upload(&[f64::NAN])?;
        bn.regularize(Some(G::Memory::view_mut(&mut loss)))?;
        let loss = engine.memory().download(G::Memory::view(&loss))?;
        note(&mut outcome, document, &format!("loss_{rule}"), loss)?;
        for (name, param) in bn.named_parameters() {
            let golden = format!("grad_{name}_{rule}");
            let got = match param.grad() {
                Some(grad) => download::<G, E::Acc>(engine, grad)?,
                None => vec![0.0; channels], // no penalty
            };
            note(&mut outcome, document, &golden, got)?;
        }
    }
    Ok(outcome)
}
