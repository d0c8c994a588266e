//! Modules and functions, and what a launch is checked against.

use std::{collections::BTreeMap, sync::Arc};

use ptx_vm::instr::Kernel;

use crate::{
    code::Code,
    device::Device,
    driver::{Driver, Id, Locked},
    occupancy::blocks_per_multiprocessor,
    profile::{MAX_BLOCK, MAX_GRID, MAX_THREADS, Profile, REGISTERS},
    report::FailurePoint,
    work::KernelLaunch,
};

#[derive(Debug)]
pub struct Module {
    pub context: Id,
    pub code: ptx_vm::Module,
    /// Where its variables lie, in their order.
    pub variables: Vec<u64>,
    /// Of the language: 78 for `.version 7.8`.
    version: u32,
    functions: BTreeMap<String, Id>,
}

#[derive(Clone, Debug)]
pub struct Function {
    pub context: Id,
    module: Id,
    pub kernel: Arc<Kernel>,
    /// Bytes of dynamic shared memory that a launch may ask for.
    pub max_dynamic_shared: u32,
    carveout: i32,
}

/// What a caller asks for beside the function and its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    pub cooperative: bool,
}

/// The beginnings of an ELF file and of a fat binary.
const BINARIES: [&[u8]; 2] = [b"\x7fELF", &[0x50, 0xed, 0x55, 0xba]];

/// Bytes of the texts whose modules are remembered, at most.
const TEXTS: usize = 64 << 20;

impl Locked {
    /// Loads PTX.
    pub fn load_module(&mut self, context: Id, image: &[u8]) -> Result<Id, Code> {
        const CALL: &str = "cuModuleLoadData";
        if let Some(code) = self.device_of(context)?.log.failure(FailurePoint::Module) {
            return Err(self.injected(context, code));
        }
        let device = self.device_of(context)?;
        if BINARIES.iter().any(|magic| image.starts_with(magic)) {
            device.refuse(CALL, "a binary for a real device; only PTX is understood here".into());
            return Err(Code::NoBinaryForGpu);
        }
        let text = std::str::from_utf8(image).map_err(|_| Code::InvalidImage)?;
        let code = self.read_module(text);
        let device = self.device_of(context)?;
        let code = code.map_err(|error| {
            device.refuse(CALL, error.to_string());
            Code::InvalidPtx
        })?;
        if let Err(reason) = check_module(&code, device.profile) {
            device.refuse(CALL, reason);
            return Err(Code::InvalidPtx);
        }
        let variables = self.place_variables(context, code.variables())?;
        let (id, version) = (self.fresh(), version(text));
        let module = Module { context, code, variables, version, functions: BTreeMap::new() };
        self.modules.insert(id, module);
        Ok(id)
    }

    /// Reads a text, or remembers what it said: tests load the same few modules again and again, each into a context of its
    /// own. Others go on meanwhile.
    fn read_module(&mut self, text: &str) -> Result<ptx_vm::Module, ptx_vm::LoadError> {
        if let Some(code) = self.texts.get(text) {
            return Ok(code.clone());
        }
        let code = self.unlocked(|| ptx_vm::Module::load(text))?;
        let held: usize = self.texts.keys().map(|text| text.len()).sum();
        if held + text.len() > TEXTS {
            self.texts.clear();
        }
        self.texts.insert(text.into(), code.clone());
        Ok(code)
    }

    pub fn unload_module(&mut self, module: Id) -> Result<(), Code> {
        if !self.modules.get(&module).ok_or(Code::InvalidHandle)?.variables.is_empty() {
            self.remove_variables(module)?;
        }
        self.modules.remove(&module).ok_or(Code::InvalidHandle)?;
        self.functions.retain(|_, function| function.module != module);
        Ok(())
    }
}

/// The version of PTX that a text says it is written in; 0 if it does not say so plainly.
fn version(text: &str) -> u32 {
    let mut words = text.split_whitespace().skip_while(|word| *word != ".version");
    let number = words.nth(1).and_then(|number| number.split_once('.'));
    number
        .and_then(|(major, minor)| {
            Some(major.parse::<u32>().ok()? * 10 + minor.parse::<u32>().ok()?)
        })
        .unwrap_or(0)
}

/// Whether a device of that profile can run a module.
fn check_module(module: &ptx_vm::Module, profile: &Profile) -> Result<(), String> {
    let (target, (major, minor)) = (module.target(), profile.capability);
    if target > major * 10 + minor {
        return Err(format!("the target is sm_{target}, the device sm_{major}{minor}"));
    }
    crate::variables::check(module.variables())?;
    match module.kernels().iter().find(|k| k.static_shared > profile.shared_per_block() as usize) {
        Some(kernel) => Err(format!(
            "kernel {} has {} bytes of static shared memory, a block {}",
            kernel.name,
            kernel.static_shared,
            profile.shared_per_block()
        )),
        None => Ok(()),
    }
}

impl Driver {
    /// The function of that name: the same handle each time.
    pub fn load_function(&mut self, module: Id, name: &str) -> Result<Id, Code> {
        let this = self.modules.get(&module).ok_or(Code::InvalidHandle)?;
        if let Some(function) = this.functions.get(name) {
            return Ok(*function);
        }
        let mut kernel = Arc::clone(this.code.kernel(name).ok_or(Code::NotFound)?);
        if kernel.is_unbound() {
            kernel = Arc::new(kernel.bound(&this.variables));
        }
        let context = this.context;
        let shared = self.device_of(context)?.profile.shared_per_block();
        let max_dynamic_shared = shared.saturating_sub(kernel.static_shared as u32);
        let id = self.fresh();
        let function = Function { context, module, kernel, max_dynamic_shared, carveout: -1 };
        self.functions.insert(id, function);
        let this = self.modules.get_mut(&module).expect("found above");
        this.functions.insert(name.to_owned(), id);
        Ok(id)
    }

    /// A function and the device that it is for.
    pub fn function(&self, function: Id) -> Result<(&Function, &Device), Code> {
        let function = self.functions.get(&function).ok_or(Code::InvalidHandle)?;
        let context = self.contexts.get(&function.context).ok_or(Code::ContextIsDestroyed)?;
        Ok((function, &self.devices[context.device]))
    }

    /// `CU_FUNC_ATTRIBUTE_...` of that number.
    pub fn function_attribute(&self, function: Id, attribute: u32) -> Result<i32, Code> {
        let (function, device) = self.function(function)?;
        let kernel = &function.kernel;
        let (major, minor) = device.profile.capability;
        let value = match attribute {
            0 => kernel.max_threads.unwrap_or(MAX_THREADS),
            1 => kernel.static_shared as u32,
            2 | 7 => 0,
            3 => kernel.local as u32,
            4 => REGISTERS,
            5 => self.modules[&function.module].version,
            6 => major * 10 + minor,
            8 => function.max_dynamic_shared,
            9 => return Ok(function.carveout),
            // Those of clusters: none is set.
            10..=15 => 0,
            _ => return Err(Code::InvalidValue),
        };
        i32::try_from(value).map_err(|_| Code::InvalidValue)
    }

    pub fn set_function_attribute(
        &mut self,
        function: Id,
        attribute: u32,
        value: i32,
    ) -> Result<(), Code> {
        let (this, device) = self.function(function)?;
        let fixed = this.kernel.static_shared as u32;
        let optin = device.profile.shared_per_block_optin.saturating_sub(fixed);
        let this = self.functions.get_mut(&function).expect("found above");
        match (attribute, u32::try_from(value)) {
            (8, Ok(bytes)) if bytes <= optin => this.max_dynamic_shared = bytes,
            (9, _) if (-1..=100).contains(&value) => this.carveout = value,
            (8 | 9, _) => return Err(Code::InvalidValue),
            (10..=15, _) => return Err(Code::NotSupported),
            _ => return Err(Code::InvalidValue),
        }
        Ok(())
    }

    /// Checks a launch, and fixes all that it will be carried out with.
    pub fn prepare_launch(
        &mut self,
        function: Id,
        shape: Shape,
        params: Vec<u8>,
    ) -> Result<KernelLaunch, Code> {
        let (this, device) = self.function(function)?;
        let (context, kernel) = (this.context, Arc::clone(&this.kernel));
        let threads = shape.block.iter().product::<u32>();
        let fixed = kernel.static_shared as u32;
        let shared = fixed.next_multiple_of(16) + shape.dynamic_shared;
        let each = blocks_per_multiprocessor(&device.available(), threads, shared);
        let capacity = each * device.profile.multiprocessors;
        let (optin, allowed) = (device.profile.shared_per_block_optin, this.max_dynamic_shared);
        let refusal = if shape.grid.iter().zip(MAX_GRID).any(|(n, max)| *n == 0 || *n > max) {
            Some((Code::InvalidValue, format!("a grid of {:?} blocks", shape.grid)))
        } else if shape.block.iter().zip(MAX_BLOCK).any(|(n, max)| *n == 0 || *n > max)
            || threads > kernel.max_threads.unwrap_or(MAX_THREADS).min(MAX_THREADS)
        {
            let most = kernel.max_threads.unwrap_or(MAX_THREADS);
            Some((
                Code::InvalidValue,
                format!("a block of {:?} threads; the kernel allows {most}", shape.block),
            ))
        } else if shape.dynamic_shared > allowed || shared > optin {
            let asked = shape.dynamic_shared;
            Some((
                Code::InvalidValue,
                format!(
                    "{asked} bytes of dynamic shared memory beside {fixed} static ones; the function's attribute \
                     allows {allowed}, the device {optin} in all"
                ),
            ))
        } else if shape.cooperative
            && shape.grid.iter().map(|n| u64::from(*n)).product::<u64>() > u64::from(capacity)
        {
            Some((
                Code::CooperativeLaunchTooLarge,
                format!("a cooperative grid of {:?} blocks; {capacity} run at a time", shape.grid),
            ))
        } else {
            None
        };
        if let Some((code, reason)) = refusal {
            let reason = format!("kernel {}: {reason}", kernel.name);
            self.device_of(context)?.refuse("cuLaunchKernel", reason);
            return Err(code);
        }
        Ok(KernelLaunch {
            kernel,
            grid: shape.grid,
            block: shape.block,
            dynamic_shared: shape.dynamic_shared,
            params,
            cooperative: shape.cooperative,
            capacity,
        })
    }
}
