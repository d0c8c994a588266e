//! Both forwards, and statistics for synchronized ones.
use super::arguments::{Act, Channels, Given, Outputs};
use super::masked::{self, Places, Rules};
use super::module::Variant;
use super::resident::Step;
use super::update::Update;
use super::{Cuda, Layout, Pointers, Ptr};
use crate::engine::pointers::SavedAt;
use crate::engine::saved::{Buffers, ByChannel, Mark};
use crate::engine::{
    Activation, Derivative, ForwardEval, ForwardTrain, Input, MergeStats, Statistics, Stats,
};
use crate::{Device, Element, Error, Real, Result, Shape};

impl Cuda {
    /// Statistics of the tiles, of the channels, then y; or all of it in one launch.
    pub(super) fn launch_forward_train<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardTrain<'_, Device, E>,
    ) -> Result<()> {
        let plan = self.plan::<E>(shape)?;
        let resident = match args.mask {
            None => {
                let variant = Variant::of(args.activation, false);
                self.resident(shape, E::DTYPE, variant, Step::Forward)?
            }
            Some(_) => None,
        };
        let layout = Layout::new::<E::Acc>(&plan).or(resident.as_ref().map(|(plan, _)| plan));
        let layout = if args.mask.is_some() { layout.counted() } else { layout };
        let room = self.shared.workspace.room(&self.memory, layout)?;
        let (saved, mark) =
            args.open(self, shape)?.map(|opened| (opened.buffers, opened.mark)).unzip();
        let (launcher, mut pointers) =
            (self.launcher::<E>(args.activation), Pointers::new(self.stream()));

        let ForwardTrain { x, residual, weight, bias, activation, eps, one_value, y, .. } = args;
        let masks = activation.derivative_from(residual.is_some()) == Derivative::FromMask;
        let act = Act::new(activation);
        // Which values count, and where their numbers are kept.
        let mut counted = match args.mask {
            None => None,
            Some(mask) => {
                let (rules, bytes) = (mask.rules(), pointers.read(mask.places));
                let places = Places::new(shape, &plan.geometry, plan.lanes, rules.last, bytes)?;
                Some((places, Rules::from(rules), Ptr::NULL))
            }
        };
        let (x, residual) = (pointers.read(x), pointers.read_some(residual));
        let (weight, bias) = (pointers.read_some(weight), pointers.read_some(bias));
        let y = pointers.write(y);
        let mut outputs = Outputs::new(eps, self.shared.workspace.nonfinite());
        (outputs.weight, outputs.bias) = (weight, bias);
        outputs.running = Update::new(args.running, one_value, &mut pointers);
        let mask = match saved {
            Some(saved) => {
                let (by_channel, reserve) = save(&mut pointers, saved);
                if let Some((_, _, counts)) = &mut counted {
                    *counts = masked::counts(reserve, shape, size_of::<E>(), masks);
                }
                let mask = if masks { reserve } else { Ptr::NULL };
                [outputs.mean, outputs.mean_rest, outputs.invstd, ..] = by_channel;
                [.., outputs.saved_weight, outputs.saved_bias] = by_channel;
                mask
            }
            None => {
                [outputs.mean, outputs.mean_rest, outputs.invstd] = room.statistics();
                Ptr::NULL
            }
        };
        let partials = room.partials();
        let aligned = [x, residual, y].iter().all(|tensor| tensor.is_aligned());
        let in_one = resident.filter(|_| aligned).map(|(plan, kernel)| {
            self.in_one_launch(&plan, partials, |group| {
                launcher.forward_resident(&kernel, &plan, group, outputs, x, residual, y, mask, act)
            })
        });
        if !in_one.transpose()?.unwrap_or(false) {
            match counted {
                None => {
                    launcher.stats(&plan, x, partials)?;
                    launcher.stats_finalize(&plan, outputs, x, partials)?;
                }
                Some((places, rules, counts)) => {
                    launcher.masked_stats(&plan, places, x, partials)?;
                    launcher.masked_finalize(&plan, outputs, places, rules, x, partials, counts)?;
                }
            }
            let Outputs { mean, mean_rest, invstd, .. } = outputs;
            let channels = Channels { mean, mean_rest, invstd, weight, bias };
            launcher.apply(&plan, channels, Given::NONE, x, residual, y, mask, act)?;
        }
        mark.into_iter().for_each(Mark::filled);
        Ok(())
    }

    /// y, by what each block makes of its channels' statistics; without `applies` only what is saved.
    /// The arguments are checked.
    pub(in crate::engine) fn launch_forward_eval<E: Element>(
        &self,
        shape: &Shape,
        mut args: ForwardEval<'_, Device, E>,
        applies: bool,
    ) -> Result<()> {
        let plan = self.plan::<E>(shape)?;
        let (saved, mark) =
            args.open(self, shape)?.map(|opened| (opened.buffers, opened.mark)).unzip();
        let (launcher, mut pointers) =
            (self.launcher::<E>(args.activation), Pointers::new(self.stream()));

        let ForwardEval { x, residual, weight, bias, activation, statistics, eps, y, .. } = args;
        let masks = activation.derivative_from(residual.is_some()) == Derivative::FromMask;
        let act = Act::new(activation);
        let residual = pointers.read_some(residual);
        let (weight, bias) = (pointers.read_some(weight), pointers.read_some(bias));
        let (mean, var, record) = match statistics {
            Statistics::Given { mean, var } => (pointers.read(mean), pointers.read(var), Ptr::NULL),
            Statistics::Record(record) => (Ptr::NULL, Ptr::NULL, pointers.read(record)),
        };
        let y = pointers.write(y);
        let x = match x {
            Input::View(x) => pointers.read(x),
            Input::InPlace => y,
        };
        let nonfinite = self.shared.workspace.nonfinite();
        let mut given = Given { eps, mean, var, record, nonfinite, ..Given::NONE };
        let mask = match saved {
            Some(saved) => {
                let (by_channel, reserve) = save(&mut pointers, saved);
                let mask = if masks { reserve } else { Ptr::NULL };
                [given.saved_mean, given.saved_mean_rest, given.saved_invstd, ..] = by_channel;
                [.., given.saved_weight, given.saved_bias] = by_channel;
                mask
            }
            None => Ptr::NULL,
        };

        // Where no block writes y, a thread for each channel saves.
        if applies && plan.blocks > 0 {
            let none = Ptr::NULL;
            let channels = Channels { mean: none, mean_rest: none, invstd: none, weight, bias };
            launcher.apply(&plan, channels, given, x, residual, y, mask, act)?;
        } else {
            launcher.eval(plan.geometry.channels, given, weight, bias)?;
        }
        mark.into_iter().for_each(Mark::filled);
        Ok(())
    }

    /// The statistics of a part of a batch.
    pub(super) fn launch_stats<E: Element>(
        &self,
        shape: &Shape,
        args: Stats<'_, Device, E>,
    ) -> Result<()> {
        let plan = self.plan::<E>(shape)?;
        let layout = Layout::new::<E::Acc>(&plan);
        let layout = if args.mask.is_some() { layout.counted() } else { layout };
        let room = self.shared.workspace.room(&self.memory, layout)?;
        let (launcher, mut pointers) =
            (self.launcher::<E>(Activation::Identity), Pointers::new(self.stream()));
        let mask = args.mask.map(|mask| (mask.rules(), pointers.read(mask.places)));
        let (x, record) = (pointers.read(args.x), pointers.write(args.record));
        // The eps is of an invstd that is not written.
        let outputs = Outputs { record, ..Outputs::new(1.0, self.shared.workspace.nonfinite()) };
        let partials = room.partials();
        let Some((rules, bytes)) = mask else {
            launcher.stats(&plan, x, partials)?;
            return launcher.stats_finalize(&plan, outputs, x, partials);
        };
        let places = Places::new(shape, &plan.geometry, plan.lanes, rules.last, bytes)?;
        launcher.masked_stats(&plan, places, x, partials)?;
        let rules = Rules::from(rules);
        launcher.masked_finalize(&plan, outputs, places, rules, x, partials, Ptr::NULL)
    }

    /// The statistics of all parts together.
    pub(super) fn launch_merge_stats<P: Real>(
        &self,
        channels: usize,
        args: MergeStats<'_, Device, P>,
    ) -> Result<()> {
        let parts = args.records.len() / (3 * channels + 1);
        let (channels, parts) = (of_32_bits("channels", channels)?, of_32_bits("parts", parts)?);
        let (launcher, mut pointers) =
            (self.launcher::<P>(Activation::Identity), Pointers::new(self.stream()));
        let MergeStats { records, one_value, running, record, .. } = args;
        let running = Update::new(running, one_value, &mut pointers);
        let (records, merged) = (pointers.read(records), pointers.write(record));
        launcher.merge_stats(channels, parts, records, running, merged)
    }
}

/// A number that kernels take in 32 bits.
pub(super) fn of_32_bits(what: &str, value: usize) -> Result<u32> {
    let reason = || format!("{what}: expected at most {}, got {value}", i32::MAX);
    let value = u32::try_from(value).ok().filter(|&value| value <= i32::MAX as u32);
    value.ok_or_else(|| Error::Unsupported { engine: super::NAME, reason: reason() })
}

/// Where what a backward wants is written: mean, what rounding left of it, invstd, weight and bias; and
/// the reserve.
fn save<'a, A: Real>(
    pointers: &mut Pointers<'a>,
    saved: &'a mut Buffers<Device, A>,
) -> ([Ptr<A>; 5], Ptr<u8>) {
    let SavedAt { by_channel, reserve } = pointers.write_saved(saved);
    let ByChannel { mean, mean_rest, invstd, weight, bias } = by_channel;
    ([mean, mean_rest, invstd, weight, bias], reserve)
}
