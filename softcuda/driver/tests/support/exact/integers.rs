//! `exact_integers.cu`.
use super::super::data::Random;
use super::super::device::Device;
use super::{Check, Op, ternary};
use cudarc::driver::DriverError;

/// A divisor that gives every quotient a defined value.
fn divisor<T: PartialEq>(value: T, [minus_one, zero, other]: [T; 3]) -> T {
    if value == minus_one || value == zero { other } else { value }
}

/// `bfe`, as the PTX ISA writes it down.
fn extract(a: u32, pos: u32, len: u32, signed: bool) -> u32 {
    let (pos, len) = (pos & 0xff, len & 0xff);
    let fill = signed && len > 0 && a >> (pos + len - 1).min(31) & 1 == 1;
    (0..32).fold(0, |d, i| {
        let inside = i < len && pos + i <= 31;
        let bit = if inside { a >> (pos + i) & 1 } else { u32::from(fill) };
        d | bit << i
    })
}

/// `bfi`, likewise.
fn insert(a: u32, b: u32, pos: u32, len: u32) -> u32 {
    let pos = pos & 0xff;
    let places = (0..len).filter(|i| pos + i <= 31);
    places.fold(b, |d, i| d & !(1 << (pos + i)) | (a >> i & 1) << (pos + i))
}

/// `prmt`.
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |d, i| {
        let select = selector >> (4 * i) & 15;
        let byte = (bytes >> (8 * (select & 7))) as u8;
        let byte = if select & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte };
        d | u32::from(byte) << (8 * i)
    })
}

const INTEGERS_32: &[Op<u32, u32>] = &[
    ("add", |a, b, _| a.wrapping_add(b)),
    ("sub", |a, b, _| a.wrapping_sub(b)),
    ("mul.lo", |a, b, _| a.wrapping_mul(b)),
    ("mad.lo", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
    ("mul.hi.u32", |a, b, _| ((u64::from(a) * u64::from(b)) >> 32) as u32),
    ("mul.hi.s32", |a, b, _| ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32),
    ("div.u32", |a, b, _| a / (b | 1)),
    ("rem.u32", |a, b, _| a % (b | 1)),
    ("div.s32", |a, b, _| (a as i32 / divisor(b as i32, [-1, 0, 7])) as u32),
    ("rem.s32", |a, b, _| (a as i32 % divisor(b as i32, [-1, 0, 7])) as u32),
    ("min.u32", |a, b, _| a.min(b)),
    ("max.u32", |a, b, _| a.max(b)),
    ("min.s32", |a, b, _| (a as i32).min(b as i32) as u32),
    ("max.s32", |a, b, _| (a as i32).max(b as i32) as u32),
    ("abs", |a, _, _| (a as i32).unsigned_abs()),
    ("neg", |a, _, _| a.wrapping_neg()),
    ("and", |a, b, _| a & b),
    ("or", |a, b, _| a | b),
    ("xor", |a, b, _| a ^ b),
    ("not", |a, _, _| !a),
    ("shl", |a, b, _| a.checked_shl(b).unwrap_or(0)),
    ("shr.u32", |a, b, _| a.checked_shr(b).unwrap_or(0)),
    ("shr.s32", |a, b, _| (a as i32 >> b.min(31)) as u32),
    ("clz", |a, _, _| a.leading_zeros()),
    ("popc", |a, _, _| a.count_ones()),
    ("brev", |a, _, _| a.reverse_bits()),
    ("ffs", |a, _, _| if a == 0 { 0 } else { a.trailing_zeros() + 1 }),
    ("prmt", permute),
    ("shf.l.wrap", |a, b, c| ((u64::from(b) << 32 | u64::from(a)) << (c & 31) >> 32) as u32),
    ("shf.r.wrap", |a, b, c| ((u64::from(b) << 32 | u64::from(a)) >> (c & 31)) as u32),
    ("bfe.u32", |a, b, c| extract(a, b, c, false)),
    ("bfe.s32", |a, b, c| extract(a, b, c, true)),
    ("bfi", |a, b, c| insert(a, b, c, 13)),
    ("comparisons", |a, b, c| {
        let (sa, sb) = (a as i32, b as i32);
        let bits = [a < b, a <= b, sa < sb, sa <= sb, a == b, sa > sb && a > c];
        bits.iter().enumerate().map(|(i, bit)| u32::from(*bit) << i).sum()
    }),
    ("selp", |a, b, c| if a as i32 > 0 { b } else { c }),
    ("narrow conversions", |a, b, _| {
        let sum =
            i32::from(a as u8) + i32::from(b as i8) + i32::from(b as u16) * i32::from(a as i16);
        sum as u32
    }),
];

const INTEGERS_64: &[Op<u64, u64>] = &[
    ("add", |a, b, _| a.wrapping_add(b)),
    ("sub", |a, b, _| a.wrapping_sub(b)),
    ("mul.lo", |a, b, _| a.wrapping_mul(b)),
    ("mad.lo", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
    ("mul.hi.u64", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64),
    ("mul.hi.s64", |a, b, _| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
    ("div.u64", |a, b, _| a / (b | 1)),
    ("rem.u64", |a, b, _| a % (b | 1)),
    ("div.s64", |a, b, _| (a as i64 / divisor(b as i64, [-1, 0, 7])) as u64),
    ("rem.s64", |a, b, _| (a as i64 % divisor(b as i64, [-1, 0, 7])) as u64),
    ("min.u64", |a, b, _| a.min(b)),
    ("max.s64", |a, b, _| (a as i64).max(b as i64) as u64),
    ("and not or", |a, b, c| a & !b | c),
    ("xor", |a, b, _| a ^ b),
    ("shl", |a, b, _| a.checked_shl(b as u32).unwrap_or(0)),
    ("shr.u64", |a, b, _| a.checked_shr(b as u32).unwrap_or(0)),
    ("shr.s64", |a, b, _| (a as i64 >> (b as u32).min(63)) as u64),
    ("clz", |a, _, _| a.leading_zeros().into()),
    ("popc", |a, _, _| a.count_ones().into()),
    ("brev", |a, _, _| a.reverse_bits()),
    ("mul.wide.u32", |a, b, _| u64::from(a as u32) * u64::from(b as u32)),
    ("mad.wide.s32", |a, b, c| {
        (i64::from(a as i32) * i64::from(b as i32)).wrapping_add(c as i64) as u64
    }),
    ("comparisons", |a, b, _| {
        let (sa, sb) = (a as i64, b as i64);
        let bits = [a < b, sa < sb, sa >= sb, a == b];
        bits.iter().enumerate().map(|(i, bit)| u64::from(*bit) << i).sum()
    }),
    ("selp", |a, b, c| if a as i64 > 0 { b } else { c }),
];

/// Where carries, signs and widths end: all pairs of them, then random bits of every length.
fn operands(bits: u32) -> Vec<[u64; 3]> {
    let top = 1_u64 << (bits - 1);
    let mask = top | (top - 1);
    let edges: Vec<u64> =
        [0, 1, 2, 3, 5, 7, 8, 13, 31, 32, 33, 63, 64, 65, 255, 256, 0x7fff_ffff, 0x8000_0000]
            .into_iter()
            .chain([0xffff_ffff, 0x1_0000_0000, top - 1, top, top + 1, mask - 1, mask])
            .map(|v| v & mask)
            .collect();
    let mut random = Random::new(bits.into());
    let mut operands = Vec::new();
    for (i, &a) in edges.iter().enumerate() {
        for (j, &b) in edges.iter().enumerate() {
            operands.push([a, b, edges[(7 * i + j) % edges.len()]]);
        }
    }
    for _ in 0..1500 {
        operands.push(std::array::from_fn(|_| {
            let length = random.bits() % u64::from(bits);
            (random.bits() & mask) >> length
        }));
    }
    operands
}

pub fn run(device: &Device) -> Result<Vec<Check>, DriverError> {
    let narrow: Vec<_> = operands(32).into_iter().map(|o| o.map(|v| v as u32)).collect();
    let mut checks = ternary(device, ("exact_integers", "integers_32"), &narrow, INTEGERS_32)?;
    checks.extend(ternary(device, ("exact_integers", "integers_64"), &operands(64), INTEGERS_64)?);
    Ok(checks)
}
