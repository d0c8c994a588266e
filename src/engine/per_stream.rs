//! What the engines of one stream share: found again by whoever makes another engine there.
use crate::Result;
use crate::memory::thread_of;
use cudarc::driver::CudaStream;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::ThreadId;

/// What belongs to one stream, and keeps that alive: so no other stream has its handle meanwhile.
pub(super) trait OfStream {
    fn stream(&self) -> &CudaStream;
}

/// A `T` for every stream on which there is one, until its last user drops it. A static of the engine.
pub(super) struct PerStream<T>(Mutex<Vec<(Option<ThreadId>, Weak<T>)>>);

impl<T: OfStream> PerStream<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// That of this stream, or a new one. Streams are the same by handle and context, whoever wraps them; and by the
    /// thread, where the handle means another one in each.
    pub fn get(&self, stream: &CudaStream, make: impl FnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, one)| one.strong_count() > 0);
        let thread = thread_of(stream);
        let is_its = |one: &Arc<T>| {
            let its = one.stream();
            its.cu_stream() == stream.cu_stream() && its.context() == stream.context()
        };
        if let Some(one) = all
            .iter()
            .filter(|(its, _)| *its == thread)
            .filter_map(|(_, one)| one.upgrade())
            .find(is_its)
        {
            return Ok(one);
        }
        let one = Arc::new(make()?);
        all.push((thread, Arc::downgrade(&one)));
        Ok(one)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use cudarc::driver::CudaContext;

    struct One(Arc<CudaStream>);
    impl OfStream for One {
        fn stream(&self) -> &CudaStream {
            &self.0
        }
    }

    #[test]
    fn a_stream_has_one_until_its_last_user_drops_it() {
        softcuda::install().unwrap();
        let [here, there] = ["sm_75", "sm_80"]
            .map(|name| CudaContext::new(softcuda::ordinal(name).unwrap()).unwrap());
        let (all, made) = (PerStream::<One>::new(), std::cell::Cell::new(0));
        let of = |stream: &Arc<CudaStream>| {
            let make = || {
                made.set(made.get() + 1);
                Ok(One(stream.clone()))
            };
            all.get(stream, make).unwrap()
        };
        let (a, b) = (here.new_stream().unwrap(), here.new_stream().unwrap());
        let first = of(&a);
        assert!(Arc::ptr_eq(&first, &of(&a)));
        assert!(!Arc::ptr_eq(&first, &of(&b)), "another stream");
        // The default streams of two contexts have the same handle, and two wrappers are one stream.
        let default = of(&here.default_stream());
        assert!(Arc::ptr_eq(&default, &of(&here.default_stream())));
        assert!(!Arc::ptr_eq(&default, &of(&there.default_stream())), "another context");
        assert_eq!(made.get(), 5 - 1);
        drop(first);
        drop(of(&a));
        assert_eq!(made.get(), 5, "dropped with its last user");
    }
}
