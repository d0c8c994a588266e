//! Streams and events: what waits for what.

use crate::{
    code::Code,
    driver::{Driver, Id, with_current},
    graph::Mode,
    queue::OpId,
    work::Work,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The null stream: its work waits for that of all blocking streams, and theirs for its.
    Legacy,
    Blocking,
    NonBlocking,
}

#[derive(Debug)]
pub struct Stream {
    pub context: Id,
    pub kind: Kind,
    pub priority: i32,
    /// What its next work waits for.
    pub tails: Vec<OpId>,
    /// The capture that its work goes to.
    pub capture: Option<Id>,
}

impl Stream {
    pub fn new(context: Id, kind: Kind, priority: i32) -> Self {
        Self { context, kind, priority, tails: Vec::new(), capture: None }
    }
}

/// What an event was last recorded behind.
#[derive(Clone, Debug)]
pub enum Mark {
    Nothing,
    Work(Vec<OpId>),
    /// Nodes of a capture.
    Captured(Id, Vec<usize>),
}

#[derive(Debug)]
pub struct Event {
    pub context: Id,
    pub is_timed: bool,
    pub mark: Mark,
}

/// The handles that mean a stream of the current context.
const LEGACY: u64 = 1;
const PER_THREAD: u64 = 2;

impl Driver {
    /// The stream of a handle, checked: it exists and its context is sound.
    pub fn stream(&mut self, handle: u64) -> Result<Id, Code> {
        let id = match handle {
            0 | LEGACY | PER_THREAD => {
                let current = with_current(|stack| stack.last().copied());
                let current = current.ok_or(Code::InvalidContext)?;
                self.check_context(current)?;
                let context = self.contexts.get(&current).ok_or(Code::InvalidContext)?;
                let thread = std::thread::current().id();
                match (handle, context.per_thread.get(&thread)) {
                    (PER_THREAD, Some(stream)) => *stream,
                    (PER_THREAD, None) => {
                        let id = self.create_stream(current, Kind::Blocking, 0);
                        let context = self.contexts.get_mut(&current).expect("found above");
                        context.per_thread.insert(thread, id);
                        id
                    }
                    _ => context.legacy,
                }
            }
            id => id,
        };
        let stream = self.streams.get(&id).ok_or(Code::InvalidHandle)?;
        self.check_context(stream.context)?;
        Ok(id)
    }

    pub fn create_stream(&mut self, context: Id, kind: Kind, priority: i32) -> Id {
        let id = self.fresh();
        self.streams.insert(id, Stream::new(context, kind, priority));
        id
    }

    /// What the next work of a stream waits for.
    pub fn frontier(&self, stream: Id) -> Vec<OpId> {
        let this = &self.streams[&stream];
        let mut ops = this.tails.clone();
        let others = self.streams.values().filter(|other| other.context == this.context);
        match this.kind {
            Kind::Legacy => others
                .filter(|other| other.kind == Kind::Blocking)
                .for_each(|other| ops.extend(&other.tails)),
            Kind::Blocking => others
                .filter(|other| other.kind == Kind::Legacy)
                .for_each(|other| ops.extend(&other.tails)),
            Kind::NonBlocking => {}
        }
        self.queue.prune(&mut ops);
        ops
    }

    /// Gives a stream work: to be done some time after what came before in it, or to the graph that it captures.
    pub fn submit(&mut self, stream: Id, work: Work) -> Result<(), Code> {
        if let Some(capture) = self.streams[&stream].capture {
            return self.capture(capture)?.add(stream, work);
        }
        self.check_implicit(stream)?;
        let context = self.streams[&stream].context;
        let device = self.contexts[&context].device;
        let after = self.frontier(stream);
        let op = self.queue.push(context, device, work, &after);
        self.stream_mut(stream).tails = vec![op];
        Ok(())
    }

    /// Refuses the null stream while a stream that waits for it is captured; that capture is lost.
    fn check_implicit(&mut self, stream: Id) -> Result<(), Code> {
        let this = &self.streams[&stream];
        if this.kind != Kind::Legacy {
            return Ok(());
        }
        let context = this.context;
        let captured: Vec<Id> = self
            .streams
            .values()
            .filter(|other| other.context == context && other.kind == Kind::Blocking)
            .filter_map(|other| other.capture)
            .collect();
        if captured.is_empty() {
            return Ok(());
        }
        self.invalidate(&captured);
        Err(Code::StreamCaptureImplicit)
    }

    pub fn stream_mut(&mut self, stream: Id) -> &mut Stream {
        self.streams.get_mut(&stream).expect("a stream that was looked up")
    }

    pub fn event(&self, event: Id) -> Result<&Event, Code> {
        self.events.get(&event).ok_or(Code::InvalidHandle)
    }

    pub fn record(&mut self, event: Id, stream: Id) -> Result<(), Code> {
        let context = self.event(event)?.context;
        if self.streams[&stream].context != context {
            return Err(Code::InvalidHandle);
        }
        let mark = match self.streams[&stream].capture {
            Some(capture) => Mark::Captured(capture, self.capture(capture)?.heads(stream).to_vec()),
            None => {
                self.check_implicit(stream)?;
                Mark::Work(self.frontier(stream))
            }
        };
        self.events.get_mut(&event).expect("found above").mark = mark;
        Ok(())
    }

    /// Makes the work that a stream is given from now on wait for what the event was last recorded behind.
    pub fn wait_event(&mut self, stream: Id, event: Id) -> Result<(), Code> {
        let mark = self.event(event)?.mark.clone();
        let capture = self.streams[&stream].capture;
        match (mark, capture) {
            (Mark::Nothing, _) => Ok(()),
            (Mark::Work(ops), None) => {
                self.check_implicit(stream)?;
                let mut tails = std::mem::take(&mut self.stream_mut(stream).tails);
                tails.extend(ops);
                self.queue.prune(&mut tails);
                self.stream_mut(stream).tails = tails;
                Ok(())
            }
            (Mark::Work(_), Some(capture)) => {
                self.invalidate(&[capture]);
                Err(Code::StreamCaptureIsolation)
            }
            (Mark::Captured(of, nodes), capture) => {
                if !self.captures.contains_key(&of) {
                    return Err(Code::CapturedEvent);
                }
                if capture.is_some_and(|capture| capture != of) {
                    return Err(Code::StreamCaptureMerge);
                }
                if self.streams[&stream].kind == Kind::Legacy {
                    self.invalidate(&[of]);
                    return Err(Code::StreamCaptureImplicit);
                }
                self.capture(of)?.join(stream, nodes);
                self.stream_mut(stream).capture = Some(of);
                Ok(())
            }
        }
    }

    /// What an event waits for, for a call that waits for it.
    pub fn event_work(&mut self, event: Id) -> Result<Vec<OpId>, Code> {
        let this = self.event(event)?;
        self.check_context(this.context)?;
        match this.mark.clone() {
            Mark::Nothing => Ok(Vec::new()),
            Mark::Work(mut ops) => {
                self.queue.prune(&mut ops);
                Ok(ops)
            }
            Mark::Captured(capture, _) => {
                self.invalidate(&[capture]);
                Err(Code::CapturedEvent)
            }
        }
    }

    /// What a stream has left to do, for a call that waits for it.
    pub fn stream_work(&mut self, stream: Id) -> Result<Vec<OpId>, Code> {
        if let Some(capture) = self.streams[&stream].capture {
            self.invalidate(&[capture]);
            return Err(Code::StreamCaptureUnsupported);
        }
        self.check_implicit(stream)?;
        Ok(self.frontier(stream))
    }

    /// Refuses what is unsafe while this thread captures, or another one that forbids it to all; those captures are
    /// lost.
    pub fn check_no_capture(&mut self) -> Result<(), Code> {
        let thread = std::thread::current().id();
        let against: Vec<Id> = self
            .captures
            .iter()
            .filter(|(_, capture)| match capture.mode {
                Mode::Global => true,
                Mode::ThreadLocal => capture.thread == thread,
                Mode::Relaxed => false,
            })
            .map(|(id, _)| *id)
            .collect();
        if against.is_empty() {
            return Ok(());
        }
        self.invalidate(&against);
        Err(Code::StreamCaptureUnsupported)
    }
}
