//! What each of a layer's variables is, and what they are together.
use batchnorm::Momentum;

use super::config::Settings;
use super::{Affine, Hints};
use crate::state::Renorm;
use crate::{Array, Error, LayerState, Result};

/// A variable of a batch normalization in Keras.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Gamma,
    Beta,
    Mean,
    Variance,
    /// Keras 1's, which is a variance or a deviation.
    RunningStd,
    MovingStddev,
    RenormMean,
    RenormStddev,
}

impl Role {
    /// By the name that a variable has within its layer, `gamma` or `gamma:0`.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name.split(':').next().unwrap_or(name) {
            "gamma" => Self::Gamma,
            "beta" => Self::Beta,
            "moving_mean" | "running_mean" => Self::Mean,
            "moving_variance" => Self::Variance,
            "running_std" => Self::RunningStd,
            "moving_stddev" => Self::MovingStddev,
            "renorm_mean" => Self::RenormMean,
            "renorm_stddev" => Self::RenormStddev,
            _ => return None,
        })
    }

    /// In the order of `get_weights()`.
    pub fn in_order(affine: Affine, renorm: bool) -> Vec<Self> {
        let mut roles = Vec::new();
        roles.extend(affine.scale.then_some(Self::Gamma));
        roles.extend(affine.center.then_some(Self::Beta));
        roles.extend([Self::Mean, Self::Variance]);
        if renorm {
            roles.extend([Self::MovingStddev, Self::RenormMean, Self::RenormStddev]);
        }
        roles
    }

    /// The roles of `count` variables that have no names.
    pub fn of_numbered(
        name: &str,
        count: usize,
        settings: Option<&Settings>,
        hints: &Hints,
    ) -> Result<Vec<Self>> {
        let said = settings.and_then(|s| Some(Affine { scale: s.scale?, center: s.center? }));
        let affine = match (said, hints.affine) {
            (Some(said), Some(hint)) if said != hint => {
                return Err(Error::mismatch(name, said, hint));
            }
            (said, hint) => said.or(hint),
        };
        let (affine, renorm) = match (affine, count) {
            (Some(affine), count) => {
                let plain = Self::in_order(affine, false).len();
                (affine, settings.and_then(|s| s.renorm).unwrap_or(count == plain + 3))
            }
            (None, 2 | 5) => (Affine { scale: false, center: false }, count == 5),
            (None, 4 | 7) => (Affine { scale: true, center: true }, count == 7),
            (None, 3 | 6) => {
                let reason = format!(
                    "{count} variables without names: whether the first is gamma or beta is not in \
                     the file, and Hints::affine has to say it"
                );
                return Err(Error::Ambiguous { name: name.into(), reason });
            }
            (None, count) => {
                return Err(Error::mismatch(name, "2 to 7 variables", count));
            }
        };
        let roles = Self::in_order(affine, renorm);
        if roles.len() != count {
            let expected = format!("{} variables: {affine}", roles.len());
            return Err(Error::mismatch(name, expected, count));
        }
        Ok(roles)
    }
}

/// A layer of these variables.
pub(super) fn assemble(
    name: &str,
    variables: Vec<(Role, Array)>,
    settings: Option<&Settings>,
    hints: &Hints,
) -> Result<LayerState> {
    let mut parts = Parts(variables);
    for (_, array) in &parts.0 {
        if array.channels().is_none() {
            return Err(Error::mismatch(name, "one value per channel", array));
        }
    }
    let (gamma, beta) = (parts.take(Role::Gamma), parts.take(Role::Beta));
    let mean = parts.take(Role::Mean);
    let (std, variance) = (parts.take(Role::RunningStd), parts.take(Role::Variance));
    let converted = std.is_some();
    let variance = match (variance, std) {
        (None, Some(std)) => Some(hints.running_std(name)?.variance(std)?),
        (variance, _) => variance,
    };
    let renorm = [Role::MovingStddev, Role::RenormMean, Role::RenormStddev];
    let [stddev, renorm_mean, renorm_stddev] =
        renorm.map(|role| parts.take(role).map(|array| array.values));
    let mut state = LayerState::from_arrays(gamma, beta, mean, variance)?;
    if let (Some(moving_stddev), Some(renorm_mean), Some(renorm_stddev)) =
        (stddev, renorm_mean, renorm_stddev)
    {
        let lens = [moving_stddev.len(), renorm_mean.len(), renorm_stddev.len()];
        let channels = state.channels()?;
        if lens != [channels; 3] {
            return Err(Error::mismatch(
                name,
                format!("{channels} values each"),
                format!("{lens:?}"),
            ));
        }
        state.renorm = Some(Renorm { moving_stddev, renorm_mean, renorm_stddev });
    }
    if let Some(settings) = settings {
        state.eps = settings.epsilon;
        state.momentum = settings.momentum.map(Momentum::keeping);
        state.axis = settings.axis;
        state.renorm_rules = settings.renorm_rules;
        state.virtual_batch_size = settings.virtual_batch_size;
    }
    if let (Some(std), true) = (hints.running_std, converted) {
        if let Some(said) = state.eps.filter(|&said| said != std.eps) {
            return Err(Error::mismatch(format!("{name}: eps of running_std"), said, std.eps));
        }
        // What the variance was converted for.
        state.eps = Some(std.to_eps);
    }
    Ok(state)
}

/// The numbers of a layer for one of its variables.
pub(super) fn part(name: &str, role: Role, state: &LayerState, hints: &Hints) -> Result<Array> {
    let renorm = state.renorm.as_ref();
    let values = match role {
        Role::Gamma => state.weight.as_ref(),
        Role::Beta => state.bias.as_ref(),
        Role::Mean => state.running_mean.as_ref(),
        Role::Variance | Role::RunningStd => state.running_var.as_ref(),
        Role::MovingStddev => renorm.map(|r| &r.moving_stddev),
        Role::RenormMean => renorm.map(|r| &r.renorm_mean),
        Role::RenormStddev => renorm.map(|r| &r.renorm_stddev),
    };
    let values = values.ok_or_else(|| Error::mismatch(name, format!("{role:?}"), "none"))?;
    let array = Array::vector(state.dtype, values.clone());
    if role == Role::RunningStd { hints.running_std(name)?.std(name, array) } else { Ok(array) }
}

struct Parts(Vec<(Role, Array)>);

impl Parts {
    fn take(&mut self, role: Role) -> Option<Array> {
        let at = self.0.iter().position(|(there, _)| *there == role)?;
        Some(self.0.swap_remove(at).1)
    }
}
