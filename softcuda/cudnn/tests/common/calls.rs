//! The calls, by cudarc's bindings.

use std::ptr;

use cudarc::cudnn::sys::*;

use super::{At, Norm, OK, Status, numbers::Number};

impl<T: Number> Norm<T> {
    fn scalars(&self, values: [f64; 2]) -> [T::Parameter; 2] {
        values.map(T::Parameter::narrow)
    }

    pub fn forward(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        // SAFETY: arguments that live; what a test has spoilt is refused.
        unsafe {
            cudnnBatchNormalizationForwardTraining(
                self.handle.0,
                self.mode,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.y_descriptor,
                self.p(At::Y),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Bias),
                self.factor,
                self.p(At::RunningMean),
                self.p(At::RunningVar),
                self.epsilon,
                self.p(At::SavedMean),
                self.p(At::SavedInverse),
            )
        }
    }

    pub fn forward_ex(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        // SAFETY: as above.
        unsafe {
            cudnnBatchNormalizationForwardTrainingEx(
                self.handle.0,
                self.mode,
                self.ops,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.x_descriptor,
                self.p(At::Z),
                self.y_descriptor,
                self.p(At::Y),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Bias),
                self.factor,
                self.p(At::RunningMean),
                self.p(At::RunningVar),
                self.epsilon,
                self.p(At::SavedMean),
                self.p(At::SavedInverse),
                self.activation_descriptor,
                self.p(At::Workspace),
                self.workspace_bytes,
                self.p(At::Reserve),
                self.reserve_bytes,
            )
        }
    }

    /// With the running statistics.
    pub fn infer(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        // SAFETY: as above.
        unsafe {
            cudnnBatchNormalizationForwardInference(
                self.handle.0,
                self.mode,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.y_descriptor,
                self.p(At::Y),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Bias),
                self.p(At::RunningMean),
                self.p(At::RunningVar),
                self.epsilon,
            )
        }
    }

    pub fn backward(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        let [by_alpha, by_beta] = self.scalars(self.parameter_blend);
        // SAFETY: as above.
        unsafe {
            cudnnBatchNormalizationBackward(
                self.handle.0,
                self.mode,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                (&raw const by_alpha).cast(),
                (&raw const by_beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.y_descriptor,
                self.p(At::Dy),
                self.x_descriptor,
                self.p(At::Dx),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Dscale),
                self.p(At::Dbias),
                self.epsilon,
                self.p(At::SavedMean),
                self.p(At::SavedInverse),
            )
        }
    }

    pub fn backward_ex(&self) -> Status {
        let [alpha, beta] = self.scalars(self.blend);
        let [by_alpha, by_beta] = self.scalars(self.parameter_blend);
        // SAFETY: as above.
        unsafe {
            cudnnBatchNormalizationBackwardEx(
                self.handle.0,
                self.mode,
                self.ops,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                (&raw const by_alpha).cast(),
                (&raw const by_beta).cast(),
                self.x_descriptor,
                self.p(At::X),
                self.y_descriptor,
                self.p(At::Y),
                self.y_descriptor,
                self.p(At::Dy),
                self.x_descriptor,
                self.p(At::Dz),
                self.x_descriptor,
                self.p(At::Dx),
                self.parameter_descriptor,
                self.p(At::Scale),
                self.p(At::Bias),
                self.p(At::Dscale),
                self.p(At::Dbias),
                self.epsilon,
                self.p(At::SavedMean),
                self.p(At::SavedInverse),
                self.activation_descriptor,
                self.p(At::Workspace),
                self.workspace_bytes,
                self.p(At::Reserve),
                self.reserve_bytes,
            )
        }
    }

    /// What the persistent mode has found, once all work is done.
    pub fn runtime_error(&self, mode: cudnnErrQueryMode_t) -> Status {
        let mut status = OK;
        // SAFETY: a handle that lives, and a status that can be written.
        let asked =
            unsafe { cudnnQueryRuntimeError(self.handle.0, &mut status, mode, ptr::null_mut()) };
        assert_eq!(asked, OK);
        status
    }
}
