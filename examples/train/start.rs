//! What a run starts from, as a safetensors file: another program that takes it over trains on the same.
//!
//! | name | |
//! |---|---|
//! | `with.layer1.weight`, `with.bn1.weight`, `without.layer1.bias`, ... | the networks before the first step, as in a checkpoint |
//! | `batches` | f64 `[steps, batch]`: the training images of every step, counted from 0 |
use anyhow::{Result, ensure};
use batchnorm::{Engine, Memory};

use super::backend::Backend;
use super::experiment::Experiment;

/// Images in the batches of all steps: a file of 1 GiB.
const LARGEST: u64 = 1 << 27;

/// The start of a run of so many steps, which has not taken any yet.
pub fn to_bytes<M: Memory, G: Engine<Memory = M>, B: Backend<Memory = M>>(
    run: &mut Experiment<'_, G, B>,
    steps: u64,
) -> Result<Vec<u8>> {
    let size = run.batch(0).len();
    ensure!(
        steps.checked_mul(size as u64).is_some_and(|images| images <= LARGEST),
        "--export-start: expected at most {LARGEST} images in the batches of all steps, got {steps} \
         batches of {size}"
    );
    let mut dict = run.with.state_dict("with.")?;
    dict.extend(run.without.state_dict("without.")?);
    let mut batches = Vec::new();
    for step in 0..steps {
        batches.extend(run.batch(step).iter().map(|&image| image as f64));
    }
    dict.insert("batches", &[steps as usize, size], &batches)?;
    Ok(dict.to_bytes()?)
}
