//! The layer beside burn's own, composed of tensor operations, and by the golden cases.
mod errors;
mod golden;
mod graph;
mod like_burn;
mod network;
mod records;
mod support;
