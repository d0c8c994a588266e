//! Doing queued work, in an order that the seed chooses among all that streams and events allow.

use std::collections::BTreeSet;

use ptx_vm::{
    launch::{Launch, run},
    memory::Memory,
};

use crate::{
    code::Code,
    device::{Device, Failed, fault_code},
    driver::{Driver, Id, Locked, enter_callback},
    queue::OpId,
    report::{LaunchReport, Messages},
    rng::Rng,
    work::{KernelLaunch, Work},
};

/// How much work of a device may be queued before some is done without anyone waiting for it.
const MAX_QUEUED: usize = 256;
/// How many blocks of an ordinary launch run at a time, at most: the seed chooses. A grid that counts on more of its
/// blocks running at once is wrong even where a large device would let it pass.
const MAX_RESIDENT: usize = 4;

impl Locked {
    /// [`Driver::submit`], and some older work where much has gathered.
    pub fn enqueue(&mut self, stream: Id, work: Work) -> Result<(), Code> {
        self.submit(stream, work)?;
        let device = self.contexts[&self.streams[&stream].context].device;
        while self.queue.of_device(device).count() > MAX_QUEUED && self.progress(device) {}
        Ok(())
    }

    /// Does work until none of `targets` is left. The seed decides whether other work of their devices goes along.
    pub fn finish(&mut self, targets: &[OpId]) {
        let Some(device) = targets.iter().find_map(|op| Some(self.queue.get(*op)?.device)) else {
            return;
        };
        let needed = self.queue.closure(targets);
        let is_eager = self.devices[device].rng.below(2) == 0;
        while targets.iter().any(|op| self.queue.contains(*op)) {
            let mut candidates = needed.clone();
            if is_eager {
                candidates.extend(self.queue.of_device(device).map(|(op, _)| op));
            }
            if !self.step(device, &candidates) {
                self.wait();
            }
        }
    }

    /// Does one piece of a device's work, if any can be done at once.
    pub fn progress(&mut self, device: usize) -> bool {
        let candidates = self.queue.of_device(device).map(|(op, _)| op).collect();
        self.step(device, &candidates)
    }

    fn step(&mut self, device: usize, candidates: &BTreeSet<OpId>) -> bool {
        let ready: Vec<OpId> = candidates.iter().copied().filter(|op| self.can_run(*op)).collect();
        if ready.is_empty() {
            return false;
        }
        let chosen = ready[self.devices[device].rng.below(ready.len())];
        self.execute(chosen);
        true
    }

    fn execute(&mut self, op: OpId) {
        let work = self.queue.start(op);
        let queued = self.queue.get(op).expect("it was just started");
        let (context, device) = (queued.context, queued.device);
        let result = match &work {
            Work::Kernel(launch) => {
                let before = self.pull_managed(&[device]);
                let done = self.run_kernel(device, launch);
                self.push_managed(before);
                done
            }
            Work::Host(callback) => {
                let callback = callback.clone();
                std::thread::spawn(move || {
                    enter_callback();
                    callback.call();
                    let mut driver = Locked::new();
                    driver.queue.finish(op);
                    driver.changed();
                });
                return;
            }
            work => {
                let before = self.pull_managed(&Device::of_addresses(work.addresses()));
                let done = self.perform(work);
                self.push_managed(before);
                done
            }
        };
        if let Err(failed) = result {
            self.poison(context, &work, failed);
        }
        self.queue.finish(op);
        self.changed();
    }

    /// Runs a kernel. The lock is open meanwhile, and nobody else has the device's memory.
    fn run_kernel(&mut self, device: usize, launch: &KernelLaunch) -> Result<(), Failed> {
        let (seed, budget) = (self.devices[device].seed(), self.devices[device].budget);
        let mut resident = launch.capacity;
        if !launch.cooperative {
            resident = resident.min(1 + Rng::new(seed).below(MAX_RESIDENT) as u32);
        }
        let blocks = u32::try_from(launch.blocks()).unwrap_or(u32::MAX);
        let mut memory = self.devices[device].memory.take().expect("checked by `can_run`");
        let result = self.unlocked(|| {
            let launch = Launch {
                kernel: &launch.kernel,
                grid: launch.grid,
                block: launch.block,
                dynamic_shared: launch.dynamic_shared,
                params: &launch.params,
                cooperative: launch.cooperative,
                resident: resident.min(blocks),
                seed,
                budget,
            };
            run(&mut memory, &launch).map_err(|fault| Failed {
                code: fault_code(fault.kind),
                message: fault.to_string(),
            })
        });
        let printed = memory.take_printed();
        self.devices[device].memory = Some(memory);
        self.devices[device].log.print(printed);
        let counts = result?;
        self.devices[device].log.launches.push(LaunchReport {
            kernel: launch.kernel.name.clone(),
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.dynamic_shared,
            cooperative: launch.cooperative,
            resident: resident.min(blocks),
            seed,
            counts,
        });
        Ok(())
    }
}

impl Driver {
    /// Whether work is ready and no kernel has the memory that it needs.
    fn can_run(&self, op: OpId) -> bool {
        let Some(queued) = self.queue.get(op).filter(|_| self.queue.is_ready(op)) else {
            return false;
        };
        let has_memory = |device: usize| self.devices[device].memory.is_some();
        match queued.work {
            Work::Kernel(_) => has_memory(queued.device),
            _ => queued.work.addresses().filter_map(Device::of_address).all(has_memory),
        }
    }

    /// Does work other than kernels and host functions.
    fn perform(&mut self, work: &Work) -> Result<(), Failed> {
        match *work {
            Work::Fill { target, pattern, width, count } => {
                self.memory_of(target).fill(target, pattern, usize::from(width), count)?;
            }
            Work::Write { target, ref data } => self.memory_of(target).write(target, data)?,
            Work::WriteFrom { target, ref source } => {
                self.memory_of(target).write(target, &source.read())?;
            }
            Work::ReadTo { ref target, source } => {
                let mut data = vec![0; target.bytes()];
                self.memory_of(source).read(source, &mut data)?;
                target.write(&data);
            }
            Work::Copy { target, source, bytes } => {
                if Device::of_address(target) == Device::of_address(source) {
                    self.memory_of(target).copy(target, source, bytes)?;
                } else {
                    let mut data = vec![0; bytes as usize];
                    self.memory_of(source).read(source, &mut data)?;
                    self.memory_of(target).write(target, &data)?;
                }
            }
            Work::Allocate { pointer, bytes } => {
                self.memory_of(pointer).alloc_at(pointer, bytes)?;
            }
            Work::Free { pointer } => {
                self.memory_of(pointer).free(pointer)?;
                let device = self.allocation_device(pointer);
                let allocations = &mut device.expect("it was just freed").allocations;
                if !allocations[&pointer].graph {
                    allocations.remove(&pointer);
                }
            }
            Work::Kernel(_) | Work::Host(_) => unreachable!("done without the lock"),
        }
        Ok(())
    }

    /// The memory that an address belongs to. Calls check addresses, so there is one.
    fn memory_of(&mut self, address: u64) -> &mut Memory {
        let device = Device::of_address(address).expect("a checked address");
        self.devices[device].memory()
    }

    /// If work is given memory that is promised and not there, the likely reason of its failure.
    fn unordered(&self, work: &Work) -> Option<String> {
        work.all_addresses().find_map(|address| {
            let device = self.devices.get(Device::of_address(address)?)?;
            let (base, allocation) = device.find(address, 1)?;
            let is_there = device.memory.as_ref()?.find(base).is_some();
            let bytes = allocation.bytes;
            (!is_there).then(|| {
                format!("; the {bytes} bytes at {base:#x} are allocated in a stream that it does not wait for")
            })
        })
    }

    /// Makes a context unusable: its work has failed. What it had queued is dropped.
    pub fn poison(&mut self, context: Id, work: &Work, failed: Failed) {
        self.queue.forget(context);
        let Some(this) = self.contexts.get_mut(&context) else { return };
        this.sticky.get_or_insert(failed.code);
        let device = this.device;
        let seed = self.devices[device].seed();
        let hint = self.unordered(work).unwrap_or_default();
        let message = format!(
            "{} failed: {}{hint} (device {device}; SOFTCUDA_SEED={seed} repeats it)",
            work.name(),
            failed.message
        );
        self.devices[device].log.note(Messages::Faults, message);
    }
}
