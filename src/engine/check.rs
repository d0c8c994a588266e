//! Numbers that have a meaning, and the lengths of records.
use super::OneValue;
use crate::{Error, Real, Result};

/// The counts of records, by the records' numbers, added up. Refuses what is no count before anything
/// is merged.
pub(super) fn total_count(counts: impl Iterator<Item = (usize, f64)>) -> Result<f64> {
    let mut total = 0.0;
    for (part, count) in counts {
        if !(count >= 0.0 && count.is_finite() && count.fract() == 0.0) {
            let reason = format!(
                "expected counts that are whole numbers from 0 on, got {count} in record {part}"
            );
            return Err(Error::invalid("records", reason));
        }
        total += count;
    }
    Ok(total)
}

/// Training with one value per channel has no variance, and is refused unless a rule says what it is. None
/// at all is an empty batch, no error.
pub(crate) fn check_values_per_channel(
    what: &'static str,
    m: usize,
    one_value: OneValue,
) -> Result<()> {
    if m == 1 && one_value == OneValue::Refuse {
        return Err(Error::invalid(what, "training needs more than 1 value per channel, got 1"));
    }
    Ok(())
}

/// A constant channel is divided by the root of eps: in the parameters' type its inverse must be a
/// number.
pub(crate) fn check_eps<P: Real>(eps: f64) -> Result<()> {
    if !(eps > 0.0 && eps.is_finite()) {
        return Err(Error::invalid("eps", format!("expected a finite number above 0, got {eps}")));
    }
    if !P::from_f64(1.0 / eps.sqrt()).to_f64().is_finite() {
        let reason =
            format!("expected one whose 1 / sqrt(eps) is finite in {}, got {eps:e}", P::DTYPE);
        return Err(Error::invalid("eps", reason));
    }
    Ok(())
}

pub(crate) fn check_momentum(momentum: f64) -> Result<()> {
    if (0.0..=1.0).contains(&momentum) {
        return Ok(());
    }
    Err(Error::invalid("momentum", format!("expected 0 to 1, got {momentum}")))
}

/// Elements of a record: mean, what rounding left of it, and variance of every channel, then m. A
/// count that overflows is the length of no memory.
pub(super) const fn record_len(channels: usize) -> usize {
    channels.saturating_mul(3).saturating_add(1)
}

/// Elements of the sums of a backward: two of every channel, then m.
pub(super) const fn sums_len(channels: usize) -> usize {
    channels.saturating_mul(2).saturating_add(1)
}
