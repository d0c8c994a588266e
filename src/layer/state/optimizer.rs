//! An optimizer's state by names, beside that of its layer.
use super::StateDict;
use crate::{Error, LoadReport, Memory, Optimizer, OptimizerState, ParamState, Real, Result};

impl<M: Memory, P: Real> Optimizer<M, P> {
    /// What it keeps, each name behind `prefix`: `lr` and, of every parameter that the layer has, `step`
    /// (f64 scalars) and what the algorithm keeps of it (shape `[C]`, type `P`), by the names of
    /// [`Algorithm::buffers`](crate::Algorithm::buffers): `weight.momentum_buffer`, `bias.exp_avg`,
    /// `bias.exp_avg_sq`.
    ///
    /// # Errors
    /// The memory's refusal.
    pub fn state_dict(&self, prefix: &str) -> Result<StateDict> {
        let state = self.state()?;
        let mut dict = StateDict::new();
        dict.insert(format!("{prefix}lr"), &[], &[state.lr])?;
        for (name, param) in [("weight", &state.weight), ("bias", &state.bias)] {
            let Some(ParamState { steps, buffers }) = param else { continue };
            dict.insert(format!("{prefix}{name}.step"), &[], &[*steps as f64])?;
            for (buffer, values) in self.algorithm().buffers().iter().zip(buffers) {
                dict.insert(format!("{prefix}{name}.{buffer}"), &[values.len()], values)?;
            }
        }
        Ok(dict)
    }

    /// Takes over what [`state_dict`](Self::state_dict) gave, of an optimizer of the same algorithm.
    ///
    /// # Errors
    /// [`Error::Load`] with the names that are missing; [`Error::State`] where a type would lose digits or a
    /// number of steps is none; as [`load_state`](Self::load_state). All of it is checked before anything
    /// is written.
    pub fn load_state_dict<D: AsRef<[u8]>>(
        &mut self,
        dict: &StateDict<D>,
        prefix: &str,
    ) -> Result<()> {
        fn take<P: Real, D: AsRef<[u8]>>(
            dict: &StateDict<D>,
            name: String,
            missing: &mut Vec<String>,
        ) -> Result<Vec<P>> {
            let found = dict.get(&name)?.map(|(_, values)| values);
            Ok(found.unwrap_or_else(|| {
                missing.push(name);
                Vec::new()
            }))
        }
        let mut missing = Vec::new();
        let scalar = |name: String, missing: &mut Vec<String>| {
            let values = take::<f64, D>(dict, name.clone(), missing)?;
            match values[..] {
                [value] => Ok(value),
                [] => Ok(0.0), // missing
                _ => {
                    let got = values.len();
                    Err(Error::State(format!("{name}: expected one number, got {got}")))
                }
            }
        };
        let lr = scalar(format!("{prefix}lr"), &mut missing)?;
        let [weight, bias] = self.parameters();
        let mut params = [None, None];
        for (param, (name, there)) in params.iter_mut().zip([("weight", weight), ("bias", bias)]) {
            if !there {
                continue;
            }
            let steps = scalar(format!("{prefix}{name}.step"), &mut missing)?;
            if !(steps >= 0.0 && steps.fract() == 0.0 && steps <= 2f64.powi(53)) {
                let reason = format!("{prefix}{name}.step: expected a whole number, got {steps}");
                return Err(Error::State(reason));
            }
            let buffers = self.algorithm().buffers().iter();
            let buffers =
                buffers.map(|buffer| take(dict, format!("{prefix}{name}.{buffer}"), &mut missing));
            *param = Some(ParamState::new(steps as u64, buffers.collect::<Result<_>>()?));
        }
        if !missing.is_empty() {
            return Err(Error::Load(LoadReport { missing, ..LoadReport::default() }));
        }
        let [weight, bias] = params;
        let mut state = OptimizerState::new(lr);
        (state.weight, state.bias) = (weight, bias);
        self.load_state(&state)
    }
}
