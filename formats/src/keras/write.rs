//! Weight files made anew, for models that are to load them.
use super::hdf5::Tree;
use super::roles::{Role, part};
use super::{Affine, Hints, to_weights};
use crate::{Error, LayerState, Result};

/// A layout of weight files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Legacy {
    /// Keras 1.0.7 to 1.2.2: `NAME/NAME_gamma`; the variance as `NAME_running_std`.
    Keras1,
    /// Keras 2 and TensorFlow: `NAME/NAME/gamma:0`.
    Keras2,
    /// Keras 3's `.h5`: `NAME/NAME/gamma`.
    Keras3,
}

/// A `.weights.h5` of Keras 3 that has these layers, by their names, in the order in which the model
/// has them: `model.load_weights(path, skip_mismatch=True)` where it has others too.
///
/// f16 and bf16 are written as f32, which Keras casts; eps and momentum have no place in it.
///
/// # Errors
/// [`Error::Mismatch`] where the arrays of a layer are not of one length, or statistics are missing;
/// [`Error::Unsupported`] for a name that HDF5 does not have.
pub fn write_weights_h5(layers: &[(&str, &LayerState)]) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    tree.group("vars");
    for (index, (name, state)) in layers.iter().enumerate() {
        let group = match index {
            0 => "layers/batch_normalization/vars".to_string(),
            n => format!("layers/batch_normalization_{n}/vars"),
        };
        let vars = tree.group(&group);
        vars.texts.push(("name".into(), name.to_string()));
        let arrays = to_weights(state)?.into_iter().enumerate();
        vars.arrays.extend(arrays.map(|(i, array)| (i.to_string(), array)));
    }
    tree.write()
}

/// A legacy weight file that has these layers, by their names: `model.load_weights(path,
/// by_name=True)`.
///
/// # Errors
/// As [`write_weights_h5`]; [`Error::Unsupported`] for Keras 1 and a layer without weight or bias,
/// which it does not have, and for `renorm` there.
pub fn write_legacy_h5(layers: &[(&str, &LayerState)], layout: Legacy) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    let names = layers.iter().map(|(name, _)| name.to_string()).collect();
    tree.lists.push(("layer_names".into(), names));
    let version = match layout {
        Legacy::Keras1 => None, // 1.2.2 writes none into files of weights
        Legacy::Keras2 => Some("2.15.0"),
        Legacy::Keras3 => Some("3.0.0"),
    };
    for (key, value) in [("backend", "tensorflow"), ("keras_version", version.unwrap_or_default())]
    {
        if version.is_some() {
            tree.texts.push((key.into(), value.into()));
        }
    }
    for (name, state) in layers {
        state.channels()?;
        let affine = Affine { scale: state.weight.is_some(), center: state.bias.is_some() };
        if layout == Legacy::Keras1
            && (affine != (Affine { scale: true, center: true }) || state.renorm.is_some())
        {
            let reason =
                format!("{name}: Keras 1 has gamma and beta always, and no renorm; got {affine}");
            return Err(Error::unsupported("keras 1", reason));
        }
        let mut weight_names = Vec::new();
        for role in Role::in_order(affine, state.renorm.is_some()) {
            let array = part(name, role, state, &Hints::default())?;
            let variable = role.variable(layout);
            let full = match layout {
                Legacy::Keras1 => format!("{name}_{variable}"),
                Legacy::Keras2 => format!("{name}/{variable}:0"),
                Legacy::Keras3 => format!("{name}/{variable}"),
            };
            let path = format!("{name}/{full}");
            let (group, dataset) = path.rsplit_once('/').unwrap_or(("", &path));
            tree.group(group).arrays.push((dataset.to_string(), array));
            weight_names.push(full);
        }
        tree.group(name).lists.push(("weight_names".into(), weight_names));
    }
    tree.write()
}

impl Role {
    /// What Keras calls it.
    fn variable(self, layout: Legacy) -> &'static str {
        match (self, layout) {
            (Self::Mean, Legacy::Keras1) => "running_mean",
            (Self::Variance, Legacy::Keras1) => "running_std",
            (Self::Gamma, _) => "gamma",
            (Self::Beta, _) => "beta",
            (Self::Mean, _) => "moving_mean",
            (Self::Variance, _) => "moving_variance",
            (Self::RunningStd, _) => "running_std",
            (Self::MovingStddev, _) => "moving_stddev",
            (Self::RenormMean, _) => "renorm_mean",
            (Self::RenormStddev, _) => "renorm_stddev",
        }
    }
}
