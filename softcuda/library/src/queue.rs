//! Work in the order of a stream: copies to page-locked memory, a host function that computes there, copies back.
//!
//! All of it is queued and nothing waits, so that it is captured and replayed like any work. Page-locked memory is used
//! again once its work is done, and freed with the handle; what a capture uses is kept for the graph until then.

use std::{
    ffi::c_void,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    driver::{Driver, Refused},
    job::{Job, Memory},
};

/// A piece of page-locked memory.
#[derive(Debug)]
struct Block {
    address: usize,
    bytes: usize,
    is_free: bool,
}

#[derive(Debug, Default)]
struct Pool {
    blocks: Vec<Block>,
    /// By stream, an event behind the last work there.
    events: Vec<(usize, usize)>,
    has_captured: bool,
    is_closed: bool,
}

/// A function, the memory it works on, and to whom that goes back.
struct Entry {
    address: usize,
    bytes: usize,
    run: Box<dyn Fn(&mut Memory<'_>) + Send + Sync>,
    pool: Arc<Mutex<Pool>>,
}

/// What a handle queues its work with.
#[derive(Debug)]
pub struct Queue {
    driver: &'static Driver,
    context: usize,
    pool: Arc<Mutex<Pool>>,
}

fn lock(pool: &Mutex<Pool>) -> MutexGuard<'_, Pool> {
    pool.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// For the current context.
    ///
    /// # Errors
    /// Why there is none.
    pub fn new() -> Result<Self, String> {
        let driver = Driver::get()?;
        let context = driver.current_context().map_err(|error| error.to_string())?;
        if context == 0 {
            return Err("no context is current".into());
        }
        Ok(Self { driver, context, pool: Arc::default() })
    }

    /// The driver.
    #[must_use]
    pub fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Whether a stream is of this context, which has to be the current one.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, stream: usize) -> Result<(), String> {
        let text = |error: Refused| error.to_string();
        let current = self.driver.current_context().map_err(text)?;
        if current != self.context {
            return Err("the current context is not that of the handle".into());
        }
        if self.driver.stream_context(stream).map_err(text)? != self.context {
            return Err("the stream is of another context than the handle".into());
        }
        Ok(())
    }

    /// Lets bytes of device memory hold rubbish, as a call does that uses them for itself.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn spoil(&self, stream: usize, address: u64, bytes: usize) -> Result<(), Refused> {
        const RUBBISH: u8 = 0xa5;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the driver checks address and stream.
        unsafe { self.driver.fill(address, RUBBISH, bytes, stream) }
    }

    /// Queues a job; `run` gets what it reads and leaves what it writes.
    ///
    /// # Errors
    /// What the driver refuses; part of the job may be queued then, without effect on what it writes.
    pub fn push(
        &self,
        stream: usize,
        job: &Job,
        run: impl Fn(&mut Memory<'_>) + Send + Sync + 'static,
    ) -> Result<(), Refused> {
        let mut status = 0;
        // SAFETY: `status` can be written; the driver checks the stream.
        unsafe { self.driver.is_capturing(stream, &mut status) }?;
        let is_captured = status != 0;
        let address = self.take(job.bytes.max(16))?;
        let entry =
            Entry { address, bytes: job.bytes, run: Box::new(run), pool: Arc::clone(&self.pool) };
        let entry = Box::into_raw(Box::new(entry));
        if is_captured {
            lock(&self.pool).has_captured = true;
        }
        // SAFETY: the entry just made, which a capture keeps for good and `release` ends otherwise.
        let result = unsafe { self.queue(stream, job, entry.cast(), is_captured) };
        if !is_captured {
            // Behind what was queued, all or part of it, so that the end of the handle can wait for that.
            self.mark(stream)?;
        }
        result
    }

    /// # Safety
    /// `entry` is an [`Entry`] that lives until `release` runs, or for good in a capture.
    unsafe fn queue(
        &self,
        stream: usize,
        job: &Job,
        entry: *mut c_void,
        is_captured: bool,
    ) -> Result<(), Refused> {
        let driver = self.driver;
        // SAFETY: by the contract of this function.
        let base = unsafe { &*entry.cast::<Entry>() }.address;
        if is_captured {
            // SAFETY: `guard` takes an entry.
            unsafe { driver.launch(stream, guard, entry) }?;
        }
        for copy in job.moves.iter().filter(|copy| copy.reads) {
            // SAFETY: within the block, which is kept until `release`.
            unsafe { driver.download(base + copy.offset, copy.address, copy.bytes, stream) }?;
        }
        // SAFETY: `run` takes an entry.
        unsafe { driver.launch(stream, run, entry) }?;
        for copy in job.moves.iter().filter(|copy| copy.writes) {
            // SAFETY: within the block, which is kept until `release`.
            unsafe { driver.upload(copy.address, base + copy.offset, copy.bytes, stream) }?;
        }
        if !is_captured {
            // SAFETY: `release` takes an entry, and is the last to have it.
            unsafe { driver.launch(stream, release, entry) }?;
        }
        Ok(())
    }

    /// The address of a block that nobody uses.
    fn take(&self, bytes: usize) -> Result<usize, Refused> {
        let mut pool = lock(&self.pool);
        let fits = |block: &&mut Block| block.is_free && block.bytes >= bytes;
        if let Some(block) = pool.blocks.iter_mut().filter(fits).min_by_key(|block| block.bytes) {
            block.is_free = false;
            return Ok(block.address);
        }
        let mut address = 0;
        // SAFETY: `address` can be written.
        unsafe { self.driver.allocate_host(&mut address, bytes, 0) }?;
        pool.blocks.push(Block { address, bytes, is_free: false });
        Ok(address)
    }

    /// Records the event of a stream.
    fn mark(&self, stream: usize) -> Result<(), Refused> {
        const WITHOUT_TIME: u32 = 2;
        let mut pool = lock(&self.pool);
        let known = pool.events.iter().find(|(other, _)| *other == stream);
        let event = match known {
            Some((_, event)) => *event,
            None => {
                let mut event = 0;
                // SAFETY: `event` can be written.
                unsafe { self.driver.create_event(&mut event, WITHOUT_TIME) }?;
                pool.events.push((stream, event));
                event
            }
        };
        // SAFETY: an event of this pool; the driver checks the stream.
        unsafe { self.driver.record(event, stream) }
    }

    /// Waits for all work and frees everything. Failures of the work are not told here: the next call that waits for
    /// the stream does.
    pub fn close(&self) {
        let driver = self.driver;
        let (events, blocks, has_captured) = {
            let mut pool = lock(&self.pool);
            (std::mem::take(&mut pool.events), std::mem::take(&mut pool.blocks), pool.has_captured)
        };
        let mut popped = 0;
        // SAFETY: the driver checks the context, events are of the pool that was emptied, and the blocks are free when
        // all work is done.
        unsafe {
            let is_current = driver.push(self.context).is_ok();
            for (_, event) in events {
                let _ = driver.finish_event(event);
                let _ = driver.destroy_event(event);
            }
            if has_captured {
                let _ = driver.finish_context(); // launches of graphs have no event of ours
            }
            lock(&self.pool).is_closed = true;
            for block in blocks {
                let _ = driver.free_host(block.address);
            }
            if is_current {
                let _ = driver.pop(&mut popped);
            }
        }
    }
}

/// Stops a graph whose handle is gone: its copies would write to memory that is freed.
unsafe extern "C" fn guard(entry: *mut c_void) {
    // SAFETY: an entry of a capture, which is kept for good.
    let entry = unsafe { &*entry.cast::<Entry>() };
    if lock(&entry.pool).is_closed {
        eprintln!("softlibrary: a graph was launched whose handle has been destroyed");
        std::process::abort();
    }
}

unsafe extern "C" fn run(entry: *mut c_void) {
    // SAFETY: an entry, which its queue keeps; it is only read.
    let entry = unsafe { &*entry.cast::<Entry>() };
    let start = std::ptr::with_exposed_provenance_mut(entry.address);
    // SAFETY: a block of at least that many bytes, which the driver has zeroed or copies have filled, and which no
    // other work has: the streams' order is that of the entry's own copies.
    let bytes = unsafe { std::slice::from_raw_parts_mut(start, entry.bytes) };
    (entry.run)(&mut Memory::new(bytes));
}

unsafe extern "C" fn release(entry: *mut c_void) {
    // SAFETY: made by `Box::into_raw`, and nothing comes after this.
    let entry = unsafe { Box::from_raw(entry.cast::<Entry>()) };
    let mut pool = lock(&entry.pool);
    if let Some(block) = pool.blocks.iter_mut().find(|block| block.address == entry.address) {
        block.is_free = true;
    }
}
