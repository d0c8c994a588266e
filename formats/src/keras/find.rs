//! Where the layers are in each of Keras' layouts.
use std::collections::BTreeMap;

use super::config::{Settings, settings};
use super::hdf5::Hdf5;
use super::roles::Role;
use super::{Found, KERAS, Variables};
use crate::{Array, Error, Result};

/// Models are in models, and no deeper than this.
const DEPTH: usize = 64;

/// In a file that is HDF5: a legacy one is told by its names of layers.
pub(super) fn in_hdf5(hdf5: &Hdf5) -> Result<Vec<Found>> {
    let root = hdf5.members("")?;
    let texts = hdf5.texts("")?;
    let config = texts.get("model_config").and_then(|text| text.first());
    let settings = match config.map(|text| serde_json::from_str(text)) {
        None => Vec::new(),
        Some(Ok(config)) => settings(&config),
        Some(Err(e)) => return Err(Error::malformed(KERAS, format!("model_config: {e}"))),
    };
    let within = if root.groups.iter().any(|name| name == "model_weights") {
        "model_weights/"
    } else if list(&texts, "layer_names").is_some() {
        ""
    } else {
        return in_groups(hdf5, &[]);
    };
    let texts = hdf5.texts(within.trim_end_matches('/'))?;
    let layers = list(&texts, "layer_names").ok_or_else(|| {
        Error::malformed(KERAS, format!("{within}: expected an attribute layer_names"))
    })?;
    let there = hdf5.members(within.trim_end_matches('/'))?.groups;
    let mut found = Vec::new();
    for layer in layers.iter().filter(|layer| there.contains(layer)) {
        let names = list(&hdf5.texts(&format!("{within}{layer}"))?, "weight_names");
        let names = names.unwrap_or_default();
        found.extend(named(&names).into_iter().map(|(parent, mut variables)| {
            let name = full_name(layer, &parent);
            for (_, path) in &mut variables {
                path.insert_str(0, &format!("{within}{layer}/"));
            }
            Found {
                settings: settings_of(&settings, &name).cloned(),
                name,
                path: format!("{within}{layer}/{parent}"),
                sure: true,
                variables: Variables::Named(variables),
            }
        }));
    }
    Ok(found)
}

/// In a `.weights.h5`, by itself or in a `.keras`: `PATH/vars/0` and so on. `settings` is empty where
/// there is no configuration.
pub(super) fn in_groups(hdf5: &Hdf5, settings: &[Settings]) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    // A group takes some bytes, so that there are no more than these; where links lead in circles
    // there are more paths than groups.
    let mut left = hdf5.bytes().len() / 32;
    let mut paths = vec![String::new()];
    while let Some(path) = paths.pop() {
        left = left
            .checked_sub(1)
            .ok_or_else(|| Error::unsupported(KERAS, "its groups are linked in circles"))?;
        let members = hdf5.members(&path)?;
        let under =
            |name: &str| if path.is_empty() { name.into() } else { format!("{path}/{name}") };
        let groups = members.groups.iter().filter(|name| *name != "vars");
        if path.split('/').count() > DEPTH {
            return Err(Error::unsupported(KERAS, format!("groups more than {DEPTH} deep")));
        }
        paths.extend(groups.rev().map(|name| under(name)));
        if path.is_empty() || !members.groups.iter().any(|name| name == "vars") {
            continue;
        }
        let vars = under("vars");
        let count = hdf5.members(&vars)?.datasets.len();
        if count < 2 {
            continue;
        }
        let said = hdf5.texts(&vars)?.remove("name").and_then(|mut name| name.pop());
        let by_group = settings.iter().find(|s| s.group == path);
        let by_name = said.as_ref().and_then(|name| settings_of(settings, name));
        let settings = by_group.or(by_name).cloned();
        found.push(Found {
            name: match (&settings, said) {
                (Some(settings), _) => settings.name.clone(),
                (None, Some(said)) => said,
                (None, None) => path.clone(),
            },
            sure: settings.is_some() || is_batch_normalization(&path),
            settings,
            path,
            variables: Variables::Numbered((0..count).map(|i| format!("{vars}/{i}")).collect()),
        });
    }
    // In the model's order, as far as that is known.
    let place = |found: &Found| settings.iter().position(|s| found.settings.as_ref() == Some(s));
    found.sort_by_cached_key(|found| (place(found).unwrap_or(usize::MAX), counted(&found.path)));
    Ok(found)
}

/// A path by whose order `bn_2` is before `bn_10`.
fn counted(path: &str) -> Vec<(String, u64)> {
    let count = |part: &str| {
        let (stem, count) = part.rsplit_once('_')?;
        Some((stem.to_string(), count.parse().ok()?))
    };
    path.split('/').map(|part| count(part).unwrap_or((part.to_string(), 0))).collect()
}

/// Among the arrays of an `.npz`: by names, or in the order of `arr_0`, `arr_1` and so on.
pub(super) fn in_npz(arrays: &[(String, Array)]) -> Vec<Found> {
    let names: Vec<_> = arrays.iter().map(|(name, _)| name.clone()).collect();
    let by_name = named(&names).into_iter().map(|(parent, variables)| Found {
        name: parent.rsplit('/').next().unwrap_or_default().to_string(),
        path: parent,
        sure: true,
        settings: None,
        variables: Variables::Named(variables),
    });
    let mut found: Vec<_> = by_name.collect();
    let numbered: Vec<_> = (0..names.len()).map(|i| format!("arr_{i}")).collect();
    if found.is_empty() && numbered.iter().all(|name| names.contains(name)) {
        found.push(Found {
            name: String::new(),
            path: String::new(),
            sure: true,
            settings: None,
            variables: Variables::Numbered(numbered),
        });
    }
    found
}

/// Variables by the layer that their names say, in the order of the names; of those that have a mean
/// and a variance.
fn named(names: &[String]) -> Vec<(String, Vec<(Role, String)>)> {
    let mut layers: Vec<(String, Vec<(Role, String)>)> = Vec::new();
    let mut places = BTreeMap::new();
    for name in names {
        let Some((parent, role)) = split(name) else { continue };
        let place = *places.entry(parent).or_insert(layers.len());
        if place == layers.len() {
            layers.push((parent.to_string(), Vec::new()));
        }
        layers[place].1.push((role, name.clone()));
    }
    layers.retain(|(_, variables)| {
        let has = |role| variables.iter().any(|(there, _)| *there == role);
        has(Role::Mean) && (has(Role::Variance) || has(Role::RunningStd))
    });
    layers
}

/// `net/bn/gamma:0` as `net/bn` and gamma; Keras 1's `bn_gamma` as `bn` and gamma.
fn split(name: &str) -> Option<(&str, Role)> {
    let (parent, last) = name.rsplit_once('/').unwrap_or(("", name));
    if let Some(role) = Role::of(last) {
        return Some((parent, role));
    }
    ["_gamma", "_beta", "_running_mean", "_running_std"].into_iter().find_map(|suffix| {
        let parent = name.strip_suffix(suffix)?;
        Some((parent, Role::of(&suffix[1..])?))
    })
}

/// What the model calls a layer whose variables stand in a legacy file's group under these parents:
/// the group is named after the layer, or after the model within the model that has it.
fn full_name(group: &str, parent: &str) -> String {
    // Keras 3 begins with the names of the models around it, Keras 2 with the layer's own.
    let parts: Vec<_> = parent.split('/').collect();
    match parts.iter().position(|part| *part == group) {
        Some(at) => parts[at..].join("/"),
        None => format!("{group}/{parent}"),
    }
}

/// By the whole name, or by the last part of it where one alone has that.
fn settings_of<'a>(settings: &'a [Settings], name: &str) -> Option<&'a Settings> {
    let last = |name: &'a str| name.rsplit('/').next();
    let exact = settings.iter().find(|s| s.name == name);
    let mut alike = settings.iter().filter(|s| last(&s.name) == name.rsplit('/').next());
    exact.or_else(|| match (alike.next(), alike.next()) {
        (one, None) => one,
        _ => None,
    })
}

/// Whether a group is named by the class: `layers/batch_normalization_1`.
fn is_batch_normalization(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let rest = name.strip_prefix("batch_normalization");
    rest.is_some_and(|rest| {
        let number = rest.strip_prefix('_').unwrap_or(rest);
        number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// A list of text; one that is long stands in several attributes, `NAME0`, `NAME1` and so on.
fn list(texts: &BTreeMap<String, Vec<String>>, name: &str) -> Option<Vec<String>> {
    if let Some(list) = texts.get(name) {
        return Some(list.clone());
    }
    let parts = (0..).map_while(|i| texts.get(&format!("{name}{i}")));
    let all: Vec<_> = parts.flatten().cloned().collect();
    if all.is_empty() { None } else { Some(all) }
}
