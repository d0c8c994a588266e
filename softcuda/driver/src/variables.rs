//! Variables of modules: each is an allocation of its own, so that an access past its end is found.

use ptx_vm::Variable;

use crate::{
    code::Code,
    device::{Allocation, State},
    driver::{Id, Locked},
};

/// The origin of their allocations.
pub const VARIABLE: &str = "a variable of a module";

/// Bytes of constant memory that a module has at most.
const CONSTANT: u64 = 64 << 10;
/// What every allocation's address is a multiple of.
const ALIGNMENT: u64 = 256;

/// Whether a device can hold them.
pub fn check(variables: &[Variable]) -> Result<(), String> {
    let constant = variables.iter().filter(|variable| variable.is_constant);
    let bytes: u64 = constant.map(|variable| variable.bytes).sum();
    if bytes > CONSTANT {
        return Err(format!("{bytes} bytes of constant memory; there are {CONSTANT}"));
    }
    match variables.iter().find(|variable| variable.align > ALIGNMENT) {
        Some(Variable { name, align, .. }) => {
            Err(format!("variable {name} is aligned to {align} bytes; {ALIGNMENT} are possible"))
        }
        None => Ok(()),
    }
}

impl Locked {
    /// Allocates the variables of a module and gives them their initial values.
    pub fn place_variables(
        &mut self,
        context: Id,
        variables: &[Variable],
    ) -> Result<Vec<u64>, Code> {
        if variables.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = |variable: &Variable| variable.bytes.next_multiple_of(ALIGNMENT);
        if !self.device_of(context)?.fits(variables.iter().map(bytes).sum()) {
            return Err(Code::OutOfMemory);
        }
        let ordinal = self.device_of(context)?.ordinal;
        self.wait_for_memory(ordinal);
        let device = self.device_of(context)?;
        let mut addresses = Vec::new();
        for variable in variables {
            let address = device.reserve(Allocation {
                bytes: variable.bytes,
                context,
                state: State::Live,
                pool: None,
                graph: false,
                origin: VARIABLE,
            })?;
            addresses.push(address);
        }
        for (variable, address) in variables.iter().zip(&addresses) {
            let (image, memory) = (variable.image(&addresses), device.memory());
            let placed = memory
                .alloc_at(*address, variable.bytes)
                .and_then(|()| memory.fill(*address, 0, 1, variable.bytes))
                .and_then(|()| memory.write(*address, &image));
            placed.map_err(|_| Code::OutOfMemory)?;
        }
        Ok(addresses)
    }

    /// Frees the variables of a module, when what is queued is done.
    pub fn remove_variables(&mut self, module: Id) -> Result<(), Code> {
        let context = self.modules[&module].context;
        self.synchronize(context)?;
        let ordinal = self.device_of(context)?.ordinal;
        self.wait_for_memory(ordinal);
        let addresses = self.modules.get(&module).ok_or(Code::InvalidHandle)?.variables.clone();
        let device = &mut self.devices[ordinal];
        for address in addresses {
            device.allocations.remove(&address);
            device.memory().free(address).map_err(|_| Code::InvalidValue)?;
        }
        Ok(())
    }

    /// Where the variable of that name lies, and its bytes.
    pub fn variable(&self, module: Id, name: &str) -> Result<(u64, u64), Code> {
        let module = self.modules.get(&module).ok_or(Code::InvalidHandle)?;
        let mut named = module.code.variables().iter().zip(&module.variables);
        let found = named.find(|(variable, _)| variable.name == name);
        found.map(|(variable, address)| (*address, variable.bytes)).ok_or(Code::NotFound)
    }
}
