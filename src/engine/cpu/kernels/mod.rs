//! Loops over blocks of values, each compiled once for every level of vector instructions: a call is a
//! door behind which the instructions of that level are used. What calls them, which rows and columns
//! a task takes in which order, is compiled once; where a call would take longer than the arithmetic, as
//! for a part of a row, a loop is given all rows of a tile.
//!
//! A group of values is widened as it is loaded and rounded as it is stored. Sums run in a fixed number
//! of lanes, and no multiplication is fused with an addition: every level computes the same bits.
pub(super) mod activation;
pub(super) mod columns;
pub(super) mod convert;
pub(super) mod double_backward;
pub(super) mod double_backward_plain;
pub(super) mod elementwise;
pub(super) mod few_runs;
pub(super) mod ghost;
pub(super) mod masked;
pub(crate) mod math;
pub(super) mod moments;
pub(super) mod narrow;
pub(super) mod rows;
pub(super) mod source;
pub(super) mod sums;
