//! The page of other systems' conventions: each test that it names exists, each default that it states is the
//! preset's, and no row has a gap.
use std::fs;

#[path = "support/files.rs"]
#[allow(dead_code)]
mod files;

use batchnorm::{Config, EmptyBatch, Keras1, Momentum, OneValue, Variance};
use files::checkout;

/// A row of a table, under its heading.
#[derive(Debug)]
struct Row {
    section: String,
    cells: Vec<String>,
}

fn page() -> String {
    fs::read_to_string(checkout("src/docs/conventions.md")).unwrap()
}

/// All rows but the tables' heads.
fn rows(page: &str) -> Vec<Row> {
    let (mut section, mut rows, mut in_table) = (String::new(), vec![], false);
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("# ") {
            section = heading.into();
        }
        let cells = line.strip_prefix("| ").and_then(|line| line.strip_suffix('|'));
        match cells {
            Some(cells) if in_table => {
                let cells = cells.split('|').map(|cell| cell.trim().to_string()).collect();
                rows.push(Row { section: section.clone(), cells });
            }
            _ => in_table = line.starts_with("|---"),
        }
    }
    rows
}

/// What stands in backticks, links left out.
fn code(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Whether this source has a test of that name, by itself or of every engine in a list.
fn has_test(source: &str, name: &str) -> bool {
    let definition = [format!("fn {name}("), format!("fn {name}<")];
    let alone = definition.iter().any(|def| {
        let mut at = source.match_indices(def.as_str());
        at.any(|(at, _)| source[..at].trim_end().ends_with("#[test]"))
    });
    let mut listed = source.match_indices(name).filter(|(at, _)| {
        let (before, behind) = (&source[..*at], source[at + name.len()..].trim_start());
        before.ends_with([' ', '[']) && behind.starts_with([',', ']'])
    });
    alone || listed.next().is_some() && definition.iter().any(|def| source.contains(def.as_str()))
}

/// Whether what the page calls a test is one.
fn exists(test: &str) -> bool {
    if let Some(case) = test.strip_prefix("golden/") {
        return checkout(&format!("tests/golden/frameworks/{case}.safetensors")).exists();
    }
    let of = |prefix| test.strip_prefix(prefix);
    let (folders, test) = match (of("formats::"), of("synced::")) {
        (Some(test), _) => (&["formats/tests/suite"][..], test),
        (_, Some(test)) => (&["tests/synced"][..], test),
        _ => (&["tests/suite", "src", "src/layer"][..], test),
    };
    let Some((file, name)) = test.split_once("::") else { return false };
    // A long file's tests have one of their own.
    let paths = |folder| ["", "_tests"].map(|end| checkout(&format!("{folder}/{file}{end}.rs")));
    let sources = folders.iter().flat_map(paths);
    sources.filter_map(|path| fs::read_to_string(path).ok()).any(|source| has_test(&source, name))
}

#[test]
fn every_test_on_the_page_exists() {
    let (page, mut tests) = (page(), 0);
    for row in rows(&page) {
        let last = row.cells.last().unwrap();
        for test in code(last).filter(|test| !test.contains("Config::")) {
            assert!(exists(test), "{}: no test {test}", row.section);
            tests += 1;
        }
    }
    assert!(tests > 150, "{tests} tests");
    for test in ["axes::no_such_test", "axes::passes", "golden/no_such_case", "nowhere::is_a_test"]
    {
        assert!(!exists(test), "{test}");
    }
}

#[test]
fn no_row_has_a_gap() {
    let reasons = ["not yet", "not offered: ", "nothing to do: ", "none, as there: "];
    let systems = [
        "PyTorch",
        "MATLAB",
        "Wolfram",
        "Keras 1",
        "Keras 2 and TensorFlow",
        "Keras 3",
        "Flax",
        "Haiku",
        "Equinox",
        "ONNX",
        "MXNet",
    ];
    let page = page();
    let rows = rows(&page);
    for system in systems {
        let of_system = rows.iter().filter(|row| row.section == system);
        assert!(of_system.clone().count() >= 8, "{system}");
        for row in of_system {
            let [there, here, _, test] = &row.cells[..] else { panic!("{system}: {row:?}") };
            assert!(!there.is_empty() && !here.is_empty(), "{system}: {row:?}");
            let has_reason = reasons.iter().any(|reason| here.starts_with(reason));
            assert!(
                !test.is_empty() || has_reason,
                "{system}: {there} has neither test nor reason"
            );
        }
    }
}

/// The presets by the names that the page has for them.
fn preset(name: &str) -> Config {
    match name {
        "pytorch" => Config::pytorch(),
        "keras" => Config::keras(),
        "keras2_fused" => Config::keras2_fused(),
        "tensorflow" => Config::tensorflow(),
        "keras1, V0_3" => Config::keras1(Keras1::V0_3),
        "keras1, V1_0_5" => Config::keras1(Keras1::V1_0_5),
        "keras1, V1_0_6" => Config::keras1(Keras1::V1_0_6),
        "keras1, V1_0_7" => Config::keras1(Keras1::V1_0_7),
        "keras1, V1_0_8" => Config::keras1(Keras1::V1_0_8),
        "keras1, V1_2" | "keras1" => Config::keras1(Keras1::V1_2),
        "matlab" => Config::matlab(),
        "wolfram" => Config::wolfram(),
        "onnx" => Config::onnx(),
        "flax" => Config::flax(),
        "haiku" => Config::haiku(0.9),
        "mxnet" => Config::mxnet(),
        _ => panic!("no preset {name}"),
    }
}

fn momentum(cell: &str) -> Momentum {
    let number = |text: &str| text.parse::<f64>().unwrap();
    if let Some(decay) = cell.strip_prefix("debiased, ") {
        return Momentum::Debiased { decay: number(decay) };
    }
    match (cell.split_once(", "), cell.strip_prefix("1 - ")) {
        (Some((mean, var)), _) => Momentum::Separate { mean: number(mean), var: number(var) },
        (None, Some(old)) => Momentum::keeping(number(old)),
        (None, None) => Momentum::Exponential(number(cell)),
    }
}

#[test]
fn the_table_of_presets_is_what_they_are() {
    let page = page();
    let rows = rows(&page);
    let rows: Vec<_> = rows.iter().filter(|row| row.section == "The presets").collect();
    assert_eq!(rows.len(), 16);
    for row in rows {
        let [name, eps, weight, variance, one_value, empty] = &row.cells[..] else {
            panic!("{row:?}");
        };
        let link = code(name).next().unwrap().trim_start_matches("Config::");
        let version = name.split_once("), ").map(|(_, version)| format!(", {version}"));
        let config = preset(&format!("{link}{}", version.unwrap_or_default()));
        let right = Config::default()
            .eps(eps.parse().unwrap())
            .momentum(momentum(weight))
            .variance(match &variance[..] {
                "biased" => Variance::Biased,
                "unbiased" => Variance::Unbiased,
                other => panic!("{other}"),
            })
            .one_value(match &one_value[..] {
                "error" => OneValue::Refuse,
                "y = bias, variance 0" => OneValue::ZeroVariance,
                other => panic!("{other}"),
            })
            .empty_batch(match &empty[..] {
                "statistics stay" => EmptyBatch::Keep,
                "NaN" => EmptyBatch::Nan,
                other => panic!("{other}"),
            });
        assert_eq!(config, right, "{name}");
    }
}

/// Each system's own table, where it states a number.
#[test]
fn defaults_are_those_of_the_presets() {
    let page = page();
    let mut checked = 0;
    for section in page.split("\n# ").skip(2) {
        let intro = section.split('|').next().unwrap();
        let Some(link) = code(intro).find_map(|code| code.strip_prefix("Config::")) else {
            continue;
        };
        let config = preset(link);
        for row in rows(&format!("# {section}")) {
            let [there, here, default, _] = &row.cells[..] else { continue };
            let Some(default) = code(default).next() else { continue };
            let number = || default.parse::<f64>().unwrap();
            let is = |name: &str| here.contains(&format!("(crate::{name})"));
            if is("Config::eps") {
                assert_eq!(number(), config.eps, "{link}: {there}");
            } else if is("Momentum::keeping") {
                assert_eq!(Momentum::keeping(number()), config.momentum, "{link}: {there}");
            } else if is("Momentum::Exponential") {
                assert_eq!(Momentum::Exponential(number()), config.momentum, "{link}: {there}");
            } else if is("Momentum::Separate") {
                let both = Momentum::Separate { mean: number(), var: number() };
                assert_eq!(both, config.momentum, "{link}: {there}");
            } else if is("Config::weight")
                || is("Config::bias")
                || is("Config::track_running_stats")
            {
                let on = config.weight && config.bias && config.track_running_stats;
                assert_eq!((default, on), ("True", true), "{link}: {there}");
            } else {
                continue;
            }
            checked += 1;
        }
    }
    assert!(checked >= 29, "{checked} defaults");
}
