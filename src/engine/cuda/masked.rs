//! What kernels take of a mask: structures that lie as `kernels/masked_entries.cuh` declares them.
use super::arguments::Outputs;
use super::plan::{self, Geometry};
use super::update::Update;
use super::{Cuda, Layout};
use crate::engine::ops::MaskRules;
use crate::engine::places;
use crate::engine::pointers::{Pointers, Ptr};
use crate::engine::{Activation, Mask, OneValue, Running};
use crate::{AllMasked, Device, Element, Memory, Real, Result, Shape, Variance};
use cudarc::driver::CudaView;

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
    /// Means, their rests, biased variances and numbers of the values that count, length 4C, read back. The
    /// arguments are checked.
    pub(super) fn launch_masked_stats<E: Element>(
        &self,
        shape: &Shape,
        x: CudaView<'_, E>,
        mask: Mask<'_, Device>,
        eps: f64,
    ) -> Result<Vec<f64>> {
        let channels = shape.channels();
        if shape.is_empty() {
            return Ok(vec![0.0; 4 * channels]);
        }
        let (memory, plan) = (&self.memory, self.plan::<E>(shape)?);
        // Running statistics that a batch replaces are its own.
        let [mut mean, mut rest, mut invstd] =
            [memory.zeros(channels)?, memory.zeros(channels)?, memory.zeros(channels)?];
        let (mut spare, mut var) = (memory.zeros(channels)?, memory.zeros(channels)?);
        let mut counts = memory.zeros::<f64>(channels)?;
        {
            let layout = Layout::new::<E::Acc>(&plan).counted();
            let room = self.shared.workspace.room(memory, layout)?;
            let launcher = self.launcher::<E>(Activation::Identity);
            let mut pointers = Pointers::new(self.stream());
            let rules = Rules::from(MaskRules {
                count_eps: 0.0,
                all_masked: AllMasked::Keep,
                ..mask.rules()
            });
            let places = Places::new(
                shape,
                &plan.geometry,
                plan.lanes,
                mask.last,
                pointers.read(mask.places),
            )?;
            let x = pointers.read(x);
            let mut outputs = Outputs::new(eps, self.shared.workspace.nonfinite());
            let own = Running::<Device, E::Acc>::new(spare.as_view_mut(), var.as_view_mut(), 1.0);
            let own = own.variance(Variance::Biased);
            outputs.running = Update::new(Some(own), OneValue::ZeroVariance, &mut pointers);
            outputs.mean = pointers.write(mean.as_view_mut());
            outputs.mean_rest = pointers.write(rest.as_view_mut());
            outputs.invstd = pointers.write(invstd.as_view_mut());
            let counts = pointers.write(counts.as_view_mut());
            launcher.masked_stats(&plan, places, x, room.partials())?;
            let partials = room.partials();
            launcher.masked_finalize(&plan, outputs, places, rules, x, partials, counts)?;
        }
        let of = |buf| -> Result<Vec<f64>> {
            let values: Vec<E::Acc> = memory.download(Device::view(buf))?;
            Ok(values.into_iter().map(Real::to_f64).collect())
        };
        let mut all = [of(&mean)?, of(&rest)?].concat();
        for (var, invstd) in of(&var)?.into_iter().zip(of(&invstd)?) {
            // What is beyond f32 is not beyond its root.
            let is_beyond = var.is_infinite() && invstd > 0.0;
            all.push(if is_beyond { invstd.powi(-2) } else { var });
        }
        all.extend(memory.download(counts.as_view())?);
        Ok(all)
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
