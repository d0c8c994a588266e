//! What only the `Cuda` engine has, on the software device: other devices, streams, graphs,
//! failures, regimes, traffic. The suite runs it on everything that engines have in common.
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "../support/mod.rs"]
mod support;

mod alignment; // arguments at odd addresses
mod calls; // how often an operation calls the driver
mod counts; // instructions and bytes of every kernel
mod devices; // golden cases on every profile; several devices, streams and threads
mod failures; // launches, memory and modules that fail
mod graphs; // a captured step
mod graphs_of_layers; // steps of a layer
mod layers; // what steps of a layer read and write
mod masks; // places that no host has looked through, and their traffic
#[allow(unsafe_code)]
mod raw; // memory of another allocator, by its address
mod refusals; // launches that the driver does not start
mod regimes; // every way through a step, on a device where small tensors take them all
mod replays; // steps of layers in a graph
mod streams; // one tensor on several streams
mod traffic; // bytes that kernels read and write
