//! The `train` example, as a run and in parts.
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use batchnorm::Cpu;
use clap::Parser;

use example::backend::HostBackend;
use example::data::{Data, Sampler};
use example::experiment::Experiment;
use example::options::Options;
use example::{checkpoint, plot, report};

#[allow(dead_code)] // main
#[path = "../train/main.rs"]
mod example;

#[path = "../../tests/support/mod.rs"]
mod support;

#[path = "train/checkpoints.rs"]
mod checkpoints;
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "train/device.rs"]
mod device;
#[path = "train/files.rs"]
mod files;
#[path = "train/gradients.rs"]
mod gradients;
#[path = "train/mnist.rs"]
mod mnist;
#[cfg(unix)]
#[path = "train/program.rs"]
mod program;
#[path = "train/start.rs"]
mod start;

/// A new folder for one test.
fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("train").join(test);
    let _ = fs::remove_dir_all(&folder); // of an earlier run
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn options(line: &str) -> Options {
    Options::try_parse_from(["train"].into_iter().chain(line.split_whitespace())).unwrap()
}

/// A run by its command line: whether it finished, and what it printed.
fn run(line: &str) -> Result<(bool, String)> {
    let mut printed = Vec::new();
    let (options, stop) = (options(line), AtomicBool::new(false));
    let finished = example::train(&Cpu::default(), &HostBackend, &options, &stop, &mut printed)?;
    Ok((finished, String::from_utf8(printed)?))
}

/// A run that ends well, with the checkpoint `name` and its plots in `folder`: the checkpoint.
fn checkpoint_of(folder: &Path, name: &str, line: &str) -> Vec<u8> {
    let path = folder.join(name);
    let out = format!("--out {} --checkpoint {}", folder.display(), path.display());
    assert!(run(&format!("{line} {out}")).unwrap().0);
    fs::read(path).unwrap()
}

fn experiment<'a>(line: &str, data: &'a Data) -> Experiment<'a, Cpu, HostBackend> {
    Experiment::new(&Cpu::default(), &HostBackend, options(line).settings(), data).unwrap()
}

#[test]
fn normalization_wins_on_a_short_run() {
    let data = Data::digits().unwrap();
    assert_eq!((data.train.len(), data.test.len()), (1297, 500));
    for (line, steps) in [("--activation sigmoid", 200), ("--activation relu", 100)] {
        let mut run = experiment(line, &data);
        run.record().unwrap();
        while run.step < steps {
            run.step().unwrap();
            run.record().unwrap();
        }
        let (first, last) = (run.curve[0], run.curve[run.curve.len() - 1]);
        assert!(first.with.accuracy < 0.3 && first.with.loss > 2.0, "{first:?}");
        assert!(last.with.accuracy > 0.93 && last.with.loss < 0.4, "{last:?}");
        assert!(last.without.loss < first.without.loss, "{last:?}");
        let with = report::steps_to(&run.curve, 0.9, |point| point.with).unwrap();
        let without = report::steps_to(&run.curve, 0.9, |point| point.without);
        assert!(without.is_none_or(|without| with < without), "{line}: {with}, {without:?}");
    }
}

/// The table's further rows, and that nothing else changes; after few steps the moving statistics still hold a
/// part of their initial values, and of batches by earlier weights.
#[test]
fn population_statistics_stand_beside_the_moving_ones() {
    let folder = folder("population");
    let line = format!("--steps 40 --batch 50 --out {}", folder.display());
    let moving = run(&line).unwrap().1;
    let both = run(&format!("{line} --statistics population")).unwrap().1;
    assert!(!moving.contains("population statistics"), "{moving}");
    let without: Vec<_> = both.lines().filter(|line| !line.starts_with("by ")).collect();
    let same = |a: &str, b: &str| a == b || a.contains(" took ");
    assert!(moving.lines().zip(&without).all(|(a, b)| same(a, b)), "{moving}{both}");
    let score = |of: &str, name: &str| -> (f64, f64) {
        let (_, rest) = of.split_once(name).unwrap();
        let line = rest.lines().next().unwrap().trim();
        let (accuracy, loss) = line.split_once(" %, loss ").unwrap();
        (accuracy.parse().unwrap(), loss.parse().unwrap())
    };
    let [by_moving, by_population] =
        ["moving", "population"].map(|name| score(&both, &format!("by {name} statistics")));
    assert!(moving.contains(&format!("{:.4}", by_moving.1)), "{moving}{both}");
    assert!(by_population.0 > 80.0 && by_population.1 < by_moving.1, "{both}");

    // Exactly what the images give the first layer, in whatever batches.
    let data = Data::digits().unwrap();
    let dict_by = |batch: usize| {
        let mut run = experiment(&format!("--batch {batch}"), &data);
        run.use_population().unwrap();
        run.with.state_dict("").unwrap()
    };
    let dicts = [dict_by(1297), dict_by(60)];
    for name in ["bn1.running_mean", "bn1.running_var", "bn3.running_mean", "bn3.running_var"] {
        let [all, some] = dicts.each_ref().map(|dict| dict.get::<f64>(name).unwrap().unwrap().1);
        for (all, some) in all.iter().zip(&some) {
            assert!((all - some).abs() <= 1e-5 * all.abs().max(1.0), "{name}: {all}, {some}");
        }
    }
}

#[test]
fn a_seed_repeats_bit_for_bit_on_any_number_of_threads() {
    let folder = folder("seeds");
    let on = |threads, line: &str| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| checkpoint_of(&folder, "checkpoint", line))
    };
    let line = "--steps 30 --batch 50 --seed 7";
    let one = on(1, line);
    for threads in [2, 5] {
        assert!(on(threads, line) == one, "{threads} threads");
    }
    assert!(on(1, "--steps 30 --batch 50 --seed 8") != one);
}

#[test]
fn both_networks_start_from_the_same_weights() {
    let data = Data::digits().unwrap();
    let run = experiment("", &data);
    let with = run.with.state_dict("").unwrap();
    let without = run.without.state_dict("").unwrap();
    for layer in 1..=4 {
        let name = format!("layer{layer}.weight");
        let weights = with.get::<f32>(&name).unwrap().unwrap();
        assert_eq!(Some(&weights), without.get::<f32>(&name).unwrap().as_ref(), "{name}");
        assert!(weights.1.iter().any(|w| *w != weights.1[0]));
    }
}

#[test]
fn an_epoch_has_every_image_at_most_once_and_follows_from_the_step() {
    let mut sampler = Sampler::new(3, 20, 6);
    let epoch = |sampler: &mut Sampler, first: u64| -> Vec<usize> {
        (first..first + 3).flat_map(|step| sampler.batch(step).to_vec()).collect()
    };
    let (first, second) = (epoch(&mut sampler, 0), epoch(&mut sampler, 3));
    for images in [&first, &second] {
        let mut sorted = images.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert!(sorted.len() == 18 && sorted[17] < 20, "{images:?}");
    }
    assert_ne!(first, second);
    assert_eq!(Sampler::new(3, 20, 6).batch(4), &second[6..12]);
    assert_ne!(Sampler::new(4, 20, 6).batch(0), &first[..6]);
}

#[test]
fn ctrl_c_leaves_checkpoint_table_and_plots_of_what_there_is() {
    let folder = folder("ctrl_c");
    let path = folder.join("checkpoint").display().to_string();
    let line = format!("--out {} --checkpoint {path} --steps 1000000000", folder.display());
    let (stop, mut printed) = (AtomicBool::new(false), Vec::new());
    let finished = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
        });
        example::train(&Cpu::default(), &HostBackend, &options(&line), &stop, &mut printed)
    });
    assert!(!finished.unwrap());
    let printed = String::from_utf8(printed).unwrap();
    assert!(printed.contains("steps to 80 % accuracy"), "{printed}");
    assert!(printed.contains("stopped at step"), "{printed}");
    assert!(folder.join("accuracy.png").exists() && folder.join("accuracy.svg").exists());

    let data = Data::digits().unwrap();
    let mut stopped = experiment("", &data);
    checkpoint::load(&fs::read(&path).unwrap(), &mut stopped).unwrap();
    assert!(stopped.step > 0 && stopped.step < 1_000_000_000);
    let steps = stopped.step + 3;
    let resumed = checkpoint_of(&folder, "resumed", &format!("--steps {steps} --resume {path}"));
    assert!(resumed == checkpoint_of(&folder, "whole", &format!("--steps {steps}")));
}

#[test]
fn bad_options_say_what_was_expected() {
    let refused = |line: &str| {
        let line = ["train"].into_iter().chain(line.split_whitespace());
        Options::try_parse_from(line).unwrap_err().to_string()
    };
    for rate in ["0", "-1", "nan", "inf", "fast"] {
        let error = refused(&format!("--learning-rate={rate}"));
        let expected = format!(
            "invalid value '{rate}' for '--learning-rate <LEARNING_RATE>': \
             expected a finite number above 0"
        );
        assert!(error.contains(&expected), "{error}");
    }
    assert!(refused("--activation tanh").contains("[possible values: sigmoid, relu]"));
    assert!(refused("--device tpu").contains("[possible values: auto, cuda, cpu]"));
    for line in ["--steps 0", "--batch 1", "--test-every 0"] {
        assert!(refused(line).contains("is not in"), "{line}");
    }
    let error = run("--batch 1298").unwrap_err().to_string();
    assert!(error.contains("expected 2 to 1297"), "{error}");
    assert!(error.contains("got 1298"), "{error}");
    let out = folder("bad_options").display().to_string();
    let line = format!("--steps 3 --out {out} --checkpoint /no/such/folder/file");
    let error = run(&line).unwrap_err().to_string();
    assert_eq!(error, "/no/such/folder/file: cannot be written");
}

#[test]
fn the_plots_have_labels_a_legend_and_two_lines() {
    let data = Data::digits().unwrap();
    let mut run = experiment("--test-every 5", &data);
    while run.step < 40 {
        run.record().unwrap();
        run.step().unwrap();
    }
    let svg = plot::svg(&run.curve, "the title").unwrap();
    let texts = ["the title", "training steps", "test accuracy (%)", "with batch normalization"];
    for text in texts.into_iter().chain(["without batch normalization"]) {
        assert!(svg.contains(text), "{text}");
    }
    let png = plot::png(&run.curve, "the title").unwrap();
    let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    let (width, height) = (info.width as usize, info.height as usize);
    let count = |rows: std::ops::Range<usize>, matches: fn(&[u8]) -> bool| {
        let pixels = &pixels[3 * width * rows.start..3 * width * rows.end];
        pixels.chunks_exact(3).filter(|pixel| matches(pixel)).count()
    };
    let dark = |pixel: &[u8]| pixel.iter().all(|channel| *channel < 100);
    assert!(count(0..height / 12, dark) > 100, "the title");
    assert!(count(height - height / 12..height, dark) > 100, "the label of the steps");
    assert!(count(0..height, |pixel| pixel == [0, 114, 178]) > 300, "the line with");
    assert!(count(0..height, |pixel| pixel == [213, 94, 0]) > 300, "the line without");
}
