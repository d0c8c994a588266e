//! Kernels that nvcc made, through unmodified cudarc on the software device: against f64, over shapes, types, profiles
//! and seeds; and the memory traffic of each.
use softcuda::{Exclusive, Report};
use support::device::Device;

mod arithmetic;
mod batchnorm;
mod blocks;
mod judge;
#[path = "../support/mod.rs"]
mod support;

/// Runs `body` on a profile's device, which must have nothing to say against it.
fn on<R>(profile: &str, body: impl FnOnce(&Device, &Exclusive) -> R) -> R {
    let softcuda = softcuda::install().unwrap();
    run(&softcuda.exclusive(softcuda::ordinal(profile).unwrap()), body)
}

/// The same under some seeds; it must give the same each time.
fn under_seeds<R: PartialEq>(profile: &str, body: impl Fn(&Device, &Exclusive) -> R) -> R {
    let softcuda = softcuda::install().unwrap();
    let exclusive = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
    let first = run(&exclusive, &body);
    for seed in [exclusive.seed() + 1, 0x5eed, u64::MAX] {
        exclusive.set_seed(seed);
        assert!(run(&exclusive, &body) == first, "another result under seed {seed}");
    }
    first
}

fn run<R>(exclusive: &Exclusive, body: impl FnOnce(&Device, &Exclusive) -> R) -> R {
    let device = Device::new(exclusive.ordinal()).unwrap();
    let result = body(&device, exclusive);
    drop(device);
    assert_eq!(exclusive.faults(), [""; 0]);
    assert_eq!(exclusive.leaks(), [""; 0]);
    result
}

/// What the last launch did, without the most memory ever allocated: what ran before counts there.
fn counts(device: &Exclusive) -> Report {
    Report { high_water: 0, ..device.last_launch().unwrap().counts }
}
