//! Kinds of values over shapes, epilogues, modes and dtypes: near the reference, and NaN and infinities where it has
//! them. Every kind in every mode and dtype; shapes and epilogues by seed.
use crate::support::engines::engines;
use crate::support::near::near_the_definition;
use crate::support::oracle::served;
use crate::support::run::{self, Epilogue, Inputs, Mode, Random, Spread, channel_of};
use batchnorm::{DType, Element, Engine, Real, Shape};
use half::{bf16, f16};

engines! { [reference, cpu, cuda, cuda_split] [
    subnormal_values,
    values_near_the_end_of_the_type,
    infinite_values,
    values_that_are_none,
    huge_values_of_alternating_signs,
    constant_values,
    two_values_of_a_channel,
    values_far_from_0,
    ordinary_values,
] }

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Subnormal,
    NearOverflow,
    Infinite,
    NaN,
    AlternatingHuge,
    Constant,
    Two,
    LargeMean,
    Ordinary,
}

fn subnormal_values<G: Engine>(engine: &G) {
    stress(engine, Kind::Subnormal);
}
fn values_near_the_end_of_the_type<G: Engine>(engine: &G) {
    stress(engine, Kind::NearOverflow);
}
fn infinite_values<G: Engine>(engine: &G) {
    stress(engine, Kind::Infinite);
}
fn values_that_are_none<G: Engine>(engine: &G) {
    stress(engine, Kind::NaN);
}
fn huge_values_of_alternating_signs<G: Engine>(engine: &G) {
    stress(engine, Kind::AlternatingHuge);
}
fn constant_values<G: Engine>(engine: &G) {
    stress(engine, Kind::Constant);
}
fn two_values_of_a_channel<G: Engine>(engine: &G) {
    stress(engine, Kind::Two);
}
fn values_far_from_0<G: Engine>(engine: &G) {
    stress(engine, Kind::LargeMean);
}
fn ordinary_values<G: Engine>(engine: &G) {
    stress(engine, Kind::Ordinary);
}

/// NCHW, NHWC, N x C, odd ones.
const SHAPES: [(&[usize], usize); 11] = [
    (&[3, 5, 2, 3], 1),
    (&[2, 4, 4, 4], 1),
    (&[2, 3, 3, 5], 3),
    (&[2, 2, 2, 16], 3),
    (&[8, 35], 1),
    (&[64, 8], 1),
    (&[33, 1], 1),
    (&[1, 2, 301], 1),
    (&[3, 3, 17], 1),
    (&[2, 3, 4, 2], 2),
    (&[6, 67], 1),
];
/// Those that the CPU engine cuts into several tasks, too.
const LARGE: [(&[usize], usize); 4] =
    [(&[5, 3, 4001], 1), (&[401, 129], 1), (&[90, 130, 5], 1), (&[3, 14, 14, 64], 3)];
const TWO: [(&[usize], usize); 4] =
    [(&[2, 6], 1), (&[1, 3, 2], 1), (&[2, 67, 1], 1), (&[2, 1, 1], 1)];

fn is_device<G: Engine>(engine: &G) -> bool {
    !matches!(engine.name(), "cpu" | "reference")
}

fn stress<G: Engine>(engine: &G, kind: Kind) {
    let mut random = Random(kind as u64 + 1);
    for round in 0..if is_device(engine) { 2 } else { 10 } {
        for mode in [Mode::Train(Some(0.1)), Mode::Train(None), Mode::Eval] {
            let large = engine.name() == "cpu" && round % 5 == 0;
            one::<f64, G>(engine, kind, mode, large, &mut random);
            one::<f32, G>(engine, kind, mode, large, &mut random);
            one::<f16, G>(engine, kind, mode, large, &mut random);
            one::<bf16, G>(engine, kind, mode, large, &mut random);
        }
    }
}

fn one<E: Element, G: Engine>(
    engine: &G,
    kind: Kind,
    mode: Mode,
    large: bool,
    random: &mut Random,
) {
    let shapes = match (kind, large) {
        (Kind::Two, _) => &TWO[..],
        (_, true) => &LARGE,
        _ => &SHAPES,
    };
    let (dims, axis) = pick(shapes, random);
    let shape = Shape::new(dims, axis).unwrap();
    let all: Vec<Epilogue> = Epilogue::all().collect();
    let inputs = inputs::<E>(kind, &shape, pick(&all, random), random);
    near_the_definition(engine, &inputs, mode);
    if mode == Mode::Eval {
        let [apart, over_x] = [Mode::Eval, Mode::InPlace]
            .map(|mode| served(run::forward(engine, &inputs, mode, None)));
        let (Some(apart), Some(over_x)) = (apart, over_x) else { return };
        assert!(
            run::same_bits(&apart, &over_x),
            "{}, {}, {shape}: in place",
            engine.name(),
            E::DTYPE
        );
    }
}

fn pick<T: Copy>(of: &[T], random: &mut Random) -> T {
    of[(random.uniform() * of.len() as f64) as usize]
}

/// The least number above 0, and the largest.
fn ends(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F64 => (f64::from_bits(1), f64::MAX),
        DType::F32 => (2f64.powi(-149), f64::from(f32::MAX)),
        DType::F16 => (2f64.powi(-24), 65504.0),
        DType::Bf16 => (2f64.powi(-133), f64::from(bf16::MAX)),
        other => panic!("{other} has no range here"),
    }
}

fn inputs<E: Element>(
    kind: Kind,
    shape: &Shape,
    epilogue: Epilogue,
    random: &mut Random,
) -> Inputs<E> {
    let (least, largest) = ends(E::DTYPE);
    let (mut spread, seed) = (Spread { mean: 0.7, std: 1.3 }, (random.uniform() * 1e9) as u64);
    if kind == Kind::LargeMean {
        let most = if E::DTYPE == DType::F16 { 3e4 } else { 1e7 };
        spread = Spread { mean: most * random.uniform(), std: pick(&[1.0, 20.0], random) };
    }
    let mut inputs = Inputs::<E>::spread(shape, epilogue, spread, seed);
    inputs.eps = pick(&[1e-5, 1e-3], random);
    let channels = shape.channels();
    let constants: Vec<f64> =
        (0..channels).map(|_| pick(&[0.1, -1e4, 0.0, 3e4, 1.0 / 3.0], random)).collect();
    // One channel in two has such values; where there is one, it has.
    let chosen: Vec<bool> = (0..channels).map(|c| c == 0 || random.uniform() < 0.5).collect();
    let huge = pick(&[0.9, 1e-3, 1e-8], random) * largest.min(1e300);
    for i in 0..shape.len() {
        let c = channel_of(shape, i);
        let sign = if random.uniform() < 0.5 { -1.0 } else { 1.0 };
        let poison = random.uniform() < 0.1 && chosen[c];
        let value = match kind {
            Kind::Subnormal => sign * least * (random.uniform() * 100.0).floor(),
            Kind::NearOverflow => sign * largest * (1.0 - 0.5 * random.uniform()),
            Kind::Infinite if poison => sign * f64::INFINITY,
            Kind::NaN if poison => f64::NAN,
            Kind::AlternatingHuge if chosen[c] => {
                let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
                sign * huge * (1.0 - 0.25 * random.uniform())
            }
            Kind::Constant => constants[c],
            _ => continue,
        };
        inputs.x[i] = run::narrow(value);
    }
    // Given statistics are of such values, too.
    for c in 0..channels {
        let (mean, var) = match kind {
            Kind::Subnormal => (3.0 * least, 0.0),
            Kind::NearOverflow => (0.1 * largest, largest),
            Kind::AlternatingHuge if chosen[c] => (0.1 * huge, huge),
            Kind::Constant => (constants[c], 0.0),
            Kind::Infinite if chosen[c] => {
                (pick(&[1.0, f64::INFINITY], random), pick(&[1.0, f64::INFINITY], random))
            }
            Kind::NaN if chosen[c] => (pick(&[1.0, f64::NAN], random), 1.0),
            _ => continue,
        };
        (inputs.mean[c], inputs.var[c]) = (E::Acc::from_f64(mean), E::Acc::from_f64(var));
    }
    inputs
}
