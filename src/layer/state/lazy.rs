//! State dicts of a layer that learns its channels from one.
use super::{LoadReport, StateDict, Strict};
use crate::{BatchNorm, Engine, Error, LazyBatchNorm, Memory, Real, Result};

impl<P: Real, M: Memory, G: Engine<Memory = M>> LazyBatchNorm<P, G> {
    /// As [`BatchNorm::state_dict`](crate::BatchNorm::state_dict).
    ///
    /// # Errors
    /// [`Error::Uninitialized`] before the number of channels is known; as there.
    pub fn state_dict(&self, prefix: &str) -> Result<StateDict> {
        self.get()?.state_dict(prefix)
    }

    /// As [`BatchNorm::load_state_dict`](crate::BatchNorm::load_state_dict). A layer without channels takes
    /// their number from the first of weight, bias, running mean and running variance that the configuration
    /// has and the dict holds, if that is a vector; a dict that has none of them leaves it without, and is
    /// refused with [`Strict::Yes`]. One that fails leaves the layer without channels, if it had none.
    ///
    /// # Errors
    /// As there.
    pub fn load_state_dict<D: AsRef<[u8]>>(
        &mut self,
        dict: &StateDict<D>,
        prefix: &str,
        strict: Strict,
    ) -> Result<LoadReport> {
        let config = self.config();
        let (affine, tracked) = ((config.weight, config.bias), config.track_running_stats);
        let has = [
            ("weight", affine.0),
            ("bias", affine.1),
            ("running_mean", tracked),
            ("running_var", tracked),
        ];
        let names = has.into_iter().filter_map(|(name, has)| has.then_some(name));
        let names: Vec<String> = names.map(|name| format!("{prefix}{name}")).collect();
        let length = |name: &String| match dict.entries.get(name)?.shape[..] {
            [channels] if channels > 0 => Some(channels),
            _ => None,
        };
        match names.iter().find_map(length) {
            Some(channels) => {
                self.or_undo(channels, |layer| layer.load_state_dict(dict, prefix, strict))
            }
            None if self.is_initialized() => self.get_mut()?.load_state_dict(dict, prefix, strict),
            None => {
                // No vector to be found: one of any length tells the same of what is there instead.
                let mut probe = BatchNorm::<P, G>::new(&self.engine, 1, self.config)?;
                let mut report = probe.load_state_dict(dict, prefix, Strict::No)?;
                for entry in report.mismatched.iter_mut().filter(|e| names.contains(&e.name)) {
                    entry.expected = "a vector of at least 1".into();
                }
                match strict {
                    Strict::Yes if !report.is_empty() => Err(Error::Load(report)),
                    _ => Ok(report),
                }
            }
        }
    }
}
