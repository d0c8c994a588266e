//! `speed` as other programs see it, and the table behind it.
use batchnorm::{Activation, Backward, Engine, ForwardEval, ForwardTrain, Host};
use batchnorm::{Reference, Saved, Shape};
use serde_json::json;
use std::process::Command;
use table::turn::{self, Turn, Turns};
use table::{Case, Op, Pass, check, data, job};

#[cfg(all(feature = "cuda", target_os = "linux"))]
#[path = "../speed/measure.rs"]
#[allow(dead_code, unsafe_code)]
mod measure;
#[path = "../../benches/table/mod.rs"]
mod table;
#[path = "speed/worker.rs"]
mod worker;

/// Small cases of every operation, layout and dtype, each with a shape of its rank.
fn small_cases() -> Vec<Case> {
    let shapes: [(&str, &[usize]); 6] = [
        ("nchw", &[4, 6, 5, 3]),
        ("nhwc", &[4, 6, 5, 3]),
        ("nchw", &[3, 9, 17]),
        ("nhwc", &[3, 9, 17]),
        ("nhwc", &[2, 5, 3, 4, 2]),
        ("nc", &[31, 12]),
    ];
    let mut cases = Vec::new();
    for (layout, shape) in shapes {
        for op in OPS {
            for dtype in ["f32", "bf16", "f16"] {
                cases.push(Case::parse(op, shape, layout, dtype).unwrap());
            }
        }
    }
    cases
}

const OPS: [&str; 7] = [
    "fwd_train",
    "infer",
    "bwd",
    "fwd_train_relu",
    "bwd_relu",
    "fwd_train_add_relu",
    "bwd_add_relu",
];

/// Results of the reference in N, C, ... order, whatever the case's layout.
struct Right {
    shape: Shape,
    y: Vec<f32>,
    running: [Vec<f32>; 2],
    grad_x: Vec<f32>,
    grad_residual: Vec<f32>,
    grad_weight: Vec<f32>,
    grad_bias: Vec<f32>,
}

/// f32 in and out, f64 between.
fn reference(dims: &[usize], op: Op, round: impl Fn(f32) -> f32) -> Right {
    let shape = Shape::new(dims, 1).unwrap();
    let (n, c) = (shape.len(), shape.channels());
    let tensor = |seed| (0..n as u32).map(|i| round(data::value(i, seed))).collect::<Vec<f32>>();
    let [x, residual, grad_y] = [1, 13, 7].map(tensor);
    let residual = op.residual.then_some(&residual[..]);
    let (weight, bias) = (data::weight(c), data::bias(c));
    let (mut y, mut grad_x, mut grad_residual) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let (mut grad_weight, mut grad_bias) = (vec![0.0; c], vec![0.0; c]);
    let mut running = [vec![0.0; c], vec![1.0; c]];
    let activation = if op.relu { Activation::Relu } else { Activation::Identity };
    let mut saved = Saved::new();
    let [mean, var] = &mut running;
    if op.pass == Pass::Infer {
        let mut args = ForwardEval::<Host, f32>::new(&x, &mut y, mean, var)
            .weight(&weight)
            .bias(&bias)
            .activation(activation);
        args.residual = residual;
        Reference.forward_eval(&shape, args).unwrap();
    } else {
        let mut args = ForwardTrain::<Host, f32>::new(&x, &mut y)
            .weight(&weight)
            .bias(&bias)
            .activation(activation)
            .running(mean, var, 0.1)
            .saved(&mut saved);
        args.residual = residual;
        Reference.forward_train(&shape, args).unwrap();
    }
    if op.pass == Pass::Backward {
        let mut args = Backward::<Host, f32>::new(&saved, &x, &grad_y)
            .grad_x(&mut grad_x)
            .grad_weight(&mut grad_weight)
            .grad_bias(&mut grad_bias);
        args.grad_residual = op.residual.then_some(&mut grad_residual[..]);
        Reference.backward(&shape, args).unwrap();
    }
    Right { shape, y, running, grad_x, grad_residual, grad_weight, grad_bias }
}

#[test]
fn data_are_those_of_the_protocol() {
    // By the formula in integers of any size, in Python.
    let known = [
        (0, 1, -0.045810699462890625),
        (1, 1, 1.8279216289520264),
        (1000, 1, 1.4585566520690918),
        (0, 7, -0.004224538803100586),
        (12345678, 7, -0.5087544918060303),
        (u32::MAX, 1, -1.5),
        (u32::MAX - 1, 13, -1.3649635314941406),
    ];
    for (i, seed, value) in known {
        assert_eq!(f64::from(data::value(i, seed)), value, "element {i}, seed {seed}");
    }
    assert_eq!(data::weight(9)[..3], [0.5, 0.64285713, 0.78571427]);
    assert_eq!(data::weight(9)[6..], [1.3571428, 0.5, 0.64285713]);
    assert_eq!(data::bias(6), [-0.3, -0.1, 0.1, 0.3, 0.5, -0.3]);
}

#[test]
fn channels_last_data_have_the_same_index() {
    let [first, last] = ["nchw", "nhwc"].map(|layout| {
        let case = Case::parse("infer", &[2, 3, 4, 5], layout, "f32").unwrap();
        data::tensor::<f32>(&case, 1)
    });
    for (n, c, s) in [(0, 0, 0), (0, 2, 7), (1, 0, 19), (1, 2, 3)] {
        let i = (n * 3 + c) * 20 + s;
        assert_eq!(first[i], data::value(i as u32, 1));
        assert_eq!(last[(n * 20 + s) * 3 + c], first[i], "sample {n}, channel {c}, position {s}");
    }
}

#[test]
fn the_table_has_every_operation_on_every_shape() {
    let all = table::cases(false).unwrap();
    assert_eq!(all.len(), 29 * OPS.len());
    assert_eq!(table::cases(true).unwrap().len(), 7 * OPS.len());
    for op in OPS {
        assert_eq!(all.iter().filter(|case| case.op.name() == op).count(), 29, "{op}");
    }
    let case = all.iter().find(|case| case.to_string() == "bwd_relu 32x64x112x112 nhwc bf16");
    let case = case.unwrap();
    assert_eq!(case.least_traffic(), 3 * 2 * 32 * 64 * 112 * 112);
    let shape = case.shape().unwrap();
    assert_eq!((shape.outer(), shape.channels(), shape.inner()), (32 * 112 * 112, 64, 1));
}

/// Everything but the times, which are 0 there.
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[test]
fn the_cuda_engine_computes_what_it_is_timed_for() {
    softcuda::install().unwrap();
    let engine = batchnorm::Cuda::new(0).unwrap();
    assert_eq!(job::version(&engine).split(' ').nth(2), Some("cuda"));
    for case in small_cases() {
        let mut ready = job::prepare(&engine, &case).unwrap();
        assert!(ready.what.starts_with("cuda: "), "{}", ready.what);
        assert_eq!(ready.job.time().unwrap(), 0.0);
    }
    let case = &small_cases()[0];
    let mut floor = job::Timed::floor(&engine, case).unwrap();
    assert_eq!(floor.time().unwrap(), 0.0);
    let copies = softcuda::install().unwrap().device(0).used();
    assert!(copies >= case.least_traffic() as u64, "{copies}");
}

/// As there, at sizes that it can do: every measurement ends, and its plans are those that it is about.
#[cfg(all(feature = "cuda", target_os = "linux"))]
#[test]
fn what_plans_count_on_is_measured() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("mini").unwrap());
    let engine = measure::untracked(device.ordinal()).unwrap();
    let mut lines = Vec::new();
    let mut take = |line| {
        lines.push(line);
        Ok(())
    };
    let effort = measure::Effort { launches: 1, graphs: 1, calls: 1 };
    measure::turns(effort, &engine, &[1, 2, 9], &mut take).unwrap();
    measure::rows(effort, &engine, (2, 4), &[32], &mut take).unwrap();
    measure::tiles(effort, &engine, &[64, 256], 16, &mut take).unwrap();
    measure::offsets(effort, &engine, &[(&[4, 16, 6, 6], "nhwc")], &mut take).unwrap();
    measure::repeats(&engine, &[8, 16, 6, 6], 3, &mut take).unwrap();
    measure::host(effort, &engine, false, &[(&[8, 64], "nc")], &mut take).unwrap();
    let of = |name: &str| -> Vec<&serde_json::Value> {
        lines.iter().filter(|line| line["measure"] == name).collect()
    };
    // Three numbers of channels, one and four rounds; more blocks than there can be are left out.
    let turns = of("turn");
    assert_eq!(turns.len(), 12, "{turns:?}");
    assert!(turns.iter().all(|turn| turn["seconds"] == 0.0), "{turns:?}");
    for turn in &turns {
        let plan = turn["plan"].as_str().unwrap();
        assert!(plan.starts_with("cuda: forward_resident; "), "{plan}");
    }
    let widths: Vec<_> = of("row").iter().map(|row| row["row_bytes"].as_u64().unwrap()).collect();
    assert_eq!(widths, [32, 32, 64, 64]);
    let tiles = of("tile");
    assert_eq!([&tiles[0]["bytes"], &tiles[1]["bytes"]], [2048, 8192]);
    for tile in tiles {
        let plan = tile["plan"].as_str().unwrap();
        assert!(plan.starts_with("cuda: stats, ") && plan.ends_with(" blocks"), "{plan}");
    }
    let begins: Vec<_> = of("offset").iter().map(|line| line["at_once"].clone()).collect();
    assert_eq!(begins, [false, false, true, true]);
    assert_eq!(of("repeats")[0]["differ"], 0);
    assert_eq!(of("host").len(), 2);
    assert_eq!(device.faults(), [""; 0]);
}

#[cfg(feature = "cuda")]
#[test]
fn times_are_those_of_a_real_device() {
    let mut speed = Command::new(env!("CARGO_BIN_EXE_speed"));
    let output =
        speed.args(["--engine", "cuda", "--filter", "infer 256x1024 f32"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || error.contains("CUDA driver"), "{error}");
}

#[test]
fn a_wrong_result_is_not_timed() {
    let dims = [2, 5, 3, 2];
    for op in OPS {
        let case = Case::parse(op, &dims, "nchw", "f32").unwrap();
        let right = || reference(&dims, case.op, |v| v);
        let judge = |r: Right| {
            let backward = case.op.pass == Pass::Backward;
            let [running_mean, running_var] = r.running;
            let gradients = backward.then_some(check::Gradients {
                of_x: r.grad_x,
                of_residual: case.op.residual.then_some(r.grad_residual),
                of_weight: r.grad_weight,
                of_bias: r.grad_bias,
            });
            let got = check::Got { y: r.y, running_mean, running_var, gradients };
            check::against_reference(&case, &r.shape, &got)
        };
        judge(right()).unwrap();
        // One value off, in each tensor that the operation writes.
        type Spoil = (&'static str, fn(&mut Right));
        let mut spoils: Vec<Spoil> = vec![
            ("y", |r| r.y[59] += 0.01),
            ("running_mean", |r| r.running[0][4] += 0.01),
            ("running_var", |r| r.running[1][0] += 0.01),
        ];
        if case.op.pass == Pass::Backward {
            spoils.push(("grad_x", |r| r.grad_x[7] += 0.01));
            spoils.push(("grad_weight", |r| r.grad_weight[2] += 0.01));
            spoils.push(("grad_bias", |r| r.grad_bias[3] += 0.01));
        }
        if op == "bwd_add_relu" {
            spoils.push(("grad_residual", |r| r.grad_residual[30] += 0.01));
        }
        for (name, spoil) in spoils {
            let mut off = right();
            spoil(&mut off);
            let error = judge(off).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name} of channel")), "{op}, {name}: {error}");
        }
    }
}

#[test]
fn a_warm_up_does_not_count() {
    let mut runs = 0.0;
    let run = || {
        runs += 1.0;
        Ok(runs)
    };
    assert_eq!(Turn::take(3, 2, run).unwrap().times, [3.0, 4.0, 5.0]);
    assert_eq!(turn::repetitions(0.06, 0.001), 60);
    assert_eq!(turn::repetitions(0.06, 1.0), 1);
}

#[test]
fn disturbed_turns_count_only_where_there_are_no_others() {
    let turn = |time: f64, wait| Turn { times: vec![time; 3], wall: 3.0 * time, run: 0.0, wait };
    let mixed = Turns(vec![turn(9.0, 5.0), turn(1.0, 0.0), turn(8.0, 6.0), turn(2.0, 0.1)]);
    let summary = mixed.summary();
    assert_eq!([0.0, 0.5, 1.0].map(|part| summary.quantile(part)), [1.0, 2.0, 2.0]);
    assert!(!summary.is_disturbed());
    let fields = summary.fields();
    assert_eq!((&fields["n"], &fields["turns"]), (&json!(6), &json!(4)));
    assert_eq!(fields["clean_turns"], 2);
    let summary = Turns(vec![turn(9.0, 9.0), turn(1.0, 0.5), turn(8.0, 4.0)]).summary();
    assert_eq!((summary.quantile(0.0), summary.quantile(1.0)), (1.0, 8.0));
    assert!(summary.is_disturbed());
}

#[test]
fn what_is_prepared_runs_again_with_the_same_engine() {
    let case = Case::parse("bwd_add_relu", &[3, 4, 2, 2], "nhwc", "bf16").unwrap();
    let ready = job::prepare(&Reference, &case).unwrap();
    assert_eq!(ready.what, "reference 12 x 4 x 1 (outer x channels x inner, batch 3)");
    let mut job = ready.job;
    assert!(job.time().unwrap() > 0.0);
}

#[test]
fn steps_by_other_statistics_are_timed_beside_the_plain_one() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_speed"));
    command.args(["--steps", "--rounds", "1", "--filter", "128x32 f32 ghost"]);
    let output = command.output().unwrap();
    let (said, error) =
        [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap()).into();
    assert!(output.status.success(), "{error}");
    let rows = said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows: Vec<_> = rows.filter(|row| row[0] == "128x32").collect();
    let names: Vec<_> = rows.iter().map(|row| row[..4].join(" ")).collect();
    let right = ["ghost4", "ghost16", "ghost32", "padded-ghost4", "padded-ghost16"];
    assert_eq!(names, right.map(|by| format!("128x32 nc f32 {by}")), "{said}");
    for row in rows {
        let [us, ratio] = [row[4], row[5]].map(|number| number.parse::<f64>().unwrap());
        assert!(us > 0.0 && ratio > 0.0 && ratio.is_finite(), "{row:?}");
    }
}
