//! Instructions on 32 bits that have no type: permutations, three-operand logic, funnel shifts, dot products.

/// Which bytes `prmt` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permutation {
    /// Each by its own selector, of which the highest bit asks for its sign instead.
    Any,
    /// `.f4e`: four from the given one on.
    Forward,
    /// `.b4e`: four from the given one back.
    Backward,
    /// `.rc8`: the given one four times.
    Replicate8,
    /// `.ecl`: clamped at the left.
    ClampLeft,
    /// `.ecr`: clamped at the right.
    ClampRight,
    /// `.rc16`: the given pair twice.
    Replicate16,
}

/// `prmt.b32`
pub(super) fn permute(mode: Permutation, [a, b, control]: [u64; 3]) -> u64 {
    let bytes = a | b << 32;
    let n = control & 3;
    (0..4).fold(0, |word, i| {
        let selector = match mode {
            Permutation::Any => control >> (4 * i) & 15,
            Permutation::Forward => n + i,
            Permutation::Backward => n.wrapping_sub(i) & 7,
            Permutation::Replicate8 => n,
            Permutation::ClampLeft => n.max(i),
            Permutation::ClampRight => n.min(i),
            Permutation::Replicate16 => (n & 1) * 2 + (i & 1),
        };
        let byte = bytes >> (8 * (selector & 7)) & 0xff;
        let byte = if selector & 8 == 0 { byte } else { (byte >> 7) * 0xff };
        word | byte << (8 * i)
    })
}

/// `lop3.b32`: bit `4a + 2b + c` of the table.
#[inline(always)]
pub(super) fn logic(table: u8, [a, b, c]: [u64; 3]) -> u64 {
    (0..8).filter(|i| table >> i & 1 == 1).fold(0, |word, i| {
        let pick = |x: u64, set: bool| if set { x } else { !x };
        word | pick(a, i & 4 != 0) & pick(b, i & 2 != 0) & pick(c, i & 1 != 0) & 0xffff_ffff
    })
}

/// `shf.l.b32` and `shf.r.b32`
#[inline(always)]
pub(super) fn funnel(left: bool, wrap: bool, [low, high, count]: [u64; 3]) -> u64 {
    let count = if wrap { count & 31 } else { count.min(32) };
    let both = low | high << 32;
    (if left { both << count >> 32 } else { both >> count }) & 0xffff_ffff
}

/// `dp4a`: four products of bytes, and a sum.
#[inline(always)]
pub(super) fn dot4(a_signed: bool, b_signed: bool, [a, b, c]: [u64; 3]) -> u64 {
    let byte = |word: u64, i: u32, signed: bool| {
        let byte = (word >> (8 * i)) as u8;
        if signed { i64::from(byte as i8) } else { i64::from(byte) }
    };
    let dot: i64 = (0..4).map(|i| byte(a, i, a_signed) * byte(b, i, b_signed)).sum();
    u64::from((c as u32).wrapping_add(dot as u32))
}
