//! Golden cases: computed by PyTorch in float64, read from the files in `tests/golden`, run on any
//! engine, judged by `super::tolerance`. `tests/golden/README.md` describes the format.
//!
//! A file that names no kind is a [`Case`] of one step; the others are [`Document`]s, each kind with a runner
//! of its own in [`kinds`].
use anyhow::Context;
use batchnorm::{Cpu, DType, Reference};
use std::collections::BTreeMap;
use std::path::Path;

mod bars;
mod case;
mod document;
mod judge;
pub mod kinds;
mod run;

pub use case::{Case, files};
pub use document::{Document, Stored};
pub use judge::{Verdict, judge, judge_served};
pub use kinds::Outcome;
pub use run::{Ran, compute, compute_served, serialize};

/// Tensors by name. All values are held in f64, which holds those of every dtype exactly.
pub type Tensors = BTreeMap<&'static str, Vec<f64>>;

/// A golden file.
#[derive(Debug, Clone)]
pub enum Golden {
    /// Of no kind: one step.
    Step(Case),
    /// Of a kind that it names.
    Layer(Document),
}

impl Golden {
    /// Reads a file.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let document = Document::parse(&name, &bytes);
        match document.with_context(|| path.display().to_string())? {
            Some(document) => Ok(Self::Layer(document)),
            None => Ok(Self::Step(Case::read(path)?)),
        }
    }
}

/// An engine of this machine, and how it runs over golden files.
pub struct Subject {
    pub name: &'static str,
    /// Over a case of one step.
    pub step: fn(&Case) -> anyhow::Result<Ran>,
    /// Over a document of a kind.
    pub layer: fn(&Document) -> anyhow::Result<Outcome>,
}

/// Every engine on this machine: one entry each.
pub const ENGINES: &[Subject] = &[
    Subject {
        name: "reference",
        step: |case| compute(&Reference, case).map(Ran::all),
        layer: |document| kinds::run(&Reference, document),
    },
    Subject {
        name: "cpu",
        step: |case| compute(&Cpu::default(), case).map(Ran::all),
        layer: |document| kinds::run(&Cpu::default(), document),
    },
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    Subject {
        name: "cuda",
        step: |case| compute(&super::cuda::engine(), case).map(Ran::all),
        layer: |document| kinds::run(&super::cuda::engine(), document),
    },
    #[cfg(all(feature = "cudnn", target_os = "linux"))]
    Subject {
        name: "cudnn",
        step: |case| match super::cudnn::find() {
            Err(error) if is_missing(&error) => {
                Ok(Ran { tensors: Tensors::new(), refused: vec![error.to_string()] })
            }
            engine => compute_served(&engine?, case),
        },
        layer: |document| match super::cudnn::find() {
            Err(error) if is_missing(&error) => {
                Ok(Outcome { refused: vec![error.to_string()], ..Outcome::default() })
            }
            engine => kinds::run(&engine?, document),
        },
    },
    #[cfg(all(feature = "cudnn", target_os = "linux"))]
    Subject {
        name: "gpu",
        step: |case| compute(&super::cudnn::gpu(), case).map(Ran::all),
        layer: |document| kinds::run(&super::cudnn::gpu(), document),
    },
];

/// Whether there is no cuDNN: a host without it refuses everything.
#[cfg(all(feature = "cudnn", target_os = "linux"))]
fn is_missing(error: &batchnorm::Error) -> bool {
    use batchnorm::Error::{Library, LibraryUnfit};
    matches!(error, Library { .. } | LibraryUnfit { .. })
}

/// What a tensor holds, which decides its shape, its type and its tolerance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The case's shape; the case's dtype.
    Elements,
    /// Length C; the dtype that goes with the case's: f64 for f64, f32 for the others.
    Parameters,
    /// Length C, sums over a channel; the type of the parameters.
    Sums,
    /// Length C; the type of the parameters.
    Statistics,
}

/// One tensor of the format.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub name: &'static str,
    pub content: Content,
    /// The optional input with which it comes and goes.
    pub with: Option<&'static str>,
}

const fn entry(name: &'static str, content: Content, with: Option<&'static str>) -> Entry {
    Entry { name, content, with }
}

/// What a step starts from. Elements and parameters lie in their own types, statistics in f64.
pub const INPUTS: &[Entry] = &[
    entry("x", Content::Elements, None),
    entry("grad_y", Content::Elements, None),
    entry("residual", Content::Elements, Some("residual")),
    entry("weight", Content::Parameters, Some("weight")),
    entry("bias", Content::Parameters, Some("bias")),
    entry("running_mean", Content::Statistics, None),
    entry("running_var", Content::Statistics, None),
];

/// What an engine computes. The golden values lie in f64.
pub const COMPUTED: &[Entry] = &[
    entry("batch_mean", Content::Statistics, None),
    entry("batch_var", Content::Statistics, None),
    entry("y", Content::Elements, None),
    entry("grad_x", Content::Elements, None),
    entry("grad_residual", Content::Elements, Some("residual")),
    entry("grad_weight", Content::Sums, Some("weight")),
    entry("grad_bias", Content::Sums, Some("bias")),
    entry("new_running_mean", Content::Statistics, None),
    entry("new_running_var", Content::Statistics, None),
    entry("y_eval", Content::Elements, None),
    entry("grad_x_eval", Content::Elements, None),
    entry("grad_residual_eval", Content::Elements, Some("residual")),
    entry("grad_weight_eval", Content::Sums, Some("weight")),
    entry("grad_bias_eval", Content::Sums, Some("bias")),
];

/// The type of parameters and statistics that goes with a dtype.
pub fn parameters_of(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// From f64 to an element: exact for what a file held in that type, else to nearest.
pub(crate) fn narrow<E: batchnorm::Element>(v: f64) -> E {
    E::narrow(batchnorm::Real::from_f64(v))
}

/// The value in f64, exactly.
pub(crate) fn widen<E: batchnorm::Element>(v: E) -> f64 {
    batchnorm::Real::to_f64(v.widen())
}
