//! Only tests: they write `COVERAGE.md` of the crate `softcuda`, and check it.
