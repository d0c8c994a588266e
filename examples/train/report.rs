//! What came out, as a table.
use std::fmt::Write;

use super::data::Data;
use super::experiment::Point;
use super::network::Score;
use super::options::Settings;

/// What the table counts the steps to.
pub const TARGETS: [f64; 4] = [0.80, 0.90, 0.95, 0.97];

/// What is compared with what.
pub fn header(settings: &Settings, data: &Data, engine: &str) -> String {
    let Settings { learning_rate, batch, seed, .. } = settings;
    let name = settings.nonlinearity.name();
    format!(
        "{data}\n\
         two networks of 3 hidden layers of 100 units, with and without batch normalization before \
         the {name}\n\
         both: the same initial weights, the same batches of {batch}, SGD with learning rate \
         {learning_rate}, seed {seed}, engine {engine}"
    )
}

/// The first step at whose test the accuracy was at least `target`.
pub fn steps_to(points: &[Point], target: f64, score: impl Fn(&Point) -> Score) -> Option<u64> {
    points.iter().find(|point| score(point).accuracy >= target).map(|point| point.step)
}

/// Steps to [`TARGETS`], and how it ended. `points` are those of the curve and that of the end;
/// `by_population` how the network with batch normalization does there by the statistics of all training
/// images.
pub fn table(points: &[Point], settings: &Settings, by_population: Option<Score>) -> String {
    let mut table = String::new();
    let mut line = |a: &str, b: &str, c: &str| {
        // A string takes everything.
        let _ = writeln!(table, "{a:<26} {b:>11} {c:>11}");
    };
    line("", "with", "without");
    for target in TARGETS {
        let cell = |score: fn(&Point) -> Score| {
            steps_to(points, target, score).map_or("not reached".into(), |step| step.to_string())
        };
        let name = format!("steps to {:.0} % accuracy", target * 100.0);
        line(&name, &cell(|p| p.with), &cell(|p| p.without));
    }
    if let Some(Point { step, with, without }) = points.last() {
        let name = format!("accuracy after {step}");
        line(&name, &percent(with), &percent(without));
        let best = |score: fn(&Point) -> Score| {
            let best = points.iter().map(|p| score(p).accuracy).fold(0.0, f64::max);
            format!("{:.1} %", best * 100.0)
        };
        line("best accuracy", &best(|p| p.with), &best(|p| p.without));
        let name = format!("test loss after {step}");
        line(&name, &format!("{:.4}", with.loss), &format!("{:.4}", without.loss));
    }
    if let (Some(point), Some(by_population)) = (points.last(), by_population) {
        let rows =
            [("by moving statistics", &point.with), ("by population statistics", &by_population)];
        for (name, score) in rows {
            let accuracy = percent(score);
            let _ = writeln!(table, "{name:<26} {accuracy:>11}, loss {:.4}", score.loss);
        }
    }
    let every = settings.test_every;
    table + &format!("accuracy on the test images, measured every {every} steps\n")
}

/// `97.2 %`
pub fn percent(score: &Score) -> String {
    format!("{:.1} %", score.accuracy * 100.0)
}

/// Of the plot.
pub fn title(settings: &Settings, data: &Data) -> String {
    let Settings { learning_rate, batch, seed, nonlinearity, .. } = settings;
    let (data, nonlinearity) = (data.name(), nonlinearity.name());
    format!(
        "{data}: 3 x 100 {nonlinearity}, learning rate {learning_rate}, batch {batch}, seed {seed}"
    )
}

/// Both networks, for the progress bar: accuracy and loss on the test images.
pub fn line(Point { with, without, .. }: &Point) -> String {
    let one = |score: &Score| format!("{} (loss {:.3})", percent(score), score.loss);
    format!("test accuracy with {}, without {}", one(with), one(without))
}
