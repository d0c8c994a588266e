//! A process of its own: what it has in memory is what the steps leave.
#[cfg(target_os = "linux")]
use batchnorm_burn::{Activation, BatchNormConfig};
#[cfg(target_os = "linux")]
use burn::tensor::{Device, Distribution, Tensor};

/// Bytes of this process that are in memory.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
fn does_not_grow_in_10_000_steps() {
    let device = Device::flex().autodiff();
    let bn = BatchNormConfig::new(64).init(&device).with_activation(Activation::Relu);
    let x = Tensor::<3>::random([4, 64, 3], Distribution::Default, &device).require_grad();
    let step = || {
        let y = bn.forward_add(x.clone(), x.clone());
        (y.clone() * y).sum().backward();
    };
    (0..500).for_each(|_| step());
    let before = resident();
    (0..10_000).for_each(|_| step());
    let grown = resident().saturating_sub(before);
    // 100 bytes of a step that stay would make this much.
    assert!(grown < 1 << 20, "{grown} bytes");
}
