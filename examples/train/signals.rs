//! Requests to stop a run.

/// Calls `asked` on Ctrl-C, SIGTERM and SIGHUP; not on a SIGHUP that is ignored, as under `nohup`.
pub fn on_request(asked: impl FnMut() + Send + 'static) -> Result<(), ctrlc::Error> {
    #[cfg(unix)]
    let ignored = ignore_hang_up() == IGNORED;
    ctrlc::set_handler(asked)?; // of all three
    #[cfg(unix)]
    if ignored {
        ignore_hang_up();
    }
    Ok(())
}

/// As in every `signal.h`.
#[cfg(unix)]
const HANG_UP: i32 = 1;
#[cfg(unix)]
const IGNORED: usize = 1;

#[cfg(unix)]
unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
}

/// What was done about it before.
#[cfg(unix)]
fn ignore_hang_up() -> usize {
    // SAFETY: so it is declared in C, handlers being pointers; this one runs nothing.
    unsafe { signal(HANG_UP, IGNORED) }
}
