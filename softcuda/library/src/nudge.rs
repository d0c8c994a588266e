//! Work of a device that goes on although no thread waits for it.
//!
//! A device works by itself; a software one may do queued work only while some call waits for it or asks about it. A
//! library whose queued work waits for that of other devices has to ask, as nobody else may.

use crate::driver::{Driver, Refused};

/// A stream of a context beside those of its users, with work of its own to ask about.
#[derive(Debug)]
pub struct Nudge {
    driver: &'static Driver,
    context: usize,
    stream: usize,
    /// A byte that its work writes.
    address: u64,
}

impl Nudge {
    /// For the current context.
    ///
    /// # Errors
    /// Why there is none.
    pub fn new() -> Result<Self, String> {
        const NON_BLOCKING: u32 = 1;
        let driver = Driver::get()?;
        let text = |error: Refused| error.to_string();
        let context = driver.current_context().map_err(text)?;
        let (mut stream, mut address) = (0, 0);
        // SAFETY: both can be written.
        unsafe {
            driver.allocate(&mut address, 1).map_err(text)?;
            if let Err(error) = driver.create_stream(&mut stream, NON_BLOCKING) {
                let _ = driver.free(address);
                return Err(text(error));
            }
        }
        Ok(Self { driver, context, stream, address })
    }

    /// Has the device do some of whatever it has been given. What fails there, its own streams tell.
    pub fn push(&self) {
        self.in_context(|| {
            if self.driver.is_done(self.stream) == Ok(true) {
                // SAFETY: the byte is this object's, and lives as long.
                let _ = unsafe { self.driver.fill(self.address, 0, 1, self.stream) };
                let _ = self.driver.is_done(self.stream);
            }
        });
    }

    fn in_context(&self, f: impl FnOnce()) {
        let mut popped = 0;
        // SAFETY: the driver checks the context; `popped` can be written.
        if unsafe { self.driver.push(self.context) }.is_ok() {
            f();
            // SAFETY: as above.
            let _ = unsafe { self.driver.pop(&mut popped) };
        }
    }
}

impl Drop for Nudge {
    fn drop(&mut self) {
        self.in_context(|| {
            // SAFETY: both were made by `new`, and nobody else has them.
            unsafe {
                let _ = self.driver.finish(self.stream);
                let _ = self.driver.destroy_stream(self.stream);
                let _ = self.driver.free(self.address);
            }
        });
    }
}
