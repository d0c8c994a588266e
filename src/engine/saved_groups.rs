//! What the forwards of a batch's groups leave: a [`Saved`] for each call that a ghost batch was made of.
use super::saved::{Forward, Opening, STATISTICS};
use crate::{Error, Memory, Real, Result, Saved};

/// Where the rows of a batch are, of which each group has statistics of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grouping {
    /// Groups of so many rows one after the other, the last of as many as there are left: a call for each.
    Consecutive(usize),
    /// Row i is in group i mod so many, and the groups' channels are those of one tensor: one call.
    AsChannels(usize),
    /// Row i is in group i mod so many: calls for each row, the rows of a group one after the other.
    Strided(usize),
    /// One call of an engine that takes all of them: see [`Engine::takes_groups_at_once`](crate::Engine).
    AtOnce(GroupRows),
}

/// Groups of a batch's rows that an engine takes in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupRows {
    /// Rows of a group; the last one may have fewer where they are not strided.
    pub size: usize,
    /// How many groups there are.
    pub count: usize,
    /// Whether row i is in group i mod `count`, or the rows of a group are neighbours.
    pub is_strided: bool,
}

/// What was saved, and for which forward of the whole batch.
pub(super) struct SavedGroups<M: Memory, P: Real> {
    filled: Option<(Forward, Grouping)>,
    saved: Vec<Saved<M, P>>,
}

impl<M: Memory, P: Real> SavedGroups<M, P> {
    pub fn forward(&self) -> Option<&Forward> {
        self.filled.as_ref().map(|(forward, _)| forward)
    }
    /// Nothing is saved until the next forward has filled them; the memory stays.
    pub fn clear(&mut self) {
        self.filled = None;
    }
}

impl<M: Memory, P: Real> Saved<M, P> {
    /// The forward that has filled this, in one call or in groups.
    pub(crate) fn forward(&self) -> Result<&Forward> {
        match self.groups.as_ref().and_then(|groups| groups.forward()) {
            Some(forward) => Ok(forward),
            None => Ok(self.made()?.0),
        }
    }
    /// What each call saved, where the forward was one in groups.
    #[allow(clippy::type_complexity)] // three parts
    pub(crate) fn groups(&self) -> Option<(&Forward, Grouping, &[Saved<M, P>])> {
        let groups = self.groups.as_ref()?;
        groups.filled.as_ref().map(|(forward, grouping)| (forward, *grouping, &groups.saved[..]))
    }
    /// Room for what so many calls save; until [`fill_groups`](Self::fill_groups) nothing is saved.
    pub(crate) fn open_groups(&mut self, calls: usize) -> &mut [Saved<M, P>] {
        self.clear();
        let none = || Box::new(SavedGroups { filled: None, saved: vec![] });
        let groups = self.groups.get_or_insert_with(none);
        groups.clear();
        groups.saved.resize_with(calls, Saved::new);
        &mut groups.saved
    }
    /// Notes that every call of this forward has saved what it had to.
    pub(crate) fn fill_groups(&mut self, shape: crate::Shape, grouping: Grouping) -> Result<()> {
        let Some(groups) = &mut self.groups else { return Ok(()) };
        let Some(first) = groups.saved.first() else { return Ok(()) };
        let forward = Forward { shape, batch_statistics: true, ..*first.made()?.0 };
        groups.filled = Some((forward, grouping));
        Ok(())
    }
    /// What calls for every group of neighbouring rows would have left, of a forward that took them in one call; these
    /// are their shapes.
    pub(crate) fn apart(
        &self,
        memory: &M,
        shapes: impl Iterator<Item = crate::Shape>,
    ) -> Result<Vec<Self>> {
        let groups = self.groups().and_then(|(.., saved)| saved.first());
        let one = |(k, shape)| groups.map(|all| all.of_one(memory, shape, k));
        shapes.enumerate().map_while(one).collect()
    }
    /// What one call of strided groups as channels of this shape would have left, of a forward that took them in one.
    pub(crate) fn as_channels(&self, memory: &M, shape: crate::Shape) -> Result<Option<Self>> {
        let groups = self.groups().and_then(|(.., saved)| saved.first());
        groups.map(|all| all.of_one(memory, shape, 0)).transpose()
    }
    /// What the groups from the `first` one on, of a forward of all of them in one call, would have saved as channels of a
    /// batch of this shape: one group or several.
    fn of_one(&self, memory: &M, shape: crate::Shape, first: usize) -> Result<Self> {
        let (forward, all) = self.made()?;
        let (mut some, channels) = (Self::new(), forward.shape.channels());
        let Opening { buffers, mark } = some.open(memory, Forward { shape, ..*forward }, 0)?;
        for start in (0..shape.channels()).step_by(channels.max(1)) {
            let of_group = start..start + channels;
            // Weight and bias are there once.
            let from = |index| if index < STATISTICS { first * channels + start } else { 0 };
            buffers.set_channels(memory, &of_group, (all, from))?;
        }
        mark.filled();
        Ok(some)
    }
    /// Refuses what was saved in groups, which an engine's backward does not take.
    pub(super) fn check_whole(&self) -> Result<()> {
        match self.groups() {
            None => Ok(()),
            Some(_) => {
                let reason = "expected what a forward of one batch saved, got that of ghost batches: \
                              the layer's backward takes it";
                Err(Error::invalid("saved", reason))
            }
        }
    }
}
