//! How often each thread has made each call.

use std::{cell::RefCell, collections::BTreeMap};

thread_local! {
    static CALLS: RefCell<BTreeMap<&'static str, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Counts a call of this thread. A call that another one is made of counts by the name of either, never of both.
pub fn count(name: &'static str) {
    CALLS.with_borrow_mut(|calls| *calls.entry(name).or_default() += 1);
}

/// The name and number of a kind of call that this thread has made since it last [forgot](forget) them, in the
/// order of their names.
pub fn counted(index: usize) -> Option<(&'static str, u64)> {
    CALLS.with_borrow(|calls| calls.iter().nth(index).map(|(name, count)| (*name, *count)))
}

/// Starts from 0.
pub fn forget() {
    CALLS.with_borrow_mut(BTreeMap::clear);
}

/// The entry point that a closure is written in, by the name that the compiler gives its type:
/// `softcuda::entry::event::cuEventRecord::{{closure}}`. The whole name where there is none in it.
pub fn entry_point<F>() -> &'static str {
    let name = std::any::type_name::<F>();
    name.split("::").find(|part| part.starts_with("cu")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(non_snake_case)]
    fn cuSomething() -> &'static str {
        fn of<F: FnOnce()>(_: F) -> &'static str {
            entry_point::<F>()
        }
        of(|| {})
    }

    #[test]
    fn calls_are_counted_by_their_entry_points_and_threads() {
        forget();
        count(cuSomething());
        count("cuAnother");
        count(cuSomething());
        std::thread::spawn(|| assert_eq!(counted(0), None)).join().unwrap();
        assert_eq!(
            [0, 1, 2].map(counted),
            [Some(("cuAnother", 1)), Some(("cuSomething", 2)), None]
        );
        forget();
        assert_eq!(counted(0), None);
    }
}
