//! What a kernel wrote, by name.
use super::element::{Kind, Word};

/// A buffer that came back from a device.
#[derive(Clone, Debug)]
pub struct Output {
    pub name: String,
    pub kind: Kind,
    pub bits: Vec<u64>,
    pub agreement: Agreement,
}

/// How far another device's results may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Agreement {
    /// Not at all. Numbers that are not numbers are all alike: PTX does not say which bits an operation gives them.
    Bits,
    /// By this part of the largest finite value of the buffer: sums that a compiler may fuse.
    Within(f64),
    /// By this part of each value: what is approximate by definition.
    Relative(f64),
}

impl Output {
    pub fn exact<T: Word>(name: impl Into<String>, values: &[T]) -> Self {
        let bits = values.iter().map(|v| v.bits()).collect();
        Self { name: name.into(), kind: T::KIND, bits, agreement: Agreement::Bits }
    }

    pub fn within<T: Word>(part: f64, name: impl Into<String>, values: &[T]) -> Self {
        Self { agreement: Agreement::Within(part), ..Self::exact(name, values) }
    }

    /// The places where `other` differs by more than it may. Both have the same length.
    pub fn differences(&self, other: &[u64]) -> Vec<usize> {
        let real = |bits| self.kind.real(bits);
        let finite = self.bits.iter().filter_map(|&b| real(b)).filter(|v| v.is_finite());
        let largest = finite.fold(0.0, |max: f64, v| max.max(v.abs()));
        let agrees = |a: u64, b: u64| match (real(a), real(b), self.agreement) {
            _ if a == b => true,
            (Some(a), Some(b), _) if a.is_nan() || b.is_nan() => a.is_nan() && b.is_nan(),
            (Some(a), Some(b), Agreement::Within(part)) => (a - b).abs() <= part * largest,
            (Some(a), Some(b), Agreement::Relative(part)) => (a - b).abs() <= part * a.abs(),
            _ => false,
        };
        let pairs = self.bits.iter().zip(other).enumerate();
        pairs.filter(|(_, (a, b))| !agrees(**a, **b)).map(|(i, _)| i).collect()
    }
}
