//! A PTX text, made ready to run.

use crate::decode;
use crate::instr::Kernel;
use std::fmt;
use std::sync::Arc;

/// Why a PTX text cannot be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The line, from 1.
    pub line: u32,
    /// The statement as it stands there.
    pub form: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "PTX line {}: {}: `{}`", self.line, self.message, self.form)
    }
}

impl std::error::Error for LoadError {}

/// The kernels of a PTX text.
#[derive(Clone, Debug)]
pub struct Module {
    target: u32,
    kernels: Vec<Arc<Kernel>>,
}

impl Module {
    /// Reads a PTX text. Whatever the machine does not know is an error, used or not.
    pub fn load(text: &str) -> Result<Module, LoadError> {
        let (target, kernels) = decode::module(text)?;
        Ok(Module { target, kernels: kernels.into_iter().map(Arc::new).collect() })
    }

    /// The compute capability that the text was made for: 75 for `.target sm_75`.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Arc<Kernel>> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// All kernels, in the order of the text.
    pub fn kernels(&self) -> &[Arc<Kernel>] {
        &self.kernels
    }
}
