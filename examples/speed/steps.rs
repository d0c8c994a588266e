//! A training step, forward and backward, by other statistics than the batch's own beside the plain one:
//! turns of the two, one after the other, so that whatever else the machine does meets both.
use crate::double;
use crate::table::turn::repetitions;
use crate::table::{Case, Layout, data};
use anyhow::{Result, ensure};
use batchnorm::{BatchNorm, Config, DType, Element, Engine, Ghost, Host, Input, Mask, Renorm};
use batchnorm::{RenormClip, Saved, Shape};
use half::{bf16, f16};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

/// Seconds of timed work in a turn.
const TURN: f64 = 0.01;

/// What statistics are taken of.
#[derive(Clone, Copy, PartialEq)]
pub enum By {
    Batch,
    /// What stands before some place of every sample.
    Padded,
    /// Two places of three, anywhere.
    Random,
    /// All, brought to the kept ones.
    Renorm,
    /// Groups of so many rows.
    Ghost(usize),
    /// Every so manieth row.
    Strided(usize),
    /// The same three of what stands before some place.
    PaddedRenorm,
    PaddedGhost(usize),
    PaddedStrided(usize),
}

impl By {
    const OTHERS: [Self; 13] = [
        By::Padded,
        By::Random,
        By::Renorm,
        By::Ghost(4),
        By::Ghost(16),
        By::Ghost(32),
        By::Strided(4),
        By::Strided(32),
        By::PaddedRenorm,
        By::PaddedGhost(4),
        By::PaddedGhost(16),
        By::PaddedStrided(4),
        By::PaddedStrided(32),
    ];
    /// Whether so many rows have groups.
    fn groups(self, rows: usize) -> bool {
        match self.of_all() {
            By::Ghost(size) | By::Strided(size) => size < rows && rows.is_multiple_of(size),
            _ => true,
        }
    }
    /// The same without a mask.
    fn of_all(self) -> Self {
        match self {
            By::Padded | By::Random => By::Batch,
            By::PaddedRenorm => By::Renorm,
            By::PaddedGhost(size) => By::Ghost(size),
            By::PaddedStrided(size) => By::Strided(size),
            _ => self,
        }
    }
    fn name(self) -> String {
        match self {
            By::Batch => "plain".into(),
            By::Padded => "padded".into(),
            By::Random => "random".into(),
            By::Renorm => "renorm".into(),
            By::Ghost(size) => format!("ghost{size}"),
            By::Strided(size) => format!("strided{size}"),
            _ => format!("padded-{}", self.of_all().name()),
        }
    }
    fn config(self) -> Config {
        let config = Config::default();
        match self.of_all() {
            By::Renorm => config.renorm(Renorm::keras().clip(RenormClip::paper(3.0, 5.0))),
            By::Ghost(size) => config.ghost(Ghost::consecutive(size)),
            By::Strided(size) => config.ghost(Ghost::strided(size)),
            _ => config,
        }
    }
    /// A byte for every position, where there is a mask.
    pub fn places(self, case: &Case) -> Option<Vec<u8>> {
        let (samples, positions) = match case.layout {
            // Sequences of 128 rows.
            Layout::Nc => (case.dims[0].div_ceil(128), 128.min(case.dims[0])),
            _ => (case.dims[0], case.dims[2..].iter().product::<usize>()),
        };
        let all = case.dims[0] * case.dims[2..].iter().product::<usize>();
        let at = |i: usize| match self {
            By::Random => u8::from(data::value(i as u32, 99) < 1.17),
            _ => {
                let (sample, place) = (i / positions, i % positions);
                // From a quarter of the places on.
                u8::from(4 * place < positions + (sample * 37 + 11) % 100 * 3 * positions / 100)
            }
        };
        debug_assert!(samples * positions >= all);
        (self != self.of_all()).then(|| (0..all).map(at).collect())
    }
}

/// The shapes: in the cache and past it, of long and of short runs.
pub const SHAPES: [(&[usize], Layout); 18] = [
    (&[32, 64, 56, 56], Layout::Nchw),
    (&[32, 128, 28, 28], Layout::Nchw),
    (&[32, 256, 14, 14], Layout::Nchw),
    (&[32, 512, 7, 7], Layout::Nchw),
    (&[8, 64, 32, 32], Layout::Nchw),
    (&[16, 64, 400], Layout::Nchw),
    (&[4, 16, 8, 8], Layout::Nchw),
    (&[32, 64, 56, 56], Layout::Nhwc),
    (&[32, 256, 14, 14], Layout::Nhwc),
    (&[16, 64, 400], Layout::Nhwc),
    (&[8, 32, 32, 32], Layout::Nhwc),
    (&[64, 256, 7, 7], Layout::Nhwc),
    (&[4096, 256], Layout::Nc),
    (&[4096, 64], Layout::Nc),
    (&[1024, 100], Layout::Nc),
    (&[256, 64], Layout::Nc),
    (&[256, 1024], Layout::Nc),
    (&[128, 32], Layout::Nc),
];

/// Prints how many times the plain step every other one takes.
pub fn compare<G: Engine<Memory = Host>>(
    engine: &G,
    words: &[&str],
    rounds: usize,
) -> Result<ExitCode> {
    let mut out = io::stdout();
    writeln!(
        out,
        "{:16} {:6} {:5} {:18} {:>10} {:>7}",
        "shape", "layout", "dtype", "", "us", "x plain"
    )?;
    for dtype in ["f32", "bf16", "f16"] {
        for (dims, layout) in SHAPES {
            for by in By::OTHERS {
                let case = Case::parse("bwd", dims, layout.name(), dtype)?;
                let (name, by_name) = (case.dims_name(), by.name());
                let name = format!("{name:16} {:6} {dtype:5} {by_name:18}", layout.name());
                if !has_words(&name, words) || !by.groups(dims[0]) {
                    continue;
                }
                let [plain, other] = match case.dtype {
                    DType::F32 => pair::<f32, G>(engine, &case, by, rounds)?,
                    DType::F16 => pair::<f16, G>(engine, &case, by, rounds)?,
                    _ => pair::<bf16, G>(engine, &case, by, rounds)?,
                };
                let ratio = median(plain.iter().zip(&other).map(|(a, b)| b / a).collect());
                let us = plain.iter().copied().fold(f64::INFINITY, f64::min) * 1e6;
                writeln!(out, "{name} {us:10.1} {ratio:7.2}")?;
            }
        }
    }
    double::compare(engine, words, rounds)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether each of the words is a part of one of a name's.
pub fn has_words(name: &str, words: &[&str]) -> bool {
    words.iter().all(|word| name.split_whitespace().any(|part| part.contains(word)))
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Seconds of the plain step and of the other, by turn.
fn pair<E: Element<Acc = f32>, G: Engine<Memory = Host>>(
    engine: &G,
    case: &Case,
    by: By,
    rounds: usize,
) -> Result<[Vec<f64>; 2]> {
    let [x, grad_y] = [data::X, data::GRAD_Y].map(|seed| data::tensor::<E>(case, seed));
    let mut both = [By::Batch, by].map(|by| Step::new(engine, case, by));
    let [plain, other] = &mut both;
    let (plain, other) = (plain.as_mut().map_err(take)?, other.as_mut().map_err(take)?);
    ensure!(plain.places.is_none(), "the plain step: expected no mask");
    let of = (&x[..], &grad_y[..]);
    in_turns(rounds, |k| if k == 0 { plain.run(of) } else { other.run(of) })
}

/// Seconds of `run` of 0 and of 1, by turn.
pub fn in_turns(rounds: usize, mut run: impl FnMut(usize) -> Result<()>) -> Result<[Vec<f64>; 2]> {
    run(0)?;
    run(1)?;
    let n = repetitions(TURN, timed(|| run(0))?.min(timed(|| run(0))?));
    let mut times = [vec![], vec![]];
    for round in 0..rounds {
        for k in [round % 2, 1 - round % 2] {
            run(k)?;
            times[k].push(timed(|| (0..n).try_for_each(|_| run(k)))? / n as f64);
        }
    }
    Ok(times)
}

fn take(error: &mut anyhow::Error) -> anyhow::Error {
    std::mem::replace(error, anyhow::anyhow!("taken"))
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed().as_secs_f64())
}

/// A layer with the memory of its step.
struct Step<E: Element<Acc = f32>, G: Engine<Memory = Host>> {
    layer: BatchNorm<f32, G>,
    shape: Shape,
    places: Option<Vec<u8>>,
    y: Vec<E>,
    grad_x: Vec<E>,
    saved: Saved<Host, f32>,
}

impl<E: Element<Acc = f32>, G: Engine<Memory = Host>> Step<E, G> {
    fn new(engine: &G, case: &Case, by: By) -> Result<Self> {
        let shape = case.shape()?;
        let zeros = || vec![E::default(); shape.len()];
        Ok(Self {
            layer: BatchNorm::new(engine, shape.channels(), by.config())?,
            shape,
            places: by.places(case),
            y: zeros(),
            grad_x: zeros(),
            saved: Saved::new(),
        })
    }
    fn run(&mut self, (x, grad_y): (&[E], &[E])) -> Result<()> {
        let Self { layer, shape, places, y, grad_x, saved } = self;
        let grad_y = Input::View(grad_y);
        match places {
            Some(places) => {
                let mask = Mask::<Host>::new(places);
                layer.forward_masked_into(shape, x, None, mask, y, saved)?;
                let to = Some(&mut grad_x[..]);
                layer.backward_masked_into(saved, x, None, places, grad_y, to, None)?;
            }
            None => {
                layer.forward_into(shape, x, None, y, saved)?;
                layer.backward_into(saved, x, None, grad_y, Some(grad_x), None)?;
            }
        }
        layer.zero_grad();
        Ok(())
    }
}
