//! Running statistics as kernels take them: `kernels/running.cuh`.
use crate::engine::pointers::{Pointers, Ptr};
use crate::engine::{OneValue, Running};
use crate::{Device, Real};

/// Running statistics, and how a batch moves them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Update<A> {
    pub factor: f64,
    pub var_factor: f64,
    pub mean: Ptr<A>,
    pub var: Ptr<A>,
    pub skipped: Ptr<f64>,
    pub rules: u32,
    pub reserved: u32,
}

impl<A: Real> Update<A> {
    /// No running statistics.
    pub const NONE: Self = Self {
        factor: 0.0,
        var_factor: 0.0,
        mean: Ptr::NULL,
        var: Ptr::NULL,
        skipped: Ptr::NULL,
        rules: 0,
        reserved: 0,
    };

    pub fn new<'a, 'r: 'a>(
        running: Option<Running<'r, Device, A>>,
        one_value: OneValue,
        pointers: &mut Pointers<'a>,
    ) -> Self {
        let Some(running) = running else { return Self::NONE };
        let rules = running.bits(one_value);
        let Running { mean, var, factor, var_factor, skipped, .. } = running;
        Self {
            factor,
            var_factor,
            mean: pointers.write(mean),
            var: pointers.write(var),
            skipped: pointers.write_some(skipped),
            rules,
            reserved: 0,
        }
    }
}
