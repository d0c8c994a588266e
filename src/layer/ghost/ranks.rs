//! Ghost batches on several ranks: each has groups of its own, and all move their running statistics by all groups.
use super::super::{BatchNorm, Config, Ghost, GhostUpdate, Part};
use super::channels::running_of;
use super::forward::{Updates, consecutive, present, rows_at};
use super::masked::check_rows;
use crate::engine::{Call, GroupRows, Grouping, MaskRules, MergeMasked};
use crate::{
    Element, Engine, Mask, Memory, MergeStats, OneValue, Real, Result, Running, Saved, Shape, Stats,
};

/// Records of groups, of length 3C + 1 each.
pub(super) struct Records<M: Memory> {
    /// Of this rank's, one after the other.
    mine: M::Buf<f64>,
    /// Of everybody's.
    all: M::Buf<f64>,
    /// One that nobody looks at.
    spare: M::Buf<f64>,
    /// Of all groups as channels of one tensor.
    as_channels: M::Buf<f64>,
}

impl<M: Memory> Records<M> {
    fn new(memory: &M, len: usize) -> Result<Self> {
        let one = || memory.zeros(len);
        Ok(Self { mine: one()?, all: one()?, spare: one()?, as_channels: one()? })
    }
    /// Of at least so many elements.
    fn grow(memory: &M, buf: &mut M::Buf<f64>, len: usize) -> Result<()> {
        if M::len(&M::view(buf)) < len {
            *buf = memory.zeros(len)?;
        }
        Ok(())
    }
}

impl<P: Real, M: Memory, G: Engine<Memory = M>> BatchNorm<P, G> {
    /// A training forward in groups of this rank's rows, each by those of its values that count for a mask, if there
    /// is one.
    pub(in crate::layer) fn forward_groups_of_ranks<E: Element<Acc = P>>(
        &mut self,
        ghost: Ghost,
        mask: Option<Mask<'_, M>>,
        whole: &mut Part<'_, M, E>,
        saved: &mut Saved<M, P>,
    ) -> Result<()> {
        let prepared = self.prepare_groups(whole, mask.as_ref());
        let (grouping, own, mut records) = self.or_decline(prepared)?;
        let rules = mask.as_ref().map(Mask::rules);
        let call = self.call_of_groups(ghost, rules, whole);
        let Records { mine, all, .. } = &mut records;
        let counts = self.engine().gather_ranks(call, Ok(own), mine, all);
        self.groups.ranks = Some(records);
        match rules {
            None => self.move_by_groups(ghost, &counts?)?,
            Some(rules) => self.move_by_masked_groups(ghost, rules, &counts?)?,
        }

        // What is normalized takes nothing from elsewhere, and moves nothing any more.
        let updates = std::mem::replace(&mut self.updates_running, false);
        let mask = mask.as_ref().map(Mask::reborrow);
        let done = match (grouping, mask) {
            (Some(grouping), None) => self.forward_groups(grouping, whole, saved),
            (Some(grouping), Some(mask)) => {
                self.forward_masked_groups(grouping, mask, whole, saved)
            }
            (None, mask) => {
                let residual = whole.residual.as_ref().map(M::reborrow);
                let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
                let (shape, saved) = (&whole.shape, Some(saved));
                self.affine.by_batch(shape, x, residual, mask, y, false, None, saved, true)
            }
        };
        self.updates_running = updates;
        done
    }

    /// The check of everything, and the records of this rank's groups: how many there are, and how many of them,
    /// the first ones, have a variance.
    fn prepare_groups<E: Element<Acc = P>>(
        &mut self,
        whole: &mut Part<'_, M, E>,
        mask: Option<&Mask<'_, M>>,
    ) -> Result<(Option<Grouping>, [usize; 2], Records<M>)> {
        self.check_capture()?;
        self.check_lengths()?;
        let shape = whole.shape;
        let grouping = self.grouping(&shape, E::DTYPE, mask.is_some())?;
        // One group is as consecutive ones are, none as well.
        let of_check = grouping.unwrap_or(Grouping::Consecutive(shape.batch().max(1)));
        if let (Some(mask), Some(_)) = (mask, grouping) {
            check_rows(&shape, mask)?;
        }
        self.check_groups(of_check, whole, mask)?;
        let (one_value, channels) = (self.affine.config.one_value, self.affine.channels);
        let len = if mask.is_some() { 4 * channels } else { 3 * channels + 1 };
        let has_var =
            |shape: &Shape| one_value != OneValue::KeepVariance || shape.per_channel() > 1;
        let own = match of_check {
            _ if shape.is_empty() => [0, 0],
            Grouping::Consecutive(size) => {
                let groups = consecutive(&shape, size);
                [groups.len(), groups.filter(|(shape, _)| has_var(shape)).count()]
            }
            Grouping::AsChannels(groups)
            | Grouping::Strided(groups)
            | Grouping::AtOnce(GroupRows { count: groups, .. }) => {
                let of_one = shape.of_rows(shape.batch() / groups);
                [groups, if has_var(&of_one) { groups } else { 0 }]
            }
        };
        let memory = self.engine().memory().clone();
        let mut records = match self.groups.ranks.take() {
            Some(records) => records,
            None => Records::new(&memory, len)?,
        };
        Records::<M>::grow(&memory, &mut records.mine, own[0].max(1).saturating_mul(len))?;
        if M::len(&M::view(&records.spare)) != len {
            records.spare = memory.zeros(len)?;
        }
        if !shape.is_empty() && self.updates_running {
            match mask {
                None => self.record_groups(of_check, whole, &mut records)?,
                Some(mask) => self.record_masked_groups(of_check, mask, whole, &mut records)?,
            }
        }
        Ok((grouping, own, records))
    }

    /// A record of every group, one after the other.
    fn record_groups<E: Element<Acc = P>>(
        &mut self,
        grouping: Grouping,
        whole: &Part<'_, M, E>,
        records: &mut Records<M>,
    ) -> Result<()> {
        let (shape, channels) = (whole.shape, self.affine.channels);
        let (engine, len) = (self.affine.engine.clone(), 3 * channels + 1);
        let memory = engine.memory();
        let mut to = M::view_mut(&mut records.mine);
        let one = |at: usize| at * len..(at + 1) * len;
        match grouping {
            Grouping::Consecutive(size) => {
                for (k, (shape, at)) in consecutive(&shape, size).enumerate() {
                    let x = present("x", M::slice(&whole.x, at))?;
                    let record = present("records", M::slice_mut(&mut to, one(k)))?;
                    engine.stats(&shape, Stats::<M, E>::new(x, record))?;
                }
            }
            // No engine of several ranks takes groups so.
            Grouping::AtOnce(_) => {}
            Grouping::AsChannels(groups) => {
                let all = present("x", shape.of_strided_groups(groups))?;
                let of_all = groups * channels;
                Records::<M>::grow(memory, &mut records.as_channels, 3 * of_all + 1)?;
                {
                    let mut record = M::view_mut(&mut records.as_channels);
                    let record = M::slice_mut(&mut record, 0..3 * of_all + 1);
                    let (x, record) = (M::reborrow(&whole.x), present("records", record)?);
                    engine.stats(&all, Stats::<M, E>::new(x, record))?;
                }
                for k in 0..groups {
                    // Three arrays of channels, and the count.
                    let arrays =
                        (0..3).map(|a| (a * of_all + k * channels, a * channels, channels));
                    for (from, at, n) in arrays.chain([(3 * of_all, 3 * channels, 1)]) {
                        let from =
                            present("records", M::part(&records.as_channels, from..from + n))?;
                        let at = k * len + at;
                        let to = present("records", M::slice_mut(&mut to, at..at + n))?;
                        memory.copy(from, to)?;
                    }
                }
            }
            Grouping::Strided(groups) => {
                let (rows, row) = (shape.batch() / groups, shape.of_rows(1));
                let shared = self.groups.parts(memory, rows, channels)?;
                shared.count(memory, shape.of_rows(rows).per_channel())?;
                for group in 0..groups {
                    for k in 0..rows {
                        let mut records = M::view_mut(&mut shared.records);
                        let record = present("records", M::slice_mut(&mut records, one(k)))?;
                        let x = M::slice(&whole.x, rows_at(&row, k * groups + group));
                        engine.stats(&row, Stats::<M, E>::new(present("x", x)?, record))?;
                    }
                    engine.merge_stats(shared.merge(OneValue::ZeroVariance))?;
                    let to = present("records", M::slice_mut(&mut to, one(group)))?;
                    memory.copy(M::view(&shared.merged), to)?;
                }
            }
        }
        Ok(())
    }

    fn call_of_groups<E: Element<Acc = P>>(
        &mut self,
        ghost: Ghost,
        rules: Option<MaskRules>,
        whole: &mut Part<'_, M, E>,
    ) -> Call {
        let updates = self.updates_running;
        let Self { affine, running, .. } = self;
        let (x, y) = (M::reborrow(&whole.x), M::reborrow_mut(&mut whole.y));
        let residual = whole.residual.as_ref().map(M::reborrow);
        let running = running.as_mut().filter(|_| updates);
        let args = affine.train(x, residual, None, y, running, None);
        Call::of_forward(affine.channels, &args).mask(rules).ghost(ghost.size)
    }

    /// Moves the running statistics by the groups of all ranks, of each so many, of which the first so many have a
    /// variance.
    fn move_by_groups(&mut self, ghost: Ghost, counts: &[[usize; 2]]) -> Result<()> {
        let (updates, channels) = (self.updates_running, self.affine.channels);
        let (engine, config) = (self.affine.engine.clone(), self.affine.config);
        let Some(running) = self.running.as_mut().filter(|_| updates) else { return Ok(()) };
        let Some(Records { mine, all, spare, .. }) = &mut self.groups.ranks else { return Ok(()) };
        let len = 3 * channels + 1;
        let [groups, vars] = [0, 1].map(|k| counts.iter().map(|of| of[k]).sum::<usize>());
        let most = counts.iter().map(|of| of[0]).max().unwrap_or(0);
        if groups == 0 {
            // A batch without rows, by the record of nothing.
            let mut none = M::view_mut(mine);
            let mut none = present("records", M::slice_mut(&mut none, 0..len))?;
            engine.memory().zero(M::reborrow_mut(&mut none))?;
            let args = MergeStats::<M, P>::new(M::as_view(&none), M::view_mut(spare));
            let mut args = args.one_value(OneValue::ZeroVariance);
            args.running = Some(config.next(running));
            engine.merge_stats(args)?;
            if !config.momentum.leaves_out_empty() {
                running.count();
            }
            return Ok(());
        }
        let before = running.num_batches_tracked;
        let averages = ghost.update == GhostUpdate::Average;
        let average = averages.then(|| config.momentum.factors(before));
        let updates = Updates { average, groups, vars };
        let of_rank = |(rank, of): (usize, &[usize; 2])| {
            let [groups, vars] = *of;
            (0..groups).map(move |k| (rank * most + k, k < vars))
        };
        let (mut group, mut with_var) = (0, 0);
        for (at, has_var) in counts.iter().enumerate().flat_map(of_rank) {
            let place = if has_var { with_var } else { vars };
            let momentum = updates.momentum_of(group, place).unwrap_or(config.momentum);
            let record = present("records", M::part(all, at * len..(at + 1) * len))?;
            let args = MergeStats::<M, P>::new(record, M::view_mut(spare));
            // Whether one value is refused every rank has asked of its own groups.
            let rule = match config.one_value {
                OneValue::Refuse => OneValue::ZeroVariance,
                other => other,
            };
            let mut args = args.one_value(rule);
            args.running = Some(Config { momentum, ..config }.next(running));
            engine.merge_stats(args)?;
            running.count();
            group += 1;
            with_var += usize::from(has_var);
        }
        if averages {
            running.num_batches_tracked = before;
            running.count();
        }
        Ok(())
    }
    /// What the values that count in every group come to, one group after the other.
    fn record_masked_groups<E: Element<Acc = P>>(
        &mut self,
        grouping: Grouping,
        mask: &Mask<'_, M>,
        whole: &Part<'_, M, E>,
        records: &mut Records<M>,
    ) -> Result<()> {
        let (shape, eps, channels) = (whole.shape, self.affine.config.eps, self.affine.channels);
        let (engine, len) = (self.affine.engine.clone(), 4 * channels);
        let mut to = M::view_mut(&mut records.mine);
        let one = |at: usize| at * len..(at + 1) * len;
        match grouping {
            Grouping::Consecutive(size) => {
                for (k, (shape, at)) in consecutive(&shape, size).enumerate() {
                    let x = present("x", M::slice(&whole.x, at.clone()))?;
                    let of_group = mask.at(&at, channels)?;
                    let to = present("records", M::slice_mut(&mut to, one(k)))?;
                    engine.masked_stats(&shape, x, of_group, eps, to)?;
                }
            }
            // By a mask groups are no channels.
            Grouping::AsChannels(groups)
            | Grouping::AtOnce(GroupRows { count: groups, .. })
            | Grouping::Strided(groups) => {
                let (rows, row) = (shape.batch() / groups, shape.of_rows(1));
                let parts = self.groups.counted(engine.memory(), rows, channels)?;
                for group in 0..groups {
                    let at = |k: usize| rows_at(&row, k * groups + group);
                    parts.fill(&engine, (&row, eps), (&whole.x, mask), at)?;
                    let to = present("records", M::slice_mut(&mut to, one(group)))?;
                    let args = MergeMasked::<M, P>::new(M::view(&parts.rows), mask.rules(), to);
                    engine.merge_masked(args)?;
                }
            }
        }
        Ok(())
    }

    /// As [`move_by_groups`](Self::move_by_groups), by what counts in each. A group in which nothing does follows the
    /// mask's rule: an average that leaves it out keeps its share.
    fn move_by_masked_groups(
        &mut self,
        ghost: Ghost,
        rules: MaskRules,
        counts: &[[usize; 2]],
    ) -> Result<()> {
        let (updates, channels) = (self.updates_running, self.affine.channels);
        let (engine, config) = (self.affine.engine.clone(), self.affine.config);
        let Some(running) = self.running.as_mut().filter(|_| updates) else { return Ok(()) };
        let Some(mut records) = self.groups.ranks.take() else { return Ok(()) };
        let Records { mine, all, spare, .. } = &mut records;
        let (len, groups) = (4 * channels, counts.iter().map(|of| of[0]).sum::<usize>());
        let most = counts.iter().map(|of| of[0]).max().unwrap_or(0);
        let of_rank = |(rank, of): (usize, &[usize; 2])| {
            (0..of[0]).map(move |k| (rank * most + k) * len..(rank * most + k + 1) * len)
        };
        let all_groups = counts.iter().enumerate().flat_map(of_rank);
        if groups == 0 {
            // A batch without rows, by what nothing comes to.
            let mut none = M::view_mut(mine);
            let mut none = present("records", M::slice_mut(&mut none, 0..len))?;
            engine.memory().zero(M::reborrow_mut(&mut none))?;
            let next = config.next(running);
            move_by(&engine, (rules, &config), M::as_view(&none), next, M::view_mut(spare))?;
            if !config.momentum.leaves_out_empty() {
                running.count();
            }
        } else if ghost.update == GhostUpdate::Average {
            let tiles = self.groups.begin_average(&engine, running, groups)?;
            for (k, at) in all_groups.enumerate() {
                let from = present("records", M::part(all, at))?;
                let mut own = tiles.statistics();
                let own = running_of::<M, P>(&mut own, k, &config, channels)?;
                move_by(&engine, (rules, &config), from, own, M::view_mut(spare))?;
            }
            tiles.end_average(&engine, running, &config)?;
        } else {
            for at in all_groups {
                let from = present("records", M::part(all, at))?;
                let next = config.next(running);
                move_by(&engine, (rules, &config), from, next, M::view_mut(spare))?;
                running.count();
            }
        }
        self.groups.ranks = Some(records);
        Ok(())
    }
}

/// Moves running statistics by what the values that count come to, through memory that nobody looks at.
fn move_by<P: Real, M: Memory, G: Engine<Memory = M>>(
    engine: &G,
    (rules, config): (MaskRules, &Config),
    from: M::View<'_, f64>,
    running: Running<'_, M, P>,
    spare: M::ViewMut<'_, f64>,
) -> Result<()> {
    let (mut running, mut spare) = (running, spare);
    let (from, to) = (M::reborrow(&from), M::reborrow_mut(&mut spare));
    let mut args = MergeMasked::<M, P>::new(from, rules, to);
    (args.one_value, args.running) = (config.one_value, Some(running.reborrow()));
    engine.merge_masked(args)
}
