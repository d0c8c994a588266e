//! What a communicator has queued and its stream has not done: how long it may still take.
use crate::Result;
use crate::memory::refused;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The collectives of a rank that are queued, in their order.
#[derive(Debug, Default)]
pub struct Queued {
    open: VecDeque<Item>,
    /// Events of collectives that are done, for those to come.
    free: Vec<[CudaEvent; 2]>,
}

#[derive(Debug)]
struct Item {
    name: &'static str,
    /// On the stream before the collective, and behind it.
    events: [CudaEvent; 2],
    /// When the stream was seen to have come to it.
    begun: Option<Instant>,
}

/// Events around a collective that is being queued.
pub struct Around([CudaEvent; 2]);

impl Queued {
    /// Marks the stream before a collective.
    pub fn before(&mut self, context: &Arc<CudaContext>, stream: &CudaStream) -> Result<Around> {
        let events = match self.free.pop() {
            Some(events) => events,
            None => {
                let new = || context.new_event(None).map_err(refused("cuEventCreate"));
                [new()?, new()?]
            }
        };
        events[0].record(stream).map_err(refused("cuEventRecord"))?;
        Ok(Around(events))
    }
    /// Marks it behind one.
    pub fn behind(&mut self, name: &'static str, events: Around, on: &CudaStream) -> Result<()> {
        let Around(events) = events;
        events[1].record(on).map_err(refused("cuEventRecord"))?;
        self.open.push_back(Item { name, events, begun: None });
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }
    /// Forgets what is done; the name of a collective that has been at work for longer than so long.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where the device has failed.
    pub fn look(&mut self, limit: Duration) -> Result<Option<&'static str>> {
        let done = |event: &CudaEvent| event.try_is_complete().map_err(refused("cuEventQuery"));
        while let Some(first) = self.open.front_mut() {
            if done(&first.events[1])? {
                if let Some(item) = self.open.pop_front() {
                    self.free.push(item.events);
                }
                continue;
            }
            if first.begun.is_none() && done(&first.events[0])? {
                first.begun = Some(Instant::now());
            }
            let is_late = first.begun.is_some_and(|begun| begun.elapsed() > limit);
            return Ok(is_late.then_some(first.name));
        }
        Ok(None)
    }
}
