//! `exact_floats.cu`: 32 and 64 bits.
use super::super::data::Random;
use super::super::device::Device;
use super::super::output::{Agreement, Output};
use super::{Check, Op, UnaryOp, ternary, unary};
use cudarc::driver::DriverError;
use half::f16;

/// The operations on both widths, for which Rust has the same names.
macro_rules! real {
    ($float:ty) => {
        [
            ("add", |a, b, _| a + b),
            ("sub", |a, b, _| a - b),
            ("mul", |a, b, _| a * b),
            ("fma", <$float>::mul_add),
            ("div", |a, b, _| a / b),
            ("sqrt", |a, _, _| a.sqrt()),
            ("rcp", |a, _, _| 1.0 / a),
            ("min + 0", |a, b, _| a.min(b) + 0.0),
            ("max + 0", |a, b, _| a.max(b) + 0.0),
            ("abs", |a, _, _| a.abs()),
            ("neg", |a, _, _| -a),
            ("rint", |a, _, _| a.round_ties_even()),
            ("lt", |a, b, c| if a < b { a } else { c }),
            ("not lt", |a, b, c| if a < b { c } else { a }),
        ]
    };
}

const BOTH_32: [Op<f32, f32>; 14] = real!(f32);
const BOTH_64: [Op<f64, f64>; 14] = real!(f64);

const ONLY_32: &[Op<f32, f32>] = &[
    ("floor", |a, _, _| a.floor()),
    ("ceil", |a, _, _| a.ceil()),
    ("trunc", |a, _, _| a.trunc()),
    ("ge", |a, b, c| if a >= b { a } else { c }),
    ("ne", |a, b, c| if a != b { a } else { c }),
];

const ONLY_64: &[Op<f64, f64>] = &[
    ("cvt.rn.f32.f64", |a, _, _| f64::from(a as f32)),
    ("cvt.rz.f32.f64", |a, _, _| {
        let nearest = a as f32;
        let beyond = f64::from(nearest).abs() > a.abs();
        f64::from(if beyond { f32::from_bits(nearest.to_bits() - 1) } else { nearest })
    }),
];

/// The tables in the order of the kernels.
fn in_order<T>(both: &[Op<T, T>], only: &[Op<T, T>]) -> Vec<Op<T, T>> {
    both.iter().chain(only).copied().collect()
}

const TO_INTEGERS: &[UnaryOp<f32, i32>] = &[
    ("rzi.s32", |a| a as i32),
    ("rni.s32", |a| a.round_ties_even() as i32),
    ("rmi.s32", |a| a.floor() as i32),
    ("rpi.s32", |a| a.ceil() as i32),
    ("rzi.u32", |a| a as u32 as i32),
    ("rni.u32", |a| a.round_ties_even() as u32 as i32),
    // What is not a number gives 0, but from f64 the smallest number.
    ("rzi.s32.f64", |a| if a.is_nan() { i32::MIN } else { (f64::from(a) * 1.000000001) as i32 }),
];

const FROM_INTEGERS: &[UnaryOp<i32, f32>] = &[
    ("f32.s32", |a| a as f32),
    ("f32.u32", |a| a as u32 as f32),
    ("f32.s64", |a| (i64::from(a) * 4099) as f32),
    ("f64.s32", |a| f64::from(a) as f32),
    ("f16.s32", |a| f16::from_f32(super::halves::to_odd(f64::from(a))).to_f32()),
];

/// Ends of ranges, neighbours of 1, numbers that round: all pairs of them, with a third that makes a sum cancel or
/// round; then random bits.
fn operands_64() -> Vec<[f64; 3]> {
    let tiny = f64::from_bits(1);
    let subnormal = f64::from_bits((1 << 52) - 1);
    let mut edges = vec![0.0, tiny, subnormal, f64::MIN_POSITIVE, 1.0, 1.0 + f64::EPSILON];
    edges.extend([1.0 - f64::EPSILON / 2.0, 1.5, 2.0, 3.0, 1.0 / 3.0, 0.1, 1e-200, 1e200]);
    edges.extend([f64::MAX, f64::INFINITY, f64::NAN, 0.5, 2.5, 16777217.0, 1e-40, 3.4028236e38]);
    edges.extend([1.401298464324817e-45, 7.006492321624085e-46, 1.1754942807573643e-38]);
    let signed: Vec<f64> = edges.iter().flat_map(|&v| [v, -v]).collect();
    triples(&signed, |a, b| -(a * b), |random| f64::from_bits(random.bits()))
}

fn operands_32() -> Vec<[f32; 3]> {
    let tiny = f32::from_bits(1);
    let subnormal = f32::from_bits((1 << 23) - 1);
    let mut edges = vec![0.0, tiny, subnormal, f32::MIN_POSITIVE, 1.0, 1.0 + f32::EPSILON];
    edges.extend([1.0 - f32::EPSILON / 2.0, 1.5, 2.0, 3.0, 1.0 / 3.0, 0.1, 1e-20, 1e20]);
    edges.extend([
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
        0.5,
        2.5,
        8388607.5,
        16777216.0,
        2147483648.0,
    ]);
    edges.extend([4294967040.0, 65504.0, 65520.0, 5.9604645e-8, 2.0 * f32::MIN_POSITIVE]);
    let signed: Vec<f32> = edges.iter().flat_map(|&v| [v, -v]).collect();
    triples(&signed, |a, b| -(a * b), |random| f32::from_bits(random.bits() as u32))
}

fn triples<T: Copy>(edges: &[T], cancels: fn(T, T) -> T, any: fn(&mut Random) -> T) -> Vec<[T; 3]> {
    let mut random = Random::new(edges.len() as u64);
    let mut triples = Vec::new();
    for (i, &a) in edges.iter().enumerate() {
        for (j, &b) in edges.iter().enumerate() {
            triples.push([a, b, cancels(a, b)]);
            triples.push([a, b, edges[(5 * i + j) % edges.len()]]);
        }
    }
    for _ in 0..3000 {
        let (a, b) = (any(&mut random), any(&mut random));
        triples.push([a, b, cancels(a, b)]);
        triples.push([a, b, any(&mut random)]);
    }
    triples
}

pub fn run(device: &Device) -> Result<Vec<Check>, DriverError> {
    let source = "exact_floats";
    let (narrow, wide) = (operands_32(), operands_64());
    let ops = in_order(&BOTH_32, ONLY_32);
    let mut checks = ternary(device, (source, "floats_32"), &narrow, &ops)?;
    let ops = in_order(&BOTH_64, ONLY_64);
    checks.extend(ternary(device, (source, "floats_64"), &wide, &ops)?);

    let reals: Vec<f32> = narrow.iter().flatten().copied().collect();
    let integers: Vec<i32> =
        reals.iter().map(|v| v.to_bits() as i32 >> (v.to_bits() % 31)).collect();
    checks.extend(unary(device, (source, "to_integers"), &reals, TO_INTEGERS)?);
    checks.extend(unary(device, (source, "from_integers"), &integers, FROM_INTEGERS)?);
    Ok(checks)
}

/// `rsqrt.approx.f32`, whose documented greatest relative error is 2^-22.9; and how far the results are from that.
pub fn approximate(device: &Device) -> Result<(Output, f64), DriverError> {
    let mut random = Random::new(1);
    let operands: Vec<f32> = (0..4096).map(|_| (random.uniform() * 80.0).exp2() as f32).collect();
    let ops = 1;
    let source = "exact_floats";
    let out: Vec<f32> =
        super::launch::elementwise(device, source, "approximate", &[&operands], ops)?;
    let relative = out.iter().zip(&operands).map(|(got, &a)| {
        let exact = 1.0 / f64::from(a).sqrt();
        (f64::from(*got) - exact).abs() / exact
    });
    let worst = relative.fold(0.0, f64::max);
    // Two devices may be on opposite sides of the exact value.
    let agreement = Agreement::Relative(2.0 * RSQRT_BOUND);
    Ok((Output { agreement, ..Output::exact("approximate/rsqrt", &out) }, worst))
}

/// 2^-22.9
pub const RSQRT_BOUND: f64 = 1.278e-7;
