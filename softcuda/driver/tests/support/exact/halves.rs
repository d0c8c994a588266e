//! `exact_floats.cu`: 16 bits.
use super::super::device::{Device, blocks};
use super::launch::{elementwise, launch};
use super::{Check, Op, ternary};
use cudarc::driver::DriverError;
use half::{bf16, f16};

/// Rounded to odd: inexact values get an odd last bit, so that rounding once more to a shorter format is the same as
/// rounding the value itself.
pub fn to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || nearest.to_bits() & 1 == 1 || value.is_nan() {
        return nearest;
    }
    let away = f64::from(nearest).abs() < value.abs();
    f32::from_bits(if away { nearest.to_bits() + 1 } else { nearest.to_bits() - 1 })
}

/// a * b + c, rounded to odd. The product of two numbers of 16 bits is exact in f64.
fn fma_to_odd(a: f64, b: f64, c: f64) -> f32 {
    let product = a * b;
    let sum = product + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    // What the addition lost, exactly.
    let of_c = sum - product;
    let lost = (product - (sum - of_c)) + (c - of_c);
    if lost == 0.0 || sum.to_bits() & 1 == 1 {
        return to_odd(sum);
    }
    let away = (lost > 0.0) == (sum > 0.0);
    to_odd(f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 }))
}

macro_rules! fma {
    ($half:ty) => {
        |a: $half, b: $half, c: $half| -> $half {
            <$half>::from_f32(fma_to_odd(a.to_f64(), b.to_f64(), c.to_f64()))
        }
    };
}
const FMA_F16: fn(f16, f16, f16) -> f16 = fma!(f16);
const FMA_BF16: fn(bf16, bf16, bf16) -> bf16 = fma!(bf16);

/// Of two zeros the positive one is greater; a number is preferred to what is none.
macro_rules! extreme {
    ($first:expr, $second:expr, $better:tt, $sign:literal) => {{
        let (a, b) = ($first, $second);
        if a.is_nan() {
            b
        } else if b.is_nan() || a $better b {
            a
        } else if a == b && a.is_sign_negative() == $sign {
            a
        } else {
            b
        }
    }};
}

const F16: &[Op<f16, f16>] = &[
    ("add", |a, b, _| f16::from_f32(to_odd(a.to_f64() + b.to_f64()))),
    ("sub", |a, b, _| f16::from_f32(to_odd(a.to_f64() - b.to_f64()))),
    ("mul", |a, b, _| f16::from_f32(to_odd(a.to_f64() * b.to_f64()))),
    ("fma", FMA_F16),
    ("fma.f16x2, low", FMA_F16),
    ("fma.f16x2, high", |a, b, c| FMA_F16(b, c, a)),
    ("neg", |a, _, _| -a),
    ("lt", |a, b, c| if a < b { a } else { c }),
];
const F16_80: &[Op<f16, f16>] =
    &[("max", |a, b, _| extreme!(a, b, >, false)), ("min", |a, b, _| extreme!(a, b, <, true))];
const BF16: &[Op<bf16, bf16>] = &[
    ("fma", FMA_BF16),
    ("fma.bf16x2, low", FMA_BF16),
    ("fma.bf16x2, high", |a, b, c| FMA_BF16(b, c, a)),
    ("max", |a, b, _| extreme!(a, b, >, false)),
    ("min", |a, b, _| extreme!(a, b, <, true)),
];

/// Every f16 and every bf16, in f32.
fn widened(device: &Device) -> Result<Vec<Check>, DriverError> {
    let config = blocks(256, 256);
    let kernel = ("exact_floats", "widen");
    let out: Vec<f32> = launch::<u32, f32>(device, kernel, &[], &[4 << 16], config, &[])?.remove(0);
    let f16s: Vec<f32> = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).collect();
    let bf16s: Vec<f32> = (0..=u16::MAX).map(|bits| bf16::from_bits(bits).to_f32()).collect();
    let expected =
        [("f16", &f16s), ("bf16", &bf16s), ("f16x2, high", &f16s), ("bf16x2, high", &bf16s)];
    let pairs = expected.iter().zip(out.chunks_exact(1 << 16));
    Ok(pairs.map(|((name, e), got)| Check::new(format!("widen/{name}"), got, e)).collect())
}

/// Around every boundary at which rounding to 16 bits decides: every value, the middle between it and the next, and
/// what lies just beside those.
fn boundaries() -> Vec<f32> {
    let mut values = Vec::new();
    for bits in 0..=u16::MAX {
        let value = f16::from_bits(bits).to_f32();
        let next = f16::from_bits(bits.wrapping_add(1)).to_f32();
        // Behind the greatest finite number comes what would be the next one.
        let next = if next.is_infinite() { value.signum() * 65536.0 } else { next };
        let middle = value / 2.0 + next / 2.0;
        let beside = |v: f32, by: u32| f32::from_bits(v.to_bits().wrapping_add(by));
        values.extend([value, middle, beside(middle, 1), beside(middle, u32::MAX)]);
        for low in [0x7fff, 0x8000, 0x8001] {
            values.push(f32::from_bits(u32::from(bits) << 16 | low));
        }
    }
    values
}

fn narrowed(device: &Device) -> Result<Vec<Check>, DriverError> {
    let values = boundaries();
    let n = values.len();
    let (kernel, config) = (("exact_floats", "narrow"), blocks(n.div_ceil(128), 128));
    let outs: Vec<Vec<u16>> =
        launch(device, kernel, &[&values], &[3 * n, 2 * n], config, &[n as i32])?;
    let as_f16 = |bits: &[u16]| -> Vec<f16> { bits.iter().map(|&b| f16::from_bits(b)).collect() };
    let as_bf16 =
        |bits: &[u16]| -> Vec<bf16> { bits.iter().map(|&b| bf16::from_bits(b)).collect() };
    let to_f16: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
    let to_bf16: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
    let toward_zero: Vec<f16> =
        values.iter().zip(&to_f16).map(|(v, n)| truncated(*v, *n)).collect();
    let (f16s, bf16s) = (as_f16(&outs[0]), as_bf16(&outs[1]));
    Ok(vec![
        Check::new("narrow/f16 rn", &f16s[..n], &to_f16),
        Check::new("narrow/f16 rz", &f16s[n..2 * n], &toward_zero),
        Check::new("narrow/f16x2 rn", &f16s[2 * n..], &to_f16),
        Check::new("narrow/bf16 rn", &bf16s[..n], &to_bf16),
        Check::new("narrow/bf16x2 rn", &bf16s[n..], &to_bf16),
    ])
}

/// Rounded toward zero, from the nearest one.
fn truncated(value: f32, nearest: f16) -> f16 {
    let beyond = nearest.to_f32().abs() > value.abs();
    if beyond { f16::from_bits(nearest.to_bits() - 1) } else { nearest }
}

/// All pairs of ends of ranges and of patterns spread over all others, each with four thirds.
fn operands() -> Vec<[u16; 3]> {
    let mut patterns = vec![0, 1, 2, 0x3ff, 0x400, 0x7f, 0x80, 0x3c00, 0x3f80, 0x3c01, 0x3f81];
    patterns.extend([0x7bff, 0x7c00, 0x7e00, 0x7f7f, 0x7fc0, 0x3555, 0x3eab, 0x0c00, 0x5640]);
    patterns.extend((0..24).map(|i: u16| i.wrapping_mul(2731).wrapping_add(911)));
    let signed: Vec<u16> = patterns.iter().flat_map(|&p| [p & 0x7fff, p | 0x8000]).collect();
    let mut operands = Vec::new();
    for &a in &signed {
        for &b in &signed {
            let turn = operands.len();
            operands.extend((0..4).map(|k| [a, b, signed[(turn + 11 * k) % signed.len()]]));
        }
    }
    operands
}

pub fn run(device: &Device) -> Result<Vec<Check>, DriverError> {
    let mut checks = widened(device)?;
    checks.extend(narrowed(device)?);
    let f16s: Vec<_> = operands().into_iter().map(|o| o.map(f16::from_bits)).collect();
    checks.extend(ternary(device, ("exact_floats", "halves"), &f16s, F16)?);
    if device.capability >= 80 {
        let bf16s: Vec<_> = operands().into_iter().map(|o| o.map(bf16::from_bits)).collect();
        checks.extend(ternary(device, ("exact_floats", "bfloats"), &bf16s, BF16)?);
        let columns: [Vec<f16>; 2] = [0, 1].map(|k| f16s.iter().map(|o| o[k]).collect());
        let inputs = [&columns[0][..], &columns[1][..]];
        let out: Vec<f16> = elementwise(device, "exact_floats", "halves_80", &inputs, 2)?;
        for ((name, op), got) in F16_80.iter().zip(out.chunks_exact(f16s.len())) {
            let expected: Vec<f16> = f16s.iter().map(|&[a, b, c]| op(a, b, c)).collect();
            checks.push(Check::new(format!("halves_80/{name}"), got, &expected));
        }
    }
    Ok(checks)
}
