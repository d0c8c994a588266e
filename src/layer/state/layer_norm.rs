//! The state dict of a [`LayerNorm`]: PyTorch's two names.
use super::layer::Reader;
use super::{LoadReport, StateDict, Strict};
use crate::{Engine, Error, LayerNorm, Memory, Real, Result};

impl<P: Real, M: Memory, G: Engine<Memory = M>> LayerNorm<P, G> {
    /// `weight` and `bias` of shape `[C]` and type `P`, those that the layer has, each behind `prefix` (its dot
    /// included), as PyTorch's `LayerNorm` names them.
    ///
    /// # Errors
    /// The memory's refusal.
    pub fn state_dict(&self, prefix: &str) -> Result<StateDict> {
        let mut dict = StateDict::new();
        for (name, param) in self.named_parameters() {
            let values = self.engine().memory().download(M::view(&param.value))?;
            dict.insert(format!("{prefix}{name}"), &[values.len()], &values)?;
        }
        Ok(dict)
    }

    /// Takes over values, as [`state_dict`](Self::state_dict) gives them, into the memory that is there: by the
    /// rules of [`BatchNorm::load_state_dict`](crate::BatchNorm::load_state_dict), which has its errors, too.
    ///
    /// # Errors
    /// [`Error::Load`] with [`Strict::Yes`], [`Error::Length`], the memory's refusal.
    pub fn load_state_dict<D: AsRef<[u8]>>(
        &mut self,
        dict: &StateDict<D>,
        prefix: &str,
        strict: Strict,
    ) -> Result<LoadReport> {
        self.check_lengths()?;
        let (engine, features) = (self.engine().clone(), self.features());
        let mut reader = Reader::new(dict, prefix);
        let names: Vec<_> = self.named_parameters().map(|(name, _)| name).collect();
        let values: Vec<_> =
            names.into_iter().map(|name| reader.floats::<P>(name, features)).collect();
        let report = reader.finish();
        if strict == Strict::Yes && !report.is_empty() {
            return Err(Error::Load(report));
        }
        for ((_, param), values) in self.named_parameters_mut().zip(values) {
            if let Some(values) = values {
                engine.memory().write(&values, M::view_mut(&mut param.value))?;
            }
        }
        Ok(report)
    }
}
