//! Where the arguments of `Cudnn` and of a `Gpu` that prefers it may lie: on their own device, and
//! there anywhere.
use crate::support::cudnn::{gpu_on, on_device};
use crate::support::faults::refuses_memory_of_another_device;
use crate::support::late::serves_arguments_that_start_anywhere;
use batchnorm::{Device, Engine};

fn refuses_foreign_memory<G: Engine<Memory = Device>>(engine: impl Fn(usize) -> G) {
    let softcuda = softcuda::install().unwrap();
    let [here, there] = ["sm_80", "sm_75"].map(|name| softcuda::ordinal(name).unwrap());
    let devices = [here, there].map(|ordinal| softcuda.exclusive(ordinal));
    let other = crate::support::cuda::on_device(there).unwrap();
    refuses_memory_of_another_device(&engine(here), other.memory(), |what| {
        format!(
            "{what}: expected memory of this engine's context on device {here}, got another's, on device {there}"
        )
    });
    drop(other);
    for device in devices {
        assert_eq!(device.faults(), [""; 0]);
        assert_eq!(device.leaks(), [""; 0]);
    }
}

#[test]
fn memory_of_another_device_is_refused() {
    refuses_foreign_memory(|ordinal| on_device(ordinal).unwrap());
}
#[test]
fn memory_of_another_device_is_refused_by_gpu() {
    refuses_foreign_memory(|ordinal| gpu_on(ordinal).unwrap());
}

/// cuDNN names no alignment but that of the elements.
#[test]
fn every_argument_may_start_anywhere() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    serves_arguments_that_start_anywhere(&on_device(device.ordinal()).unwrap());
    serves_arguments_that_start_anywhere(&gpu_on(device.ordinal()).unwrap());
    assert_eq!(device.faults(), [""; 0]);
}
