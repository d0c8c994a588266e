//! PyTorch's state dicts: `.pt` files, and layers by their prefixes.
//!
//! safetensors files are read and written by [`StateDict`] itself.
use std::collections::BTreeMap;

use batchnorm::StateDict;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::archive::{self, Archive};
use crate::{Array, Error, LayerState, Result};

mod pickle;
mod write;

use pickle::{Object, Pickle};

const PT: &str = "pt";

/// Reads what `torch.save` wrote of a state dict, or of a dict that has some, such as a checkpoint:
/// its tensors under their names, those of dicts in it behind `NAME.`. What is no tensor is left out,
/// the dict's `_metadata` too.
///
/// Nothing is executed: names of functions and classes other than those of tensors are refused.
///
/// # Errors
/// [`Error::Malformed`] for bytes that are no such file; [`Error::Unsupported`] for one of PyTorch
/// before 1.6, which is no zip archive, for a whole module, for a big-endian one, and where views of
/// the same numbers take more than 64 times the file's length.
pub fn read_pt(bytes: &[u8]) -> Result<StateDict> {
    // Either PyTorch before 1.6, or `_use_new_zipfile_serialization=False`.
    if bytes.starts_with(&[0x80, 2, 0x8a, 10]) {
        let reason = "of PyTorch before 1.6, a pickle and no zip archive: load and save it again";
        return Err(Error::unsupported(PT, reason));
    }
    let mut archive = Archive::new(PT, bytes)?;
    // All entries stand in a folder, which is named after the file.
    let pickled = archive.names().into_iter().find(|name| name.ends_with("data.pkl"));
    let pickled = pickled.ok_or_else(|| Error::malformed(PT, "expected data.pkl in it"))?;
    let folder = pickled.trim_end_matches("data.pkl");
    if archive.read(&format!("{folder}byteorder"))?.is_some_and(|order| order != b"little") {
        return Err(Error::unsupported(PT, "of a big-endian machine"));
    }
    let program = archive.read(&pickled)?.unwrap_or_default();
    let pickle = Pickle::read(&program)?;
    let mut named = BTreeMap::new();
    let mut visits = pickle.objects.len();
    names(&pickle, pickle.root, "", &mut named, &mut visits, 0)?;

    let mut left = bytes.len().saturating_mul(64);
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, place) in named {
        let Object::Tensor { storage, offset, shape, strides } = &pickle.objects[place] else {
            continue;
        };
        let Object::Storage { dtype, key } = pickle.objects[*storage] else { continue };
        let count = shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
        let len = count.and_then(|count| count.checked_mul(dtype.bitsize() / 8));
        left = len.and_then(|len| left.checked_sub(len)).ok_or_else(|| {
            Error::unsupported(PT, "its tensors take more than 64 times its length")
        })?;
        let data = archive
            .read(&format!("{folder}data/{key}"))?
            .ok_or_else(|| Error::malformed(PT, format!("{name}: expected an entry data/{key}")))?;
        let data = gather(&data, dtype.bitsize() / 8, *offset, shape, strides);
        let data = data.ok_or_else(|| {
            Error::malformed(PT, format!("{name}: {shape:?} is not within its storage"))
        })?;
        tensors.push((name, dtype, shape.clone(), data));
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        Ok((name, TensorView::new(*dtype, shape.clone(), data)?))
    });
    let views = views.collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>();
    let bytes = views.and_then(|views| safetensors::serialize(views, None));
    Ok(StateDict::from_bytes(&bytes.map_err(|e| Error::malformed(PT, e))?)?)
}

/// A file that `torch.load` reads: an `OrderedDict` of the tensors, in alphabetical order, without
/// `_metadata`. Of a dict without it PyTorch takes counters to be optional.
///
/// # Errors
/// [`Error::Unsupported`] for a tensor of a type that PyTorch's storages do not have.
pub fn write_pt(dict: &StateDict) -> Result<Vec<u8>> {
    let bytes = dict.to_bytes()?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| Error::malformed(PT, e))?;
    let tensors: Vec<_> = dict
        .names()
        .map(|name| Ok((name, tensors.tensor(name).map_err(|e| Error::malformed(PT, e))?)))
        .collect::<Result<_>>()?;
    let pickle = write::pickle(&tensors)?;
    let mut entries = vec![
        ("archive/data.pkl".to_string(), pickle.as_slice()),
        ("archive/byteorder".to_string(), b"little"),
    ];
    for (index, (_, tensor)) in tensors.iter().enumerate() {
        entries.push((format!("archive/data/{index}"), tensor.data()));
    }
    entries.push(("archive/version".to_string(), b"3\n"));
    // At multiples of 64 PyTorch can map them.
    archive::write(PT, entries.iter().map(|(name, bytes)| (name.as_str(), *bytes)), 64)
}

/// The names of the layers that have running statistics, without their last dot, in alphabetical
/// order. Those without cannot be told from other layers that have a weight and a bias.
pub fn layers(dict: &StateDict) -> Vec<String> {
    let prefix = |name: &str| match name.strip_suffix("running_mean")? {
        "" => Some(String::new()),
        prefix => Some(prefix.strip_suffix('.')?.to_string()),
    };
    dict.names().filter_map(prefix).collect()
}

/// What a state dict has of one layer, by its name with or without the `module.` that
/// `DataParallel` and `DistributedDataParallel` put before it. It says neither eps nor momentum.
///
/// # Errors
/// [`Error::NoLayer`] where nothing has the name; those of [`LayerState::from_state_dict`].
pub fn layer(dict: &StateDict, name: &str) -> Result<LayerState> {
    LayerState::from_state_dict(dict, &prefix(dict, name)?)
}

/// Puts a layer's numbers in place of those that the state dict has of it, by [`layer`]'s names, in
/// the types that it has them in. A counter that the dict does not have is added.
///
/// # Errors
/// [`Error::NoLayer`]; [`Error::Mismatch`] where one has an array that the other lacks, or of another
/// length, or a number that the type does not hold.
pub fn set_layer(dict: &mut StateDict, name: &str, state: &LayerState) -> Result<()> {
    let prefix = prefix(dict, name)?;
    state.check_fits(name, &LayerState::from_state_dict(dict, &prefix)?)?;
    let mut changed = StateDict::new();
    for (suffix, values) in state.arrays() {
        let full = format!("{prefix}{suffix}");
        let dtype = dict.dtype(&full).unwrap_or(state.dtype);
        let array = Array::vector(state.dtype, values.to_vec());
        array.like(&full, (dtype, &[values.len()]))?.insert_into(&mut changed, &full)?;
    }
    if let Some(count) = state.num_batches_tracked {
        changed.insert_count(format!("{prefix}num_batches_tracked"), count)?;
    }
    dict.extend(changed);
    Ok(())
}

/// What stands before the names of a layer's tensors.
fn prefix(dict: &StateDict, name: &str) -> Result<String> {
    let dotted = if name.is_empty() { String::new() } else { format!("{name}.") };
    let candidates = [
        dotted.clone(),
        format!("module.{dotted}"),
        dotted.strip_prefix("module.").unwrap_or(&dotted).to_string(),
    ];
    let there = |prefix: &&String| {
        let suffixes = ["weight", "bias", "running_mean"];
        suffixes.iter().any(|suffix| dict.dtype(&format!("{prefix}{suffix}")).is_some())
    };
    match candidates.iter().find(there) {
        Some(prefix) => Ok(prefix.clone()),
        None => Err(Error::no_layer(name, layers(dict))),
    }
}

/// The tensors of a dict and of those in it.
fn names(
    pickle: &Pickle,
    place: usize,
    prefix: &str,
    named: &mut BTreeMap<String, usize>,
    visits: &mut usize,
    depth: usize,
) -> Result<()> {
    let Object::Dict(items) = &pickle.objects[place] else {
        let reason = "expected a dict of tensors: save the state_dict()";
        return Err(Error::unsupported(PT, reason));
    };
    for &(key, value) in items {
        // A tree has no more places than objects; a dict within itself or in many others has.
        *visits = visits
            .checked_sub(1)
            .ok_or_else(|| Error::unsupported(PT, "a dict that stands in others more than once"))?;
        let Object::Str(key) = pickle.objects[key] else { continue };
        match pickle.objects[value] {
            // Of two with one name the later counts, as in Python.
            Object::Tensor { .. } => drop(named.insert(format!("{prefix}{key}"), value)),
            Object::Dict(_) if depth < 32 => {
                names(pickle, value, &format!("{prefix}{key}."), named, visits, depth + 1)?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The elements of a strided tensor, row-major; none where one is outside of `data`.
fn gather(
    data: &[u8],
    size: usize,
    offset: usize,
    shape: &[usize],
    strides: &[usize],
) -> Option<Vec<u8>> {
    if shape.len() != strides.len() {
        return None;
    }
    let count: usize = shape.iter().product();
    let mut bytes = Vec::with_capacity(count * size);
    if count == 0 {
        return Some(bytes);
    }
    let dims = || shape.iter().zip(strides);
    // The last element: where it is inside, all are.
    let last = dims()
        .try_fold(offset, |at, (&dim, &stride)| at.checked_add((dim - 1).checked_mul(stride)?))?;
    if last.checked_add(1)?.checked_mul(size)? > data.len() {
        return None;
    }
    let mut index = vec![0; shape.len()];
    for _ in 0..count {
        let at = offset + index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<usize>();
        bytes.extend(&data[at * size..][..size]);
        for (i, &dim) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < dim {
                break;
            }
            *i = 0;
        }
    }
    Some(bytes)
}
