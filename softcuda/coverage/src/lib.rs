//! Only tests: they write `COVERAGE.md` of the crate `softcuda`, and check it; and the examples of the workspace's README.

/// Its examples are tests of this crate.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
