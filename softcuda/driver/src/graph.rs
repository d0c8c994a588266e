//! Stream capture, and graphs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread::ThreadId,
};

use crate::{
    code::Code,
    device::{Device, State},
    driver::{Driver, Id},
    queue::OpId,
    stream::Kind,
    work::Work,
};

/// Whom a capture forbids unsafe calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

impl Mode {
    pub fn from_number(number: u32) -> Result<Self, Code> {
        [Mode::Global, Mode::ThreadLocal, Mode::Relaxed]
            .get(number as usize)
            .copied()
            .ok_or(Code::InvalidValue)
    }
}

/// Work of a graph and the nodes that it waits for.
#[derive(Clone, Debug)]
pub struct Node {
    pub work: Work,
    pub after: Vec<usize>,
}

#[derive(Debug)]
pub struct Graph {
    pub context: Id,
    pub nodes: Vec<Node>,
}

#[derive(Debug)]
pub struct Executable {
    pub graph: Arc<Graph>,
    /// What its last launch has left to do: launches of one executable do not overlap.
    pub last: Vec<OpId>,
    /// Whether a launch frees what the last one allocated and nobody has freed.
    pub frees_on_launch: bool,
}

/// A graph in the making.
#[derive(Debug)]
pub struct Capture {
    pub origin: Id,
    pub mode: Mode,
    pub thread: ThreadId,
    context: Id,
    nodes: Vec<Node>,
    /// By stream, the nodes that its next work waits for.
    heads: BTreeMap<Id, Vec<usize>>,
    is_valid: bool,
}

impl Capture {
    /// Adds work in the order of a stream.
    pub fn add(&mut self, stream: Id, work: Work) -> Result<(), Code> {
        if !self.is_valid {
            return Err(Code::StreamCaptureInvalidated);
        }
        let after = self.heads(stream).to_vec();
        self.nodes.push(Node { work, after });
        self.heads.insert(stream, vec![self.nodes.len() - 1]);
        Ok(())
    }

    /// The nodes that the next work of a stream waits for.
    pub fn heads(&self, stream: Id) -> &[usize] {
        self.heads.get(&stream).map_or(&[], Vec::as_slice)
    }

    /// Makes the next work of a stream wait for those nodes too.
    pub fn join(&mut self, stream: Id, nodes: Vec<usize>) {
        let heads = self.heads.entry(stream).or_default();
        heads.extend(nodes);
        heads.sort_unstable();
        heads.dedup();
    }

    /// Whether all work of other streams is waited for by the stream where the capture began.
    fn is_joined(&self) -> bool {
        let mut reached = BTreeSet::new();
        let mut open = self.heads(self.origin).to_vec();
        while let Some(node) = open.pop() {
            if reached.insert(node) {
                open.extend(&self.nodes[node].after);
            }
        }
        reached.len() == self.nodes.len()
    }
}

impl Driver {
    pub fn begin_capture(&mut self, stream: Id, mode: Mode) -> Result<(), Code> {
        let this = &self.streams[&stream];
        if this.kind == Kind::Legacy {
            return Err(Code::StreamCaptureUnsupported);
        }
        if this.capture.is_some() {
            return Err(Code::IllegalState);
        }
        let capture = Capture {
            origin: stream,
            mode,
            thread: std::thread::current().id(),
            context: this.context,
            nodes: Vec::new(),
            heads: BTreeMap::new(),
            is_valid: true,
        };
        let id = self.fresh();
        self.captures.insert(id, capture);
        self.stream_mut(stream).capture = Some(id);
        Ok(())
    }

    /// Ends a capture and gives its graph.
    pub fn end_capture(&mut self, stream: Id) -> Result<Id, Code> {
        let id = self.streams[&stream].capture.ok_or(Code::IllegalState)?;
        let capture = &self.captures[&id];
        if capture.origin != stream {
            return Err(Code::StreamCaptureUnmatched);
        }
        if capture.mode != Mode::Relaxed && capture.thread != std::thread::current().id() {
            return Err(Code::StreamCaptureWrongThread);
        }
        self.streams.values_mut().filter(|s| s.capture == Some(id)).for_each(|s| s.capture = None);
        let capture = self.captures.remove(&id).expect("found above");
        if !capture.is_valid {
            return Err(Code::StreamCaptureInvalidated);
        }
        if !capture.is_joined() {
            return Err(Code::StreamCaptureUnjoined);
        }
        let graph = self.fresh();
        let Capture { context, nodes, .. } = capture;
        self.graphs.insert(graph, Arc::new(Graph { context, nodes }));
        Ok(graph)
    }

    /// 0 for none, 1 for an active capture, 2 for one that was lost.
    pub fn capture_status(&self, stream: Id) -> u32 {
        match self.streams[&stream].capture {
            None => 0,
            Some(capture) if self.captures[&capture].is_valid => 1,
            Some(_) => 2,
        }
    }

    pub fn capture(&mut self, capture: Id) -> Result<&mut Capture, Code> {
        let capture = self.captures.get_mut(&capture).ok_or(Code::StreamCaptureInvalidated)?;
        if capture.is_valid { Ok(capture) } else { Err(Code::StreamCaptureInvalidated) }
    }

    pub fn invalidate(&mut self, captures: &[Id]) {
        for capture in captures {
            if let Some(capture) = self.captures.get_mut(capture) {
                capture.is_valid = false;
            }
        }
    }

    pub fn instantiate(&mut self, graph: Id, frees_on_launch: bool) -> Result<Id, Code> {
        let graph = Arc::clone(self.graphs.get(&graph).ok_or(Code::InvalidHandle)?);
        self.check_context(graph.context)?;
        let id = self.fresh();
        self.executables.insert(id, Executable { graph, last: Vec::new(), frees_on_launch });
        Ok(id)
    }

    /// Queues the work of a graph in the order of a stream, or adds it to what the stream captures.
    pub fn launch_graph(&mut self, executable: Id, stream: Id) -> Result<(), Code> {
        let this = self.executables.get(&executable).ok_or(Code::InvalidHandle)?;
        let (graph, frees) = (Arc::clone(&this.graph), this.frees_on_launch);
        let mut after = this.last.clone();
        self.check_context(graph.context)?;
        if let Some(capture) = self.streams[&stream].capture {
            let capture = self.capture(capture)?;
            let offset = capture.nodes.len();
            let heads = capture.heads(stream).to_vec();
            for node in &graph.nodes {
                let inner = node.after.iter().map(|at| at + offset);
                let after = if node.after.is_empty() { heads.clone() } else { inner.collect() };
                capture.nodes.push(Node { work: node.work.clone(), after });
            }
            let leaves = leaves(&graph.nodes).map(|at| at + offset).collect::<Vec<_>>();
            if !leaves.is_empty() {
                capture.heads.insert(stream, leaves);
            }
            return Ok(());
        }
        self.back_allocations(&graph, frees, stream)?;
        after.extend(self.frontier(stream));
        self.queue.prune(&mut after);
        let device = self.contexts[&graph.context].device;
        let mut ops: Vec<OpId> = Vec::with_capacity(graph.nodes.len());
        for node in &graph.nodes {
            let inner = node.after.iter().map(|at| ops[*at]).collect::<Vec<_>>();
            let after = if node.after.is_empty() { &after } else { &inner };
            ops.push(self.queue.push(graph.context, device, node.work.clone(), after));
        }
        let ends: Vec<OpId> = leaves(&graph.nodes).map(|at| ops[at]).collect();
        let ends = if ends.is_empty() { after } else { ends };
        self.stream_mut(stream).tails = ends.clone();
        self.executables.get_mut(&executable).expect("found above").last = ends;
        Ok(())
    }

    /// Follows what the launch of a graph allocates and frees.
    fn back_allocations(&mut self, graph: &Graph, frees: bool, stream: Id) -> Result<(), Code> {
        for node in &graph.nodes {
            if let Work::Allocate { pointer, bytes } = node.work {
                let device = self.allocation_device(pointer)?;
                let state = device.allocations[&pointer].state;
                if state == State::Live && !frees {
                    device.refuse(
                        "cuGraphLaunch",
                        format!("{pointer:#x}, which the graph allocates, has not been freed"),
                    );
                    return Err(Code::InvalidValue);
                }
                if state != State::Live && !device.fits(bytes) {
                    return Err(Code::OutOfMemory);
                }
                device.allocations.get_mut(&pointer).expect("found above").state = State::Live;
                if state == State::Live {
                    self.submit(stream, Work::Free { pointer })?;
                }
            }
        }
        for node in &graph.nodes {
            if let Work::Free { pointer } = node.work {
                let device = self.allocation_device(pointer)?;
                let allocation = device.allocations.get_mut(&pointer).expect("found above");
                allocation.state = State::Unbacked;
            }
        }
        Ok(())
    }

    /// The device that holds an allocation that begins at an address.
    pub fn allocation_device(&mut self, pointer: u64) -> Result<&mut Device, Code> {
        let device = Device::of_address(pointer).and_then(|device| self.devices.get_mut(device));
        device.filter(|device| device.allocations.contains_key(&pointer)).ok_or(Code::InvalidValue)
    }
}

/// The nodes that no other waits for.
fn leaves(nodes: &[Node]) -> impl Iterator<Item = usize> {
    let waited: BTreeSet<usize> = nodes.iter().flat_map(|node| node.after.clone()).collect();
    (0..nodes.len()).filter(move |node| !waited.contains(node))
}
