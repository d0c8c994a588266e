//! MATLAB's and Wolfram's layers, by their properties' names in JSON.
//!
//! Their own files (`.mat`, `.wlnet`) are not read. MATLAB writes such JSON by `jsonencode` of a struct
//! of the layer's properties, Wolfram by `ExportString[Normal /@ Information[layer, "ArraysAssociation"]
//! , "JSON"]` or an association of these names.
use batchnorm::{DType, Momentum};
use serde_json::{Map, Value, json};

use crate::{Array, Error, LayerState, Result};

const JSON: &str = "json";

/// Which system's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum System {
    /// `Scale`, `Offset`, `TrainedMean`, `TrainedVariance`, `Epsilon`, and `MeanDecay` and
    /// `VarianceDecay`, which weigh the new value.
    Matlab,
    /// `Scaling`, `Biases`, `MovingMean`, `MovingVariance` (before 12.0 `Gamma`, `Beta`), `Epsilon`, and
    /// `Momentum`, which weighs the old value.
    Wolfram,
}

/// Reads one layer: an object of a system's names. An array may be nested, as MATLAB's 1-by-1-by-C
/// arrays are; one that is missing, null or empty is none. The numbers are taken to be f64.
///
/// Neither system's documentation says whether its variance is biased.
///
/// # Errors
/// [`Error::Malformed`] for what is no such object; [`Error::Mismatch`] where the arrays are not of one
/// length, and for one of the two decays alone.
pub fn read(text: &str, system: System) -> Result<LayerState> {
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| Error::malformed(JSON, e))?;
    let array = |names: [&str; 2]| -> Result<Option<Array>> {
        let value = names.iter().find_map(|&name| Some((name, object.get(name)?)));
        let Some((name, value)) = value else { return Ok(None) };
        let mut values = Vec::new();
        flatten(name, value, &mut values)?;
        Ok(if values.is_empty() { None } else { Some(Array::vector(DType::F64, values)) })
    };
    let number = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => Err(Error::mismatch(name, "a number", value)),
        },
    };
    let [weight, bias, mean, var] = names(system);
    let mut state =
        LayerState::from_arrays(array(weight)?, array(bias)?, array(mean)?, array(var)?)?;
    state.eps = number("Epsilon")?;
    state.momentum = match system {
        System::Wolfram => number("Momentum")?.map(Momentum::keeping),
        System::Matlab => match (number("MeanDecay")?, number("VarianceDecay")?) {
            (Some(mean), Some(var)) => Some(Momentum::Separate { mean, var }),
            (None, None) => None,
            (mean, _) => {
                let got = if mean.is_some() { "MeanDecay alone" } else { "VarianceDecay alone" };
                return Err(Error::mismatch("decay", "MeanDecay and VarianceDecay", got));
            }
        },
    };
    Ok(state)
}

/// The object for one layer. JSON has no NaN and no infinity.
///
/// # Errors
/// [`Error::Unsupported`] for numbers that are not finite and a momentum that the system does not
/// have; [`Error::Mismatch`] where the arrays are not of one length.
pub fn write(state: &LayerState, system: System) -> Result<String> {
    state.channels()?;
    let mut object = Map::new();
    let arrays = [&state.weight, &state.bias, &state.running_mean, &state.running_var];
    for ([name, _], values) in names(system).into_iter().zip(arrays) {
        let Some(values) = values else { continue };
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::unsupported(JSON, format!("{name}: {value}")));
        }
        object.insert(name.into(), json!(values));
    }
    if let Some(eps) = state.eps {
        object.insert("Epsilon".into(), json!(eps));
    }
    match (state.momentum, system) {
        (None, _) => {}
        (Some(Momentum::Exponential(new)), System::Wolfram) => {
            object.insert("Momentum".into(), json!(1.0 - new));
        }
        (Some(Momentum::Exponential(new)), System::Matlab) => {
            object.insert("MeanDecay".into(), json!(new));
            object.insert("VarianceDecay".into(), json!(new));
        }
        (Some(Momentum::Separate { mean, var }), System::Matlab) => {
            object.insert("MeanDecay".into(), json!(mean));
            object.insert("VarianceDecay".into(), json!(var));
        }
        (Some(other), _) => {
            let reason = format!("momentum: {system:?} has none such as {other}");
            return Err(Error::unsupported(JSON, reason));
        }
    }
    Ok(Value::Object(object).to_string())
}

/// Each array's name, and an older one.
fn names(system: System) -> [[&'static str; 2]; 4] {
    match system {
        System::Matlab => [
            ["Scale", "Scale"],
            ["Offset", "Offset"],
            ["TrainedMean", "TrainedMean"],
            ["TrainedVariance", "TrainedVariance"],
        ],
        System::Wolfram => [
            ["Scaling", "Gamma"],
            ["Biases", "Beta"],
            ["MovingMean", "MovingMean"],
            ["MovingVariance", "MovingVariance"],
        ],
    }
}

/// The numbers of nested arrays, of which one dimension has more than one, or of a single number.
fn flatten(name: &str, value: &Value, values: &mut Vec<f64>) -> Result<()> {
    match value {
        Value::Null => {}
        Value::Array(items) => {
            // [[1], [2]] and [[1, 2]] are a vector each, [[1, 2], [3, 4]] is none.
            let wide = items.iter().filter_map(Value::as_array).any(|inner| inner.len() > 1);
            if items.len() > 1 && wide {
                return Err(Error::mismatch(name, "one value per channel", "more dimensions"));
            }
            items.iter().try_for_each(|item| flatten(name, item, values))?;
        }
        value => match value.as_f64() {
            Some(number) => values.push(number),
            None => return Err(Error::mismatch(name, "numbers", value)),
        },
    }
    Ok(())
}
