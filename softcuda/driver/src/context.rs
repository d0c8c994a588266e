//! Contexts: their making, and what is found when they end.

use std::collections::{BTreeMap, HashMap};

use crate::{
    code::Code,
    device::State,
    driver::{Context, Id, Locked},
    report::Messages,
    stream::Kind,
    variables::VARIABLE,
};

/// Limits that a context has: stack of a thread, `printf` buffer, heap of `malloc` in kernels. None is used here.
const LIMITS: [(u32, usize); 3] = [(0, 1024), (1, 1 << 20), (2, 8 << 20)];

impl Locked {
    pub fn create_context(&mut self, device: usize, is_primary: bool, flags: u32) -> Id {
        let id = self.fresh();
        let legacy = self.create_stream(id, Kind::Legacy, 0);
        let context = Context {
            device,
            is_primary,
            sticky: None,
            legacy,
            per_thread: HashMap::new(),
            limits: BTreeMap::from(LIMITS),
            cache_config: 0,
            flags,
        };
        self.contexts.insert(id, context);
        id
    }

    pub fn retain_primary(&mut self, device: usize) -> Id {
        let context = match self.devices[device].primary {
            Some(context) => context,
            None => self.create_context(device, true, 0),
        };
        let device = &mut self.devices[device];
        device.primary = Some(context);
        device.primary_count += 1;
        context
    }

    pub fn release_primary(&mut self, device: usize) -> Result<(), Code> {
        let this = &mut self.devices[device];
        let context = this.primary.ok_or(Code::InvalidContext)?;
        this.primary_count -= 1;
        if this.primary_count > 0 {
            return Ok(());
        }
        this.primary = None;
        self.end_context(context);
        Ok(())
    }

    /// Does all work of a context that is queued.
    pub fn synchronize(&mut self, context: Id) -> Result<(), Code> {
        loop {
            let queued: Vec<_> = self.queue.of_context(context).map(|(op, _)| op).collect();
            if queued.is_empty() {
                return self.check_context(context);
            }
            self.finish(&queued);
        }
    }

    /// Ends a context when its work is done. What is still allocated in it is told, and gone.
    pub fn end_context(&mut self, context: Id) {
        // A failure is in the log by now, and nobody is left to be told.
        let _ = self.synchronize(context);
        let Some(device) = self.contexts.get(&context).map(|context| context.device) else {
            return;
        };
        self.wait_for_memory(device);
        let Some(this) = self.contexts.remove(&context) else { return };
        if this.sticky.is_none() {
            self.tell_leaks(context, &this);
        }
        let device = &mut self.devices[device];
        device.allocations.retain(|pointer, allocation| {
            let is_other = allocation.context != context;
            let memory = device.memory.as_mut().expect("waited for above");
            if !is_other && memory.find(*pointer).is_some() {
                memory.free(*pointer).expect("an allocation that was found");
            }
            is_other
        });
        self.streams.retain(|_, stream| stream.context != context);
        self.events.retain(|_, event| event.context != context);
        self.modules.retain(|_, module| module.context != context);
        self.functions.retain(|_, function| function.context != context);
        self.graphs.retain(|_, graph| graph.context != context);
        self.executables.retain(|_, executable| executable.graph.context != context);
        self.managed.retain(|_, managed| managed.context != context);
        self.pinned.retain(|_, (owner, _)| *owner != context);
        let live: Vec<Id> = self.streams.values().filter_map(|stream| stream.capture).collect();
        self.captures.retain(|capture, _| live.contains(capture));
    }

    fn tell_leaks(&mut self, context: Id, this: &Context) {
        let device = this.device;
        let mut leaks = Vec::new();
        for (pointer, allocation) in &self.devices[device].allocations {
            let is_own = allocation.context == context && allocation.origin != VARIABLE;
            if is_own && allocation.state == State::Live {
                let (bytes, origin) = (allocation.bytes, allocation.origin);
                leaks.push(format!("{bytes} bytes at {pointer:#x} from {origin}"));
            }
        }
        for (owner, pinned) in self.pinned.values() {
            if *owner == context {
                leaks.push(format!("{} bytes of host memory from cuMemHostAlloc", pinned.bytes()));
            }
        }
        let own = 1 + this.per_thread.len();
        let kinds = [
            ("streams", self.streams.values().filter(|s| s.context == context).count() - own),
            ("events", self.events.values().filter(|e| e.context == context).count()),
            ("modules", self.modules.values().filter(|m| m.context == context).count()),
            ("graphs", self.graphs.values().filter(|g| g.context == context).count()),
        ];
        let counts = kinds.iter().filter(|(_, count)| *count > 0);
        leaks.extend(counts.map(|(kind, count)| format!("{count} {kind}")));
        for leak in leaks {
            let message = format!("leaked at the end of a context of device {device}: {leak}");
            self.devices[device].log.note(Messages::Leaks, message);
        }
    }
}
