//! Statistics that ranks have in common: `Synced` of every engine, over threads, beside one whole batch.
#[path = "../support/mod.rs"]
mod support;

#[cfg(all(feature = "cuda", target_os = "linux"))]
mod capture; // a step as a graph
mod conformance; // engines x dtypes x shapes x epilogues x parts
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod device; // nothing is read back
mod faults; // ranks that do not do the same, or are lost
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod gate; // captures, and engines that are made meanwhile
mod ghost; // groups of each rank's rows
mod layers; // a layer on several ranks: evaluation, what is refused, gradients, populations
mod lists; // a list of inputs on each rank
mod masks; // statistics of the values that count
#[cfg(all(feature = "nccl", target_os = "linux"))]
mod nccl; // ranks on software devices, by the software NCCL
#[cfg(all(feature = "nccl", target_os = "linux"))]
mod nccl_faults; // ranks that NCCL loses
mod renorm; // r and d by common statistics
mod steps; // double backwards; groups by a mask
mod threads; // the collective by itself
mod world; // ranks, and parts of a batch
