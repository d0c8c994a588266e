//! How many values count for a mask in all parts of a batch, which the forward of a part leaves to its backward.
use super::ops::MaskRules;
use crate::{Memory, Real, Saved};

/// Of every channel how many values count in all parts, length C, and how many values there are.
pub(crate) struct Counted<M: Memory> {
    pub counts: M::Buf<f64>,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    // what coefficients on a device are shares of
    pub values: usize,
}

impl<M: Memory, P: Real> Saved<M, P> {
    /// Memory for the numbers of values that count, that of the last such forward if it fits.
    pub(crate) fn take_counts(
        &mut self,
        memory: &M,
        channels: usize,
    ) -> crate::Result<M::Buf<f64>> {
        let fits = |buf: &M::Buf<f64>| {
            let view = M::view(buf);
            M::len(&view) == channels && memory.check_here("saved", &view).is_ok()
        };
        let made = self.counted.take().map(|counted| counted.counts);
        made.filter(fits).map_or_else(|| memory.zeros(channels), Ok)
    }
    /// Notes that the last forward, whose statistics are those of all parts, was by a mask of these rules.
    pub(crate) fn set_counted(&mut self, rules: MaskRules, counted: Counted<M>) {
        if let Some(forward) = &mut self.whole.forward {
            forward.mask = Some(rules);
        }
        self.counted = Some(counted);
    }
    /// What counts in all parts, if the forward was by statistics that it was given: one of a part by a mask, or with
    /// renormalization.
    pub(crate) fn counted(&self) -> Option<&Counted<M>> {
        let forward = self.whole.forward.as_ref()?;
        let is_given = !forward.batch_statistics || self.renormalized().is_some();
        self.counted.as_ref().filter(|_| forward.mask.is_some() && is_given)
    }
}
