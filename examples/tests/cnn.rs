//! The `cnn` example: on the CPU in both layouts, and on a CUDA device beside it.
use approx::relative_eq;
use std::path::{Path, PathBuf};

use anyhow::Result;
use batchnorm::{Cpu, Engine, Memory, StateDict};
use clap::Parser;

use example::backend::{Backend, HostBackend};
use example::data::Data;
use example::network::Network;
use example::random::Random;
use example::spatial::{HostSpatial, Layout, Spatial};
use example::{Options, gather};

#[allow(dead_code)] // main
#[path = "../cnn/main.rs"]
mod example;

#[path = "../../tests/support/mod.rs"]
mod support;

#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "cnn/device.rs"]
mod device;
#[path = "cnn/gradients.rs"]
mod gradients;

const LAYOUTS: [Layout; 2] = [Layout::Nchw, Layout::Nhwc];
const BATCH: usize = 16;
const TESTED: usize = 20;

/// What some steps from seed 3 leave: the loss of every step, a test, and the parameters.
struct Run {
    losses: Vec<f64>,
    tested: [f64; 2],
    parameters: StateDict,
}

fn steps<M, G, B, S>(engine: &G, beside: (&B, &S), layout: Layout, count: usize) -> Run
where
    M: Memory,
    G: Engine<Memory = M>,
    B: Backend<Memory = M>,
    S: Spatial<Memory = M>,
{
    let (data, memory) = (Data::digits().unwrap(), engine.memory());
    let mut random = Random::new(3, 0);
    let mut network = Network::new(engine, beside, layout, [BATCH, TESTED], &mut random).unwrap();
    let batch = |first: usize, len: usize| {
        let (x, labels) = gather(&data.train, &(first..first + len).collect::<Vec<_>>());
        (memory.upload(&x).unwrap(), memory.upload(&labels).unwrap())
    };
    let mut losses = Vec::new();
    for step in 0..count {
        // Two batches in turn, so that a few steps show.
        let (x, labels) = batch(step % 2 * BATCH, BATCH);
        network.step(&x, &labels, 0.1).unwrap();
        losses.push(network.trained().unwrap().loss);
    }
    let (x, labels) = batch(100, TESTED);
    let score = network.evaluate(&x, &labels).unwrap();
    let parameters = network.state_dict().unwrap();
    Run { losses, tested: [score.loss, score.accuracy], parameters }
}

fn on_cpu(layout: Layout, count: usize) -> Run {
    steps(&Cpu::default(), (&HostBackend, &HostSpatial), layout, count)
}

/// Equal within rounding, which steps make larger.
#[track_caller]
fn alike(got: &Run, expected: &Run) {
    let close = |what: &str, got: f64, expected: f64, bar: f64| {
        let near = relative_eq!(got, expected, epsilon = bar, max_relative = bar);
        assert!(near, "{what}: {got} for {expected}");
    };
    assert_eq!(got.losses.len(), expected.losses.len());
    for (got, expected) in got.losses.iter().zip(&expected.losses) {
        close("loss", *got, *expected, 1e-4);
    }
    close("test loss", got.tested[0], expected.tested[0], 1e-3);
    close("test accuracy", got.tested[1], expected.tested[1], 1.0 / TESTED as f64);
    let names: Vec<&str> = expected.parameters.names().collect();
    assert_eq!(got.parameters.names().collect::<Vec<_>>(), names);
    for name in names.into_iter().filter(|name| !name.ends_with("num_batches_tracked")) {
        let of = |run: &Run| {
            let (shape, values) = run.parameters.get::<f64>(name).unwrap().unwrap();
            (shape.to_vec(), values)
        };
        let ((got_shape, got), (shape, expected)) = (of(got), of(expected));
        assert_eq!(got_shape, shape, "{name}");
        got.iter().zip(&expected).for_each(|(got, expected)| close(name, *got, *expected, 1e-3));
    }
}

#[test]
fn both_layouts_are_the_same_network() {
    let [nchw, nhwc] = LAYOUTS.map(|layout| on_cpu(layout, 6));
    alike(&nhwc, &nchw);
    let (shape, _) = nchw.parameters.get::<f32>("second.conv.weight").unwrap().unwrap();
    assert_eq!(shape, [16, 16, 3, 3]);
}

#[test]
fn it_learns() {
    for layout in LAYOUTS {
        let name = format!("{layout:?}").to_lowercase();
        let printed = run(&format!("--layout {name} --steps 200 --test-every 100"));
        let last = printed.lines().find(|line| line.trim_start().starts_with("200 ")).unwrap();
        let fields: Vec<&str> = last.split_whitespace().collect();
        let accuracy: f64 = fields[3].parse().unwrap();
        assert!(accuracy > 90.0, "{printed}");
    }
}

#[test]
fn parameters_go_from_one_layout_to_the_other() {
    let folder = folder("layouts");
    let (a, b) = (folder.join("a").display().to_string(), folder.join("b").display().to_string());
    run(&format!("--layout nchw --steps 2 --save {a}"));
    run(&format!("--layout nhwc --steps 0 --seed 7 --load {a} --save {b}"));
    assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());

    let mut dict = StateDict::from_bytes(&std::fs::read(&a).unwrap()).unwrap();
    dict.insert("first.conv.weight", &[16, 16, 9], &[0f32; 16 * 16 * 9]).unwrap();
    std::fs::write(&b, dict.to_bytes().unwrap()).unwrap();
    let error = try_run(&format!("--steps 0 --load {b}")).unwrap_err();
    let expected = "first.conv.weight: expected f32 [16, 16, 3, 3], got [16, 16, 9]";
    assert_eq!(format!("{error:#}"), format!("{b}: {expected}"));
}

#[test]
fn bad_options_say_what_was_expected() {
    let error = try_run("--batch 1298").unwrap_err();
    assert_eq!(error.to_string(), "batch: expected 2 to 1297, got 1298");
    let error = try_run("--steps 0 --load /no/such/file").unwrap_err();
    assert!(format!("{error:#}").starts_with("/no/such/file: "), "{error:#}");
}

fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cnn").join(test);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn run(line: &str) -> String {
    try_run(line).unwrap()
}

fn try_run(line: &str) -> Result<String> {
    let options = Options::try_parse_from(["cnn"].into_iter().chain(line.split_whitespace()))?;
    let mut printed = Vec::new();
    let beside = (&HostBackend, &HostSpatial);
    example::train(&Cpu::default(), beside, &options, &mut printed)?;
    Ok(String::from_utf8(printed)?)
}
