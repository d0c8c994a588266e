//! Launches that a driver refuses although its own figures allow them: under a debugger or a sanitizer, with a part of a
//! device, or with another split of cache and shared memory.
use super::figures::Figures;
use super::resident::Resident;
use crate::Error;
use cudarc::driver::sys::CUresult;
use std::sync::OnceLock;

/// What a driver answers that has started nothing, and would answer again.
const REFUSED: [CUresult; 3] = [
    CUresult::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE,
    CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
    CUresult::CUDA_ERROR_NOT_SUPPORTED,
];

/// The first refusal of a step in one launch, of each kind: steps are planned without that kind from then on.
#[derive(Default)]
pub(super) struct Refusals {
    groups: OnceLock<Error>,
    blocks: OnceLock<Error>,
}

impl Refusals {
    /// Remembers the error of a launch, if it is a refusal: then nothing has run, and a plan of another kind may.
    pub fn remember(&self, plan: &Resident, error: &Error) -> bool {
        let Error::Device { code, .. } = error else { return false };
        let is_refusal = REFUSED.iter().any(|&refused| refused as u32 == *code);
        if is_refusal {
            let kind = if plan.blocks > 1 { &self.groups } else { &self.blocks };
            kind.get_or_init(|| error.clone());
        }
        is_refusal
    }

    /// What is left of a device for steps in one launch; none where not even single blocks are.
    pub fn allowed(&self, figures: &Figures) -> Option<Figures> {
        let cooperative = figures.cooperative && self.groups.get().is_none();
        self.blocks.get().is_none().then_some(Figures { cooperative, ..*figures })
    }
}

/// `; no steps in one launch by groups of blocks, since the driver refused one: cuLaunch..`, or nothing.
impl std::fmt::Display for Refusals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kinds = [("groups of blocks", &self.groups), ("blocks by themselves", &self.blocks)];
        for (kind, refusal) in kinds.iter().filter_map(|(kind, of)| Some((kind, of.get()?))) {
            write!(
                f,
                "; no steps in one launch by {kind}, since the driver refused one: {refusal}"
            )?;
        }
        Ok(())
    }
}
