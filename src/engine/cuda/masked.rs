//! What kernels take of a mask: structures that lie as `kernels/masked_entries.cuh` declares them.
use super::arguments::Outputs;
use super::forward::of_32_bits;
use super::plan::{self, Geometry};
use super::update::Update;
use super::{Cuda, Layout};
use crate::engine::ops::MaskRules;
use crate::engine::places;
use crate::engine::pointers::{Pointers, Ptr};
use crate::engine::{Activation, Mask, MergeMasked};
use crate::{AllMasked, Device, Element, Memory, Real, Result, Shape};
use cudarc::driver::{CudaView, CudaViewMut};

/// Where the places of a plan's vectors are.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    bytes: Ptr<u8>,
    /// Elements that lie together and have one place; 0 where every position has one.
    each: u64,
    /// What a step of all threads adds to a place, and to the elements behind it; what a new row adds.
    step: u64,
    step_rest: u64,
    wrap: u64,
}

/// What becomes of the sums.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    count_eps: f64,
    all_masked: u32,
    reserved: u32,
}

/// What flows through the statistics of the values that count.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Shares<A> {
    /// As of all values.
    pub coefs: Ptr<A>,
    /// Of each channel, how many values count.
    pub counts: Ptr<f64>,
    /// Values of a channel.
    pub values: u64,
    pub count_eps: f64,
    pub channels: u64,
}

impl Places {
    /// Those of a mask of this shape, without the last axis where its length is given, for vectors of so many lanes.
    pub fn new(
        shape: &Shape,
        geometry: &Geometry,
        lanes: u32,
        last: Option<usize>,
        bytes: Ptr<u8>,
    ) -> Result<Self> {
        let places = places::Places::new(shape, last)?;
        let mut to = Self { bytes, each: 0, step: 0, step_rest: 0, wrap: 0 };
        let &Geometry { width, row, inner, slice_channels, threads, .. } = geometry;
        if width == 0 {
            return Ok(to);
        }
        let (threads, lanes) = (u64::from(threads), u64::from(lanes));
        match places {
            places::Places::Positions { .. } if slice_channels == 1 => to.step = threads * lanes,
            places::Places::Positions { .. } => to.step = threads / width * inner,
            places::Places::Neighbours(each) => {
                to.each = each as u64;
                let step = (threads / width * row + threads % width) * lanes;
                (to.step, to.step_rest) = (step / to.each, step % to.each);
                to.wrap = (row - width) * lanes / to.each;
            }
        }
        Ok(to)
    }
}

impl From<MaskRules> for Rules {
    fn from(rules: MaskRules) -> Self {
        let all_masked = match rules.all_masked {
            AllMasked::Keep => 0,
            AllMasked::Zero => 1,
            AllMasked::Nan => 2,
        };
        Self { count_eps: rules.count_eps, all_masked, reserved: 0 }
    }
}

/// Where in the reserve the numbers of values that count are: behind an activation's mask of so many bytes.
fn counts_start(reserve: usize) -> usize {
    reserve.next_multiple_of(size_of::<f64>())
}
/// Bytes of a reserve with them.
pub(super) fn reserve_len(shape: &Shape, reserve: usize) -> usize {
    counts_start(reserve).saturating_add(shape.channels().saturating_mul(size_of::<f64>()))
}
/// The numbers of values that count, of every channel, in a reserve that starts here, whose activation has a
/// mask or none.
pub(super) fn counts(reserve: Ptr<u8>, shape: &Shape, element: usize, masks: bool) -> Ptr<f64> {
    let bits = if masks { plan::mask_len(shape, element) } else { 0 };
    Ptr::at(reserve.address() + counts_start(bits) as u64)
}

impl Cuda {
    /// Means, their rests, biased variances and numbers of the values that count, length 4C. The arguments are checked.
    pub(super) fn launch_masked_stats<E: Element>(
        &self,
        shape: &Shape,
        x: CudaView<'_, E>,
        mask: Mask<'_, Device>,
        eps: f64,
        to: CudaViewMut<'_, f64>,
    ) -> Result<()> {
        if shape.is_empty() {
            return self.memory.zero(to);
        }
        let plan = self.plan::<E>(shape)?;
        let layout = Layout::new::<E::Acc>(&plan).counted();
        let room = self.shared.workspace.room(&self.memory, layout)?;
        let launcher = self.launcher::<E>(Activation::Identity);
        let mut pointers = Pointers::new(self.stream());
        // A count of its own is for whoever knows those of all parts.
        let own = MaskRules { count_eps: 0.0, all_masked: AllMasked::Keep, ..mask.rules() };
        let bytes = pointers.read(mask.places);
        let places = Places::new(shape, &plan.geometry, plan.lanes, mask.last, bytes)?;
        let (x, record) = (pointers.read(x), pointers.write(to));
        let outputs = Outputs { record, ..Outputs::new(eps, self.shared.workspace.nonfinite()) };
        // A record ends with the count of its first channel, where the counts of all begin.
        let counts = Ptr::at(record.address() + (3 * shape.channels() * size_of::<f64>()) as u64);
        let partials = room.partials();
        launcher.masked_stats(&plan, places, x, partials)?;
        launcher.masked_finalize(&plan, outputs, places, own.into(), x, partials, counts)
    }

    /// What all parts come to.
    pub(super) fn launch_merge_masked<P: Real>(
        &self,
        args: MergeMasked<'_, Device, P>,
    ) -> Result<()> {
        let channels = args.channels();
        let parts = args.parts.len() / (4 * channels).max(1);
        let (channels, parts) = (of_32_bits("channels", channels)?, of_32_bits("parts", parts)?);
        let launcher = self.launcher::<P>(Activation::Identity);
        let mut pointers = Pointers::new(self.stream());
        let MergeMasked { parts: counted, rules, one_value, running, merged, record } = args;
        let mut outputs = Outputs::new(0.0, self.shared.workspace.nonfinite());
        outputs.running = Update::new(running, one_value, &mut pointers);
        outputs.record = pointers.write_some(record);
        let (counted, merged) = (pointers.read(counted), pointers.write(merged));
        launcher.masked_merge(channels, parts, counted, rules.into(), outputs, merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pointers::assert_layout;

    #[test]
    fn arguments_lie_as_the_kernels_declare_them() {
        assert_layout! {
            include_str!("../../../kernels/masked_entries.cuh");
            "Places": Places { bytes, each, step, step_rest, wrap }
            "MaskRules": Rules { count_eps, all_masked, reserved }
            "Shares<float>": Shares<f32> { coefs, counts, values, count_eps, channels }
        }
    }
}
