//! Runs that are put aside and taken up again.
use std::fs;

use batchnorm::StateDict;

use super::example::checkpoint;
use super::example::data::Data;
use super::{checkpoint_of, experiment, folder, run};

#[test]
fn a_resumed_run_is_bit_for_bit_the_uninterrupted_one() {
    let folder = folder("resume");
    for activation in ["sigmoid", "relu"] {
        let line = format!("--activation {activation} --batch 45 --seed 3");
        let whole = checkpoint_of(&folder, "whole", &format!("{line} --steps 60"));
        let plot = fs::read(folder.join("accuracy.png")).unwrap();
        // Within an epoch of 28 steps, and between two tests.
        checkpoint_of(&folder, "part", &format!("{line} --steps 37"));
        let part = folder.join("part").display().to_string();
        let resumed = format!("{line} --steps 60 --resume {part}");
        assert!(checkpoint_of(&folder, "part", &resumed) == whole, "{activation}");
        assert!(fs::read(folder.join("accuracy.png")).unwrap() == plot);
    }
}

#[test]
fn a_checkpoint_has_pytorch_like_names() {
    let bytes = checkpoint_of(&folder("names"), "checkpoint", "--steps 2");
    let dict = StateDict::from_bytes(&bytes).unwrap();
    for (name, shape) in [
        ("with.layer1.weight", &[100, 64][..]),
        ("with.bn1.weight", &[100]),
        ("with.bn3.running_mean", &[100]),
        ("with.bn3.running_var", &[100]),
        ("with.layer4.weight", &[10, 100]),
        ("with.layer4.bias", &[10]),
        ("without.layer3.bias", &[100]),
        ("step", &[]),
        ("curve", &[1, 5]),
    ] {
        let tensor = dict.get::<f64>(name).unwrap();
        assert_eq!(tensor.map(|(shape, _)| shape), Some(shape), "{name}");
    }
    let names: Vec<&str> = dict.names().collect();
    assert!(names.contains(&"with.bn2.num_batches_tracked"));
    assert!(!names.contains(&"with.layer1.bias") && !names.contains(&"without.bn1.weight"));
}

#[test]
fn a_checkpoint_of_other_options_is_refused_with_both_sides() {
    let folder = folder("other");
    checkpoint_of(&folder, "checkpoint", "--steps 3");
    let path = folder.join("checkpoint").display().to_string();
    let refused = |line: &str| {
        let line = format!("{line} --out {} --resume {path}", folder.display());
        let error = format!("{:#}", run(&line).unwrap_err());
        assert!(error.contains(&path), "{error}");
        error
    };
    for (line, then, now) in [
        ("--activation relu", "activation: sigmoid", "activation: relu"),
        ("--learning-rate 0.25", "learning rate: 0.5", "learning rate: 0.25"),
        ("--batch 61", "batch: 60", "batch: 61"),
        ("--seed 2", "seed: 1", "seed: 2"),
        ("--test-every 20", "test every: 10", "test every: 20"),
    ] {
        let expected = format!("the checkpoint has {then:?}, this run has {now:?}");
        let error = refused(line);
        assert!(error.ends_with(&expected), "{error}");
    }
    let error = refused("--steps 2");
    assert!(error.contains("is at step 3, which is beyond --steps 2"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_refused_with_the_reason() {
    let bytes = checkpoint_of(&folder("damaged"), "checkpoint", "--steps 3");
    let good = StateDict::from_bytes(&bytes).unwrap();
    let data = Data::digits().unwrap();
    let mut run = experiment("", &data);
    let mut refused = |name: &str, shape: &[usize], values: &[f64], expected: &str| {
        let mut dict = good.clone();
        dict.insert(name, shape, values).unwrap();
        let error = checkpoint::load(&dict.to_bytes().unwrap(), &mut run).unwrap_err();
        let error = format!("{error:#}");
        assert!(error.contains(expected), "{name}: {error}");
    };
    let point = [0.0, 2.3, 0.1, 2.3, 0.1];
    refused("step", &[1], &[3.0], "step: expected a scalar, got shape [1]");
    refused("step", &[], &[2.5], "step: expected a whole number, got 2.5");
    refused("step", &[], &[-1.0], "step: expected a whole number, got -1");
    refused("step", &[], &[f64::NAN], "step: expected a whole number, got NaN");
    refused("curve", &[5], &point, "curve: expected shape [points, 5], got [5]");
    refused("curve", &[2, 5], &[point, point].concat(), "curve: expected ascending steps");
    refused("curve", &[1, 5], &[9.0, 2.3, 0.1, 2.3, 0.1], "ascending steps up to 3");
    refused("curve", &[1, 5], &[0.0, 2.3, 1.5, 2.3, 0.1], "curve: accuracy 1.5");
    refused("options", &[1], &[300.0], "options: expected the bytes of a text");
    refused("options", &[1], &[0.5], "options: expected the bytes of a text");
    refused("options", &[1], &[65.0], "the checkpoint has \"A\", this run has \"engine: cpu\"");
    refused("with.bn4.weight", &[1], &[1.0], "unexpected: with.bn4.weight");
    refused("with.layer4.bias", &[1], &[1.0], "with.layer4.bias: expected");
    refused("with.bn1.weight", &[1], &[1.0], "with.bn1.weight: expected");
    let error = checkpoint::load(&StateDict::new().to_bytes().unwrap(), &mut run).unwrap_err();
    assert_eq!(error.to_string(), "options: expected a tensor of floats, got none");
    checkpoint::load(&bytes, &mut run).unwrap();
}

#[test]
fn no_bytes_of_a_checkpoint_panic() {
    let good = checkpoint_of(&folder("any"), "checkpoint", "--steps 1");
    let data = Data::digits().unwrap();
    let mut run = experiment("", &data);
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut load = |bytes: &[u8]| checkpoint::load(bytes, &mut run).is_ok();
    for at in (0..header).step_by(7).chain(0..8) {
        for value in [0, b'9', b'"', b'}', 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            load(&bytes);
        }
        assert!(!load(&good[..at]), "the first {at} bytes");
    }
    assert!(!load(&good[..good.len() - 1]) && !load(&[&good[..], &[0]].concat()));
    assert!(load(&good));
}

#[test]
fn a_run_that_could_not_be_saved_is_saved_later() {
    let (folder, data) = (folder("later").join("missing"), Data::digits().unwrap());
    let (path, mut run) = (folder.join("checkpoint"), experiment("", &data));
    let mut saves = checkpoint::Saves::to(Some(&path));
    saves.save(&run);
    assert!(saves.error.is_some() && saves.step.is_none());
    fs::create_dir(&folder).unwrap();
    run.step().unwrap();
    saves.save(&run);
    assert!(saves.error.is_none() && saves.step == Some(1));
    fs::remove_dir_all(&folder).unwrap();
    run.step().unwrap();
    saves.save(&run);
    assert!(saves.error.is_some() && saves.step == Some(1));
}
