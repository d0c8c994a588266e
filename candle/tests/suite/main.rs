//! The layer beside candle's own, composed of tensor operations, and by the golden cases.
mod errors;
mod files;
mod golden;
mod graph;
mod like_candle;
mod network;
mod support;
