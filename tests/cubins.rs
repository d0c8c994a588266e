//! Machine code that a driver does not take: PTX serves instead. The software device is such a driver, of all
//! machine code.
#![cfg(all(target_os = "linux", feature = "cubins"))]
use batchnorm::{BatchNorm, Config, Cuda, Device, Engine, Error, Memory, Result, Shape};
use softcuda::{Code, Exclusive, FailurePoint};

/// What machine code is answered with.
const REFUSED: &str = "a binary for a real device";

/// The output of a training step of a new engine, whose modules are not loaded, and what the driver
/// refused meanwhile.
fn step(device: &Exclusive) -> (Result<Vec<f32>>, Vec<String>) {
    let run = || {
        let engine = Cuda::new(device.ordinal())?;
        let mut bn = BatchNorm::new(&engine, 2, Config::default())?;
        let x = engine.memory().upload(&[1f32, 5., 3., 9.])?;
        let (y, _) = bn.forward(&Shape::new(&[2, 2], 1)?, Device::view(&x))?;
        engine.memory().download(Device::view(&y))
    };
    let y = run();
    (y, device.refusals())
}

fn assert_right(y: Result<Vec<f32>>) {
    // Two values per channel: -1 and 1, but for eps.
    for (got, expected) in y.unwrap().iter().zip([-1f32, -1., 1., 1.]) {
        assert!((got - expected).abs() < 1e-4, "{got} {expected}");
    }
}

#[test]
fn ptx_serves_where_the_driver_refuses_machine_code() {
    let softcuda = softcuda::install().unwrap();
    for (profile, has_machine_code) in [("sm_75", false), ("sm_80", true)] {
        let device = softcuda.exclusive(softcuda::ordinal(profile).unwrap());
        let (y, refusals) = step(&device);
        assert_right(y);
        assert_eq!(!refusals.is_empty(), has_machine_code, "{profile}: {refusals:?}");
        assert!(refusals.iter().all(|refusal| refusal.contains(REFUSED)), "{refusals:?}");
        assert_eq!(device.faults(), [""; 0]);
    }
}

/// What the driver says of PTX is what a caller gets; an older driver does not take machine code that
/// a newer assembler made.
#[test]
fn machine_code_that_fails_is_no_error_but_ptx_is() {
    let softcuda = softcuda::install().unwrap();
    let device = softcuda.exclusive(softcuda::ordinal("sm_80").unwrap());
    let code = Code::UnsupportedPtxVersion;
    device.fail(FailurePoint::Module, 0, code); // the machine code
    assert_right(step(&device).0);
    device.reset();
    device.fail(FailurePoint::Module, 1, code);
    let Err(Error::Device { code: got, .. }) = step(&device).0 else { panic!("no error") };
    assert_eq!(got, code as u32);
    device.reset();
}
