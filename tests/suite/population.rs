//! The statistics of a whole data set: however it is cut, by whoever its parts are gone through.
use crate::support::engines::engines;
use crate::support::layer::*;
use batchnorm::*;
use half::f16;

engines! { [reference, cpu, cuda, gpu] [
    batches_of_any_size_are_one_population_f64,
    batches_of_any_size_are_one_population_f32,
    batches_of_any_size_are_one_population_f16,
    a_large_mean_costs_no_digits,
    update_bn_averages_batches,
    parts_of_several_processes_are_one_population,
    batches_without_values_and_with_one,
    what_is_refused_changes_nothing,
    a_layer_takes_it_over,
] }

const RULES: [PopulationRule; 3] =
    [PopulationRule::Exact, PopulationRule::ExactUnbiased, PopulationRule::UpdateBn];

/// Rows of 3 channels of 2 values each.
fn shape(rows: usize) -> Shape {
    Shape::new(&[rows, 3, 2], 1).unwrap()
}

fn add<E: Element, G: Engine>(
    population: &mut PopulationStatistics<G::Memory>,
    engine: &G,
    x: &[E],
) -> Result<()> {
    let shape = shape(x.len() / 6);
    population.add::<E, G>(engine, &shape, view::<G, E>(&up(engine, x)))
}

/// Mean, biased variance and number of values of every channel.
fn moments<E: Element>(x: &[E]) -> Vec<(f64, f64, f64)> {
    let of = |c: usize| {
        let xs = || wide(x).into_iter().enumerate().filter(move |(i, _)| i / 2 % 3 == c);
        let m = xs().count() as f64;
        let first = xs().next().map_or(0.0, |(_, x)| x);
        let mean = first + xs().map(|(_, x)| x - first).sum::<f64>() / m;
        (mean, xs().map(|(_, x)| (x - mean).powi(2)).sum::<f64>() / m, m)
    };
    (0..3).map(of).collect()
}

#[track_caller]
fn assert_population(got: &Population, right: &[(f64, f64)], bar: f64) {
    for (c, (mean, var)) in right.iter().enumerate() {
        let near = |got: f64, right: f64, of: f64| (got - right).abs() <= bar * of;
        assert!(near(got.mean[c], *mean, mean.abs().max(1.0)), "{got:?}, not {right:?}");
        assert!(near(got.var[c], *var, var.abs()), "{got:?}, not {right:?}");
    }
}

fn batches_of_any_size_are_one_population<E: Element, G: Engine>(engine: &G, bar: f64) {
    let x = numbers::<E>(6 * 40, 11);
    let all = moments(&x);
    for cut in [&[40][..], &[1, 39], &[13, 27], &[5, 1, 1, 20, 13]] {
        for rule in [PopulationRule::Exact, PopulationRule::ExactUnbiased] {
            let mut population = PopulationStatistics::new(engine, 3, rule).unwrap();
            let (mut start, mut batches) = (0, Vec::new());
            for rows in cut {
                batches.push((shape(*rows), up(engine, &x[start..start + 6 * rows])));
                start += 6 * rows;
            }
            let mut seen = Vec::new();
            population
                .add_all::<E, G>(engine, batches, |p| seen.push((p.batches, p.values)))
                .unwrap();
            let mut values = 0;
            let expected: Vec<_> = (1..)
                .zip(cut)
                .map(|(batch, rows)| {
                    values += 2 * *rows as u64;
                    (batch, values)
                })
                .collect();
            assert_eq!(seen, expected);
            let scale = if rule == PopulationRule::Exact { 1.0 } else { 80.0 / 79.0 };
            let right: Vec<_> = all.iter().map(|(mean, var, _)| (*mean, var * scale)).collect();
            let found = population.finish().unwrap();
            assert_population(&found, &right, bar);
            assert_eq!((found.values, found.batches), (80, cut.len() as u64));
        }
    }
}
fn batches_of_any_size_are_one_population_f64<G: Engine>(engine: &G) {
    batches_of_any_size_are_one_population::<f64, G>(engine, 1e-14);
}
fn batches_of_any_size_are_one_population_f32<G: Engine>(engine: &G) {
    batches_of_any_size_are_one_population::<f32, G>(engine, 1e-6);
}
fn batches_of_any_size_are_one_population_f16<G: Engine>(engine: &G) {
    batches_of_any_size_are_one_population::<f16, G>(engine, 1e-6);
}

/// In f32, E[x^2] - E[x]^2 has no digit left of these variances.
fn a_large_mean_costs_no_digits<G: Engine>(engine: &G) {
    let x: Vec<f32> = numbers::<f32>(6 * 60, 12).iter().map(|x| x + 40_000.0).collect();
    let mut population = PopulationStatistics::new(engine, 3, PopulationRule::Exact).unwrap();
    for x in x.chunks(6 * 7) {
        add(&mut population, engine, x).unwrap();
    }
    let right: Vec<_> = moments(&x).iter().map(|(mean, var, _)| (*mean, *var)).collect();
    assert_population(&population.finish().unwrap(), &right, 2e-6);
}

fn update_bn_averages_batches<G: Engine>(engine: &G) {
    let x = numbers::<f64>(6 * 20, 13);
    let batches = [&x[..6 * 3], &x[6 * 3..6 * 4], &x[6 * 4..]];
    let mut population = PopulationStatistics::new(engine, 3, PopulationRule::UpdateBn).unwrap();
    let mut right = [(0.0, 0.0); 3];
    for batch in batches {
        add(&mut population, engine, batch).unwrap();
        for (sum, (mean, var, m)) in right.iter_mut().zip(moments(batch)) {
            sum.0 += mean / 3.0;
            sum.1 += var * m / (m - 1.0) / 3.0;
        }
    }
    assert_population(&population.finish().unwrap(), &right, 1e-14);
}

fn parts_of_several_processes_are_one_population<G: Engine>(engine: &G) {
    let x = numbers::<f64>(6 * 30, 14);
    for rule in RULES {
        let new = || PopulationStatistics::new(engine, 3, rule).unwrap();
        let (mut whole, mut parts) = (new(), [new(), new(), new()]);
        // The last has nothing; the second only more.
        for (k, x) in x.chunks(6 * 5).enumerate() {
            add(&mut whole, engine, x).unwrap();
            add(&mut parts[usize::from(k > 1)], engine, x).unwrap();
        }
        let records = parts.map(|part| part.to_record().unwrap());
        assert_eq!([records[0][10], records[1][10], records[2][10]], [2.0, 4.0, 0.0]);
        let right = whole.finish().unwrap();
        let right_of: Vec<_> = right.mean.iter().copied().zip(right.var.iter().copied()).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut merged = new();
            for part in order {
                merged.merge(engine, &records[part]).unwrap();
            }
            let got = merged.finish().unwrap();
            assert_population(&got, &right_of, 1e-14);
            assert_eq!((got.values, got.batches), (right.values, right.batches));
            // And on with batches of one's own.
            add(&mut merged, engine, &x[..6 * 5]).unwrap();
            assert_eq!(merged.progress().batches, 7);
        }
    }
}

fn batches_without_values_and_with_one<G: Engine>(engine: &G) {
    let one = Shape::new(&[1, 3], 1).unwrap();
    let none = Shape::new(&[0, 3], 1).unwrap();
    let empty = up::<G, f64>(engine, &[]);
    for rule in RULES {
        let mut population = PopulationStatistics::new(engine, 3, rule).unwrap();
        let error = population.finish().unwrap_err().to_string();
        assert_eq!(error, "population: expected at least 1 batch, got none");
        population.add::<f64, G>(engine, &none, view::<G, f64>(&empty)).unwrap();
        assert_eq!((population.progress().batches, population.progress().values), (0, 0));
        let values: [[f64; 3]; 3] = [[1.0, 2.0, 3.0], [3.0, 2.0, 7.0], [2.0, 2.0, 5.0]];
        for (k, x) in values.iter().enumerate() {
            let x = up(engine, x);
            let added = population.add::<f64, G>(engine, &one, view::<G, f64>(&x));
            if rule == PopulationRule::UpdateBn {
                let error = added.unwrap_err().to_string();
                let said = "shape: update_bn needs more than 1 value per channel, got 1";
                assert_eq!(error, said);
                continue;
            }
            added.unwrap();
            population.add::<f64, G>(engine, &none, view::<G, f64>(&empty)).unwrap();
            match (k, rule) {
                (0, PopulationRule::ExactUnbiased) => {
                    let error = population.finish().unwrap_err().to_string();
                    let said = "an unbiased variance needs more than 1 value per channel, got 1";
                    assert_eq!(error, format!("population: {said}"));
                }
                (0, _) => assert_eq!(population.finish().unwrap().var, [0.0; 3]),
                _ => {}
            }
        }
        if rule == PopulationRule::UpdateBn {
            continue;
        }
        let scale = if rule == PopulationRule::Exact { 1.0 } else { 1.5 };
        let right = [(2.0, 2.0 / 3.0 * scale), (2.0, 0.0), (5.0, 8.0 / 3.0 * scale)];
        assert_population(&population.finish().unwrap(), &right, 1e-15);
    }
}

fn what_is_refused_changes_nothing<G: Engine>(engine: &G) {
    assert!(PopulationStatistics::new(engine, 0, PopulationRule::Exact).is_err());
    for rule in RULES {
        let mut population = PopulationStatistics::new(engine, 3, rule).unwrap();
        add(&mut population, engine, &numbers::<f32>(6 * 4, 15)).unwrap();
        let before = population.to_record().unwrap();
        let x = up(engine, &[0f32; 12]);
        let error = population
            .add::<f32, G>(engine, &Shape::new(&[6, 2], 1).unwrap(), view::<G, f32>(&x))
            .unwrap_err();
        assert_eq!(error, Error::Length { what: "channels", expected: 3, got: 2 });
        let error = population.add::<f32, G>(engine, &shape(3), view::<G, f32>(&x)).unwrap_err();
        assert_eq!(error, Error::Length { what: "x", expected: 18, got: 12 });
        let error = population.merge(engine, &before[1..]).unwrap_err();
        assert_eq!(error, Error::Length { what: "record", expected: 12, got: 11 });
        for (at, value) in [(9, 1.5), (9, f64::NAN), (10, -1.0), (11, 0.0), (10, f64::INFINITY)] {
            let mut record = before.clone();
            record[at] = value;
            let error = population.merge(engine, &record).unwrap_err().to_string();
            assert!(error.starts_with("record: expected one by the rule "), "{error}");
        }
        assert_eq!(population.to_record().unwrap(), before);
        let mut narrow = BatchNorm::<f64, G>::new(engine, 2, Config::default()).unwrap();
        let error = population.apply_to(&mut narrow).unwrap_err();
        assert_eq!(error, Error::Length { what: "channels", expected: 3, got: 2 });
        let config = Config::default().track_running_stats(false);
        let mut without = BatchNorm::<f64, G>::new(engine, 3, config).unwrap();
        let error = population.apply_to(&mut without).unwrap_err().to_string();
        assert_eq!(error, "running statistics: expected a layer that keeps some, got one without");
    }
}

fn a_layer_takes_it_over<G: Engine>(engine: &G) {
    let mut bn = layer::<f32, G>(engine, Config::default());
    let x = numbers::<f32>(6 * 9, 16);
    let mut population = PopulationStatistics::new(engine, 3, PopulationRule::Exact).unwrap();
    add(&mut population, engine, &x).unwrap();
    add(&mut population, engine, &x[..6 * 2]).unwrap();
    population.apply_to(&mut bn).unwrap();
    let (mean, var, batches) = snapshot(&bn).running.unwrap();
    let found = population.finish().unwrap();
    let narrow = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<_>>();
    assert_eq!((mean, var, batches), (narrow(&found.mean), narrow(&found.var), 2));
    bn.eval();
    let y = infer(&bn, &shape(9), &x).unwrap();
    let right = by_running(&bn, &shape(9), &x);
    assert_near(&y, &right, crate::support::tolerance::Kind::Element);
}
