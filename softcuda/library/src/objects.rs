//! Handles and descriptors: numbers that no two objects share, so that a stale one is noticed.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, ThreadId},
};

/// Objects of one kind; a static of a library.
#[derive(Debug)]
pub struct Objects<T> {
    kind: &'static str,
    /// The low bits of its numbers, so that another kind's is noticed too.
    tag: usize,
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    last: usize,
    live: BTreeMap<usize, (ThreadId, Arc<Mutex<T>>)>,
}

impl<T> Objects<T> {
    /// None yet, of a kind that is called so. Kinds of a library have different tags, below 16.
    #[must_use]
    pub const fn new(kind: &'static str, tag: usize) -> Self {
        Self { kind, tag, inner: Mutex::new(Inner { last: 0x1000, live: BTreeMap::new() }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a new object.
    pub fn insert(&self, object: T) -> usize {
        let mut inner = self.inner();
        inner.last += 0x10;
        let id = inner.last + self.tag;
        inner.live.insert(id, (thread::current().id(), Arc::new(Mutex::new(object))));
        id
    }

    /// The object of a number.
    ///
    /// # Errors
    /// What is wrong with the number.
    pub fn get(&self, id: usize) -> Result<Arc<Mutex<T>>, String> {
        if id == 0 {
            return Err(format!("{} is null", self.kind));
        }
        let object = self.inner().live.get(&id).map(|(_, object)| Arc::clone(object));
        object.ok_or_else(|| format!("{id:#x} is no {}, or none any more", self.kind))
    }

    /// Ends an object.
    ///
    /// # Errors
    /// What is wrong with the number.
    pub fn remove(&self, id: usize) -> Result<Arc<Mutex<T>>, String> {
        let object = self.get(id)?;
        self.inner().live.remove(&id);
        Ok(object)
    }

    /// Those that this thread has made and that still exist.
    #[must_use]
    pub fn live(&self) -> Vec<String> {
        let this = thread::current().id();
        let inner = self.inner();
        let own = inner.live.iter().filter(|(_, (thread, _))| *thread == this);
        own.map(|(id, _)| format!("{} {id:#x}", self.kind)).collect()
    }
}
