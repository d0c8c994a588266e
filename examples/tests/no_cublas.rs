//! The examples' choice of a device where there is a CUDA driver and no cuBLAS.
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[allow(dead_code)] // training
#[path = "../train/backend/mod.rs"]
mod backend;
#[allow(dead_code)]
#[path = "../train/device.rs"]
mod device;

use device::{Device, Place};

#[test]
fn a_device_without_cublas_is_an_error_that_names_it_and_auto_takes_the_cpu() {
    softcuda::install().expect("the software device");
    let reason = match Place::new(Device::Cuda, false) {
        Ok(_) => return println!("skipped: this machine has a cuBLAS"),
        Err(error) => format!("{error:#}"),
    };
    assert_eq!(reason, "cuBLAS: the loader finds no library of that name");
    let place = Place::new(Device::Auto, false).unwrap();
    assert!(matches!(place, Place::Cpu { .. }));
    assert_eq!(place.name(), format!("cpu, as there is no CUDA device to train on: {reason}"));
    assert_eq!(Place::new(Device::Cpu, false).unwrap().name(), "cpu");
}
