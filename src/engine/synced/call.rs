//! What a rank is about to do, in words that it shows the others.
use super::Words;
use crate::engine::ops::MaskRules;
use crate::engine::{ForwardTrain, Op, Running};
use crate::{
    Activation, AllMasked, DType, Element, EmptyBatch, Error, Memory, NonFinite, OneValue, Real,
    Result, Variance,
};

/// A call of an operation, as far as it must be the same on all ranks.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    op: Op,
    dtype: DType,
    channels: usize,
    /// Of the forward, and so of its backward.
    activation: Activation,
    /// What is there, a bit each: see [`FLAGS`].
    flags: u64,
    eps: f64,
    /// How the running statistics move.
    rules: u64,
    factors: [f64; 2],
    /// What a mask adds to its count.
    count_eps: f64,
    /// What a channel is without a value that counts, 2 bits, and how many rows a ghost batch has, 22.
    variant: u64,
}

/// What the bits of a call's flags say: a byte of them.
const FLAGS: [&str; 8] = [
    "a residual",
    "a weight",
    "a bias",
    "running statistics",
    "a grad_x",
    "a mask",
    "ghost batches",
    "renormalization",
];
const MASK: usize = 5;
const GHOST: usize = 6;
const RENORM: usize = 7;
/// Bits of a call's variant that say what a mask's rule is; those of its rows are above.
const RULE: u64 = 3;
const ROWS: u64 = 0x3f_ffff;

/// What became of this rank's part, in the last word.
const REFUSED: u64 = u64::MAX;

impl Call {
    pub fn new(op: Op, dtype: DType, channels: usize, activation: Activation) -> Self {
        let (flags, rules, eps, factors) = (0, 0, 0.0, [0.0; 2]);
        let (count_eps, variant) = (0.0, 0);
        Self { op, dtype, channels, activation, flags, eps, rules, factors, count_eps, variant }
    }
    /// A training forward of so many channels.
    pub fn of_forward<M: Memory, E: Element>(
        channels: usize,
        args: &ForwardTrain<'_, M, E>,
    ) -> Self {
        let ForwardTrain { residual, weight, bias, running, .. } = args;
        let flags = [residual.is_some(), weight.is_some(), bias.is_some(), running.is_some()];
        let call = Self::new(Op::ForwardTrain, E::DTYPE, channels, args.activation);
        let call = call.eps(args.eps).flags(&flags).moves(running.as_ref(), args.one_value);
        call.mask(args.mask.as_ref().map(|mask| mask.rules()))
    }
    pub fn eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }
    /// With these of [`FLAGS`], from the first one on.
    pub fn flags(self, flags: &[bool]) -> Self {
        let bits = flags.iter().enumerate().map(|(k, &is_there)| u64::from(is_there) << k);
        Self { flags: bits.sum(), ..self }
    }
    fn flag(self, bit: usize) -> Self {
        Self { flags: self.flags | 1 << bit, ..self }
    }
    /// By a mask of these rules, if there is one.
    pub(crate) fn mask(self, rules: Option<MaskRules>) -> Self {
        let Some(rules) = rules else { return self };
        let variant = match rules.all_masked {
            AllMasked::Keep => 0,
            AllMasked::Zero => 1,
            AllMasked::Nan => 2,
        };
        let variant = self.variant & !RULE | variant;
        Self { count_eps: rules.count_eps, variant, ..self.flag(MASK) }
    }
    /// In ghost batches of so many rows.
    pub fn ghost(self, size: usize) -> Self {
        let variant = (size as u64 & ROWS) << 2 | self.variant & RULE;
        Self { variant, ..self.flag(GHOST) }
    }
    /// With renormalization.
    pub fn renorm(self) -> Self {
        self.flag(RENORM)
    }
    pub fn is_masked(&self) -> bool {
        self.flags >> MASK & 1 > 0
    }
    /// Whether running statistics move.
    pub fn moves_running(&self) -> bool {
        self.flags >> 3 & 1 > 0
    }
    pub fn channels(&self) -> usize {
        self.channels
    }
    pub fn moves<M: Memory, P: Real>(
        self,
        running: Option<&Running<'_, M, P>>,
        one_value: OneValue,
    ) -> Self {
        let one_value = match one_value {
            OneValue::Refuse => 0,
            OneValue::ZeroVariance => 1,
            OneValue::KeepVariance => 2,
        };
        let Some(running) = running else { return Self { rules: one_value, ..self } };
        let rules = one_value
            | u64::from(running.variance == Variance::Biased) << 2
            | u64::from(running.empty_batch == EmptyBatch::Nan) << 3
            | u64::from(running.non_finite == NonFinite::Skip) << 4
            | u64::from(running.averages) << 5
            | u64::from(running.skipped.is_some()) << 6;
        Self { rules, factors: [running.factor, running.var_factor], ..self }
    }

    /// As others are shown it, with so many values per channel in this rank's part, or none where it has refused
    /// the call.
    pub fn words(&self, values: Option<usize>) -> Words {
        let Self { op, dtype, channels, activation, flags, eps, rules, factors, .. } = self;
        let slope = match activation {
            Activation::LeakyRelu { negative_slope } => *negative_slope,
            _ => 0.0,
        };
        let kinds = [*op as u64, *dtype as u64, number(*activation), *flags, *rules];
        [
            kinds.into_iter().fold(self.variant, |word, kind| word << 8 | kind),
            *channels as u64,
            eps.to_bits(),
            slope.to_bits(),
            factors[0].to_bits(),
            factors[1].to_bits(),
            self.count_eps.to_bits(),
            values.map_or(REFUSED, |values| values as u64),
        ]
    }
}

/// The activation's place among all.
fn number(activation: Activation) -> u64 {
    let place = Activation::ALL.iter().position(|a| a.name() == activation.name());
    place.unwrap_or(Activation::ALL.len()) as u64
}

/// Values per channel of every rank's part, where all ranks make the same call.
///
/// # Errors
/// The same on all ranks, but on one that refused, whose own error says why.
pub(super) fn agreed(mine: usize, all: &[Words]) -> Result<Vec<usize>> {
    let others = || all.iter().enumerate();
    if let Some((rank, _)) = others().find(|(rank, words)| *rank != mine && words[7] == REFUSED) {
        return Err(Error::collective(Some(rank), "it has refused its part of the call"));
    }
    let Some(first) = all.first() else { return Ok(vec![]) };
    if let Some((rank, words)) = others().find(|(_, words)| words[..7] != first[..7]) {
        let (expected, got) = difference(first, words);
        let reason = format!("expected {expected}, as rank 0 has it, got {got}");
        return Err(Error::collective(Some(rank), reason));
    }
    Ok(all.iter().map(|words| words[7] as usize).collect())
}

/// In what two calls differ first: what each has.
fn difference(first: &Words, other: &Words) -> (String, String) {
    let [kinds, channels, eps, slope, factor, var_factor, count_eps] =
        [0, 1, 2, 3, 4, 5, 6].map(|k| (first[k], other[k]));
    let both = |(a, b): (u64, u64), show: &dyn Fn(u64) -> String| (show(a), show(b));
    let kind = |k: u32| {
        let of = |word: u64| word >> (8 * (4 - k)) & 0xff;
        (of(kinds.0), of(kinds.1))
    };
    let variant = (kinds.0 >> 40, kinds.1 >> 40);
    let differs = |(a, b): (u64, u64)| a != b;
    if differs(kind(0)) {
        return both(kind(0), &|op| format!("the operation {}", name_of(op)));
    }
    if differs(kind(1)) {
        return both(kind(1), &|dtype| {
            let of = [DType::F64, DType::F32, DType::F16, DType::Bf16];
            let named = of.into_iter().find(|d| *d as u64 == dtype);
            named.map_or_else(|| format!("dtype {dtype}"), |dtype| dtype.to_string())
        });
    }
    if differs(channels) {
        return both(channels, &|channels| format!("{channels} channels"));
    }
    if differs(eps) {
        return both(eps, &|eps| format!("an eps of {:e}", f64::from_bits(eps)));
    }
    if differs(kind(2)) {
        return both(kind(2), &|place| {
            Activation::ALL.get(place as usize).map_or("another activation", |a| a.name()).into()
        });
    }
    if differs(slope) {
        return both(slope, &|slope| format!("a negative_slope of {}", f64::from_bits(slope)));
    }
    let (a, b) = kind(3);
    if let Some(k) = (0..FLAGS.len()).find(|k| (a ^ b) >> k & 1 > 0) {
        let what = FLAGS[k];
        let show = |flags: u64| match flags >> k & 1 {
            0 => format!("none of {}", what.trim_start_matches("a ")),
            _ => what.to_string(),
        };
        return both((a, b), &show);
    }
    if differs((variant.0 >> 2, variant.1 >> 2)) {
        return both(variant, &|variant| format!("ghost batches of {} rows", variant >> 2));
    }
    if differs(variant) {
        let rules = ["keep", "zero", "nan"];
        let named = |variant| rules.get((variant & RULE) as usize).copied();
        let named = |variant| named(variant).unwrap_or("another rule");
        return both(variant, &|rule| format!("a mask with all_masked={}", named(rule)));
    }
    if differs(count_eps) {
        return both(count_eps, &|eps| format!("a mask's count_eps of {}", f64::from_bits(eps)));
    }
    for (factor, what) in [(factor, "mean"), (var_factor, "var")] {
        if differs(factor) {
            let show = |bits| format!("a weight of {} in the running {what}", f64::from_bits(bits));
            return both(factor, &show);
        }
    }
    both(kind(4), &|rules| format!("rules {rules:#b} of running statistics"))
}

fn name_of(op: u64) -> String {
    let of = [Op::ForwardTrain, Op::Backward, Op::DoubleBackward];
    let named = of.into_iter().find(|named| *named as u64 == op);
    named.map_or_else(|| format!("of number {op}"), |op| format!("{op:?}"))
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
