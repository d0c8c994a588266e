#![doc = include_str!("../README.md")]

mod calls;
mod code;
mod context;
#[allow(unsafe_code)]
mod control;
mod device;
mod driver;
#[allow(unsafe_code, non_snake_case, clippy::too_many_arguments)]
mod entry;
mod graph;
#[allow(unsafe_code)]
mod host;
#[allow(unsafe_code)]
mod install;
#[allow(unsafe_code)]
mod managed;
mod memory;
mod module;
mod occupancy;
mod profile;
mod queue;
mod report;
mod rng;
mod schedule;
mod stream;
mod variables;
mod work;

pub use code::Code;
pub use control::{Device, Exclusive, Softcuda};
pub use install::install;
pub use profile::{PROFILES, Profile, ordinal};
pub use report::{FailurePoint, LaunchReport, Report, Traffic};
pub use softlibrary::InstallError;

#[doc = include_str!("../COVERAGE.md")]
pub mod coverage {}
