//! What a run exports for other programs to start from.
use std::fs;

use batchnorm::StateDict;

use super::example::data::{Data, Sampler};
use super::example::start;
use super::{checkpoint_of, experiment, folder, run};

#[test]
fn the_start_is_the_initial_weights_and_the_batches_of_every_step() {
    let folder = folder("start");
    let path = folder.join("start");
    // 28 batches an epoch: the steps end in the second.
    let line = format!("--batch 45 --seed 3 --steps 30 --export-start {}", path.display());
    checkpoint_of(&folder, "checkpoint", &line);
    let start = StateDict::from_bytes(&fs::read(&path).unwrap()).unwrap();

    let data = Data::digits().unwrap();
    let untrained = experiment("--seed 3", &data);
    let mut expected = untrained.with.state_dict("with.").unwrap();
    expected.extend(untrained.without.state_dict("without.").unwrap());
    let mut sampler = Sampler::new(3, data.train.len(), 45);
    let batches: Vec<f64> =
        (0..30).flat_map(|step| sampler.batch(step).to_vec()).map(|image| image as f64).collect();
    expected.insert("batches", &[30, 45], &batches).unwrap();
    assert!(start == expected, "{:?}", start.names().collect::<Vec<_>>());
}

/// It takes nothing from the run that it is exported beside, not even its step where that is resumed.
#[test]
fn an_export_changes_no_run_and_no_run_an_export() {
    let folder = folder("export");
    let start = |name: &str| format!("--steps 30 --export-start {}", folder.join(name).display());
    let plain = checkpoint_of(&folder, "plain", "--steps 30");
    assert!(checkpoint_of(&folder, "beside", &start("start")) == plain);

    checkpoint_of(&folder, "part", "--steps 25");
    let resume = format!("--resume {}", folder.join("part").display());
    let resumed = format!("{} {resume}", start("resumed"));
    assert!(checkpoint_of(&folder, "whole", &resumed) == plain);
    let bytes = |name: &str| fs::read(folder.join(name)).unwrap();
    assert!(bytes("start") == bytes("resumed"));
}

#[test]
fn a_start_of_too_many_batches_or_to_nowhere_is_refused() {
    let data = Data::digits().unwrap();
    for steps in [(1 << 27) / 60 + 1, 1 << 53] {
        let refused = start::to_bytes(&mut experiment("", &data), steps).map(drop);
        let error = refused.unwrap_err().to_string();
        let expected = format!(
            "at most 134217728 images in the batches of all steps, got {steps} batches of 60"
        );
        assert!(error.contains(&expected), "{error}");
    }
    let out = folder("start_refused").display().to_string();
    let line = format!("--steps 3 --out {out} --export-start /no/such/folder/file");
    let error = run(&line).unwrap_err().to_string();
    assert_eq!(error, "/no/such/folder/file: cannot be written");
}
