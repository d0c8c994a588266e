//! Keras' files, of versions 1, 2 and 3: `.weights.h5`, `.keras`, legacy `.h5`, `.npz`.
use crate::archive::Archive;
use crate::{Array, Error, LayerState, Result, npy};

mod config;
mod find;
mod hdf5;
mod hints;
mod roles;
mod write;

pub use hints::{Affine, Hints, RunningStd};
pub use write::{Legacy, write_legacy_h5, write_weights_h5};

use config::Settings;
use hdf5::Hdf5;
use roles::Role;

const KERAS: &str = "keras";
const WEIGHTS: &str = "model.weights.h5";

/// A file of Keras', in memory: which layers it has, and their numbers, to be read and replaced.
///
/// It may be a `.keras` archive, a `.weights.h5` of Keras 3, a legacy `.h5` of Keras 1, 2 or 3, of a
/// model or its weights alone, or the arrays of layers in `.npz`. What is replaced is overwritten in
/// place: the model's configuration, other layers and the optimizer's state stay.
///
/// ```no_run
/// # use batchnorm::{Config, Reference};
/// # use batchnorm_formats::{LayerState, keras};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut file = keras::File::read(&std::fs::read("model.keras")?)?;
/// for name in file.layers() {
///     let state = file.layer(&name, &keras::Hints::default())?;
///     let mut bn = state.layer::<f32, _>(&Reference, Config::default())?;
///     // ... train it ...
///     file.set_layer(&name, &LayerState::of(&bn)?, &keras::Hints::default())?;
/// }
/// std::fs::write("model.keras", file.to_bytes()?)?;
/// # Ok(())
/// # }
/// ```
pub struct File {
    store: Store,
    found: Vec<Found>,
}

/// Where the numbers are.
enum Store {
    Hdf5(Hdf5),
    /// A `.keras` archive, and the HDF5 file in it.
    Model(Vec<u8>, Hdf5),
    Npz(Vec<(String, Array)>),
}

/// A layer of a file.
struct Found {
    /// What the model calls it, where the file says that.
    name: String,
    /// Where it is in the file.
    path: String,
    /// Whether it is a batch normalization for sure.
    sure: bool,
    settings: Option<Settings>,
    variables: Variables,
}

/// The paths of a layer's variables.
enum Variables {
    Named(Vec<(Role, String)>),
    /// In the order of `get_weights()`.
    Numbered(Vec<String>),
}

impl File {
    /// Looks into a file. Its numbers are read when they are asked for.
    ///
    /// # Errors
    /// [`Error::Malformed`] for bytes that are no such file; [`Error::Unsupported`] for one without
    /// weights.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        if bytes.starts_with(b"\x89HDF\r\n\x1a\n") {
            let hdf5 = Hdf5::open(bytes.to_vec())?;
            let found = find::in_hdf5(&hdf5)?;
            return Ok(Self { store: Store::Hdf5(hdf5), found });
        }
        if !bytes.starts_with(b"PK") {
            return Err(Error::malformed(KERAS, "expected an HDF5 file or a zip archive"));
        }
        let mut archive = Archive::new(KERAS, bytes)?;
        if archive.names().iter().any(|name| name.ends_with(".npy")) {
            let arrays = npy::read_npz(bytes)?;
            let found = find::in_npz(&arrays);
            return Ok(Self { store: Store::Npz(arrays), found });
        }
        let mut entry = |name: &str| {
            let reason = format!("expected {name} in the archive");
            archive.read(name)?.ok_or_else(|| Error::unsupported(KERAS, reason))
        };
        let config = serde_json::from_slice(&entry("config.json")?)
            .map_err(|e| Error::malformed(KERAS, format!("config.json: {e}")))?;
        let hdf5 = Hdf5::open(entry(WEIGHTS)?)?;
        let found = find::in_groups(&hdf5, &config::settings(&config))?;
        Ok(Self { store: Store::Model(bytes.to_vec(), hdf5), found })
    }

    /// The names of the batch normalizations, as [`layer`](Self::layer) takes them: those of the
    /// model, where the file has them and each is there once, else the paths in the file.
    ///
    /// In a `.weights.h5` they are told by the class, which names their groups: layers of a class of
    /// one's own, and those that are attributes of a model, are not listed, and can be read by their
    /// path and [`Hints::affine`].
    pub fn layers(&self) -> Vec<String> {
        let sure = || self.found.iter().filter(|found| found.sure);
        let once = |name: &str| sure().filter(|found| found.name == name).count() == 1;
        sure().map(|f| if once(&f.name) { f.name.clone() } else { f.path.clone() }).collect()
    }

    /// What the file says of one layer, by its name or its path.
    ///
    /// # Errors
    /// [`Error::NoLayer`]; [`Error::Ambiguous`] where a hint is missing; [`Error::Mismatch`] where one
    /// contradicts the file, and where the variables do not fit each other.
    pub fn layer(&self, name: &str, hints: &Hints) -> Result<LayerState> {
        let found = self.find(name)?;
        let variables = found.roles(hints)?;
        let variables = variables.into_iter().map(|(role, path)| Ok((role, self.array(path)?)));
        let variables = variables.collect::<Result<_>>()?;
        roles::assemble(name, variables, found.settings.as_ref(), hints)
    }

    /// Puts a layer's numbers in place of those that the file has of it, in the types that it has
    /// them in.
    ///
    /// # Errors
    /// Those of [`layer`](Self::layer); [`Error::Mismatch`] where one has an array that the other
    /// lacks, or of another length, a number that the type does not hold, or another eps or momentum
    /// than the file's configuration; [`Error::Unsupported`] for data that is stored in chunks.
    /// Everything but this last is checked before the first write.
    pub fn set_layer(&mut self, name: &str, state: &LayerState, hints: &Hints) -> Result<()> {
        let there = self.layer(name, hints)?;
        state.check_fits(name, &there)?;
        state.check_says(name, &there)?;
        if state.renorm.is_some() != there.renorm.is_some() {
            let shown = |is| if is { "renorm statistics" } else { "none" };
            let (expected, got) = (shown(there.renorm.is_some()), shown(state.renorm.is_some()));
            return Err(Error::mismatch(name, expected, got));
        }
        let variables = self.find(name)?.roles(hints)?;
        let arrays = variables.into_iter().map(|(role, path)| {
            let there = self.array(path)?;
            let part = roles::part(name, role, state, hints)?;
            Ok((path.to_string(), part.like(path, (there.dtype, &there.shape))?))
        });
        for (path, array) in arrays.collect::<Result<Vec<_>>>()? {
            match &mut self.store {
                Store::Hdf5(hdf5) | Store::Model(_, hdf5) => hdf5.write(&path, &array)?,
                Store::Npz(arrays) => {
                    if let Some((_, there)) = arrays.iter_mut().find(|(name, _)| *name == path) {
                        *there = array;
                    }
                }
            }
        }
        Ok(())
    }

    /// The file, with what was replaced in it.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the archive's other entries cannot be copied.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        match &self.store {
            Store::Hdf5(hdf5) => Ok(hdf5.bytes().to_vec()),
            Store::Model(archive, hdf5) => {
                Archive::new(KERAS, archive)?.with(WEIGHTS, hdf5.bytes())
            }
            Store::Npz(arrays) => npy::write_npz(arrays),
        }
    }

    fn find(&self, name: &str) -> Result<&Found> {
        let mut named = self.found.iter().filter(|found| found.name == name);
        let at_path = || self.found.iter().find(|found| found.path == name);
        match (named.next(), named.next()) {
            (Some(found), None) => Ok(found),
            _ => at_path().ok_or_else(|| Error::no_layer(name, self.layers())),
        }
    }

    fn array(&self, path: &str) -> Result<Array> {
        match &self.store {
            Store::Hdf5(hdf5) | Store::Model(_, hdf5) => hdf5.read(path),
            Store::Npz(arrays) => match arrays.iter().find(|(name, _)| name == path) {
                Some((_, array)) => Ok(array.clone()),
                None => Err(Error::no_layer(path, arrays.iter().map(|(name, _)| name))),
            },
        }
    }
}

impl Found {
    /// What each variable is.
    fn roles(&self, hints: &Hints) -> Result<Vec<(Role, &str)>> {
        let paths = match &self.variables {
            Variables::Named(named) => {
                return Ok(named.iter().map(|(role, path)| (*role, path.as_str())).collect());
            }
            Variables::Numbered(paths) => paths,
        };
        if !self.sure && hints.affine.is_none() {
            let reason = "whether it is a batch normalization is not in the file: Hints::affine has \
                          to say which variables it has";
            return Err(Error::Ambiguous { name: self.path.clone(), reason: reason.into() });
        }
        let settings = self.settings.as_ref();
        let roles = Role::of_numbered(&self.path, paths.len(), settings, hints)?;
        Ok(roles.into_iter().zip(paths.iter().map(String::as_str)).collect())
    }
}

/// A layer of the arrays that its `get_weights()` gave, in that order.
///
/// # Errors
/// [`Error::Ambiguous`] for three or six arrays without [`Hints::affine`]; [`Error::Mismatch`] for
/// another number than it asks for, and for arrays that are not one value per channel.
pub fn from_weights(weights: Vec<Array>, hints: &Hints) -> Result<LayerState> {
    let roles = Role::of_numbered("get_weights()", weights.len(), None, hints)?;
    roles::assemble("get_weights()", roles.into_iter().zip(weights).collect(), None, hints)
}

/// A layer's arrays for its `set_weights`, in that order: gamma and beta where it has them, the moving
/// mean and variance, and the three of `renorm`.
///
/// # Errors
/// [`Error::Mismatch`] where the arrays are not of one length, or statistics are missing.
pub fn to_weights(state: &LayerState) -> Result<Vec<Array>> {
    state.channels()?;
    let affine = Affine { scale: state.weight.is_some(), center: state.bias.is_some() };
    let roles = Role::in_order(affine, state.renorm.is_some()).into_iter();
    roles.map(|role| roles::part("set_weights()", role, state, &Hints::default())).collect()
}
