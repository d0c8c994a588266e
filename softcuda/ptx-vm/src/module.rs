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
    variables: Arc<[Variable]>,
}

/// A variable of global or constant memory that a module declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Whether it is one of `.const` memory, which kernels do not write.
    pub is_constant: bool,
    /// What its address is a multiple of.
    pub align: u64,
    /// How many bytes it has.
    pub bytes: u64,
    /// The first of them when the module is loaded, where they are no addresses; the rest is 0.
    pub initial: Vec<u8>,
    /// Addresses among them.
    pub addresses: Vec<AddressOf>,
}

/// The address of a variable that another one holds when the module is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressOf {
    /// The byte at which it stands.
    pub at: usize,
    /// How many bytes of it: 8, or 1.
    pub bytes: usize,
    /// The number of the other variable.
    pub of: usize,
    /// Bytes added to its address.
    pub offset: i64,
    /// Bits that the sum is shifted down by before it is cut to `bytes`.
    pub shift: u32,
}

impl Variable {
    /// Its first bytes when the module is loaded, where the variables of the module lie at these addresses; the rest
    /// is 0.
    ///
    /// # Panics
    ///
    /// If there are fewer addresses than variables.
    pub fn image(&self, addresses: &[u64]) -> Vec<u8> {
        let mut image = self.initial.clone();
        for AddressOf { at, bytes, of, offset, shift } in &self.addresses {
            let address = addresses[*of].wrapping_add(*offset as u64) >> shift;
            if let Some(into) = image.get_mut(*at..at + bytes) {
                into.copy_from_slice(&address.to_le_bytes()[..*bytes]);
            }
        }
        image
    }
}

impl Module {
    /// Reads a PTX text. Whatever the machine does not know is an error, used or not.
    pub fn load(text: &str) -> Result<Module, LoadError> {
        let decode::Decoded { target, kernels, variables } = decode::module(text)?;
        let kernels = kernels.into_iter().map(Arc::new).collect();
        Ok(Module { target, kernels, variables: variables.into() })
    }

    /// The compute capability that the text was made for: 75 for `.target sm_75`.
    pub fn target(&self) -> u32 {
        self.target
    }

    /// The variables of global and constant memory, in the order of the text.
    pub fn variables(&self) -> &[Variable] {
        &self.variables
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
