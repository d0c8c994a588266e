//! Small kernels, written in PTX, run under many orders of execution.
#![allow(dead_code, missing_docs)]

use ptx_vm::{
    Module,
    fault::{Fault, FaultKind},
    launch::{Launch, run},
    memory::Memory,
    report::Report,
};

/// What every test kernel begins with: `a`, `b` are pointers, `n` is a number.
///
/// %d1 = a, %d2 = b, %r1 = n, %r2 = thread, %r3 = block, %r4 = threads of a block, %r5 = lane, %r6 = blocks,
/// %r7 = thread of the grid, %d3 = a + 4 * thread of the grid, %d4 = a + 4 * thread, %r8 = s + 4 * thread, where `s` is
/// static shared memory of 4096 bytes.
const START: &str = "
    ld.param.u64 %d1, [k_a];
    ld.param.u64 %d2, [k_b];
    ld.param.u32 %r1, [k_n];
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %laneid;
    mov.u32 %r6, %nctaid.x;
    mad.lo.s32 %r7, %r3, %r4, %r2;
    mul.wide.u32 %d3, %r7, 4;
    add.s64 %d3, %d3, %d1;
    mul.wide.u32 %d4, %r2, 4;
    add.s64 %d4, %d4, %d1;
    mov.u32 %r8, s;
    mad.lo.s32 %r8, %r2, 4, %r8;
";

pub fn module(body: &str) -> Module {
    module_with("", body)
}

/// A module that declares something else before the kernel.
pub fn module_with(declarations: &str, body: &str) -> Module {
    let end = if declarations.is_empty() { "" } else { "\n" };
    let text = format!(
        ".version 7.8
.target sm_80
.address_size 64
{declarations}{end}.visible .entry k(.param .u64 k_a, .param .u64 k_b, .param .u32 k_n)
{{
    .reg .pred %p<16>;
    .reg .b16 %h<16>;
    .reg .b32 %r<64>;
    .reg .b64 %d<32>;
    .reg .f32 %f<16>;
    .reg .f64 %e<16>;
    .local .align 16 .b8 l[64];
    .shared .align 16 .b8 s[4096];
{START}
{body}
    ret;
}}
"
    );
    Module::load(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// How a test kernel is launched.
#[derive(Clone)]
pub struct Case {
    pub module: Module,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub n: u32,
    /// What `a` and `b` hold at the start; b has as many bytes again that are not written.
    pub a: Vec<u8>,
    pub b: Vec<u8>,
    pub dynamic: u32,
    pub resident: u32,
    pub budget: u64,
    pub seeds: u64,
}

pub fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// A kernel of `body`, with 1024 numbered words in `a` and as many zeros in `b`.
pub fn case(grid: u32, block: u32, body: &str) -> Case {
    Case {
        module: module(body),
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        n: 0,
        a: words(0..1024),
        b: words([0; 1024]),
        dynamic: 0,
        resident: 64,
        budget: 50_000_000,
        seeds: 12,
    }
}

/// [`case`] of a module that declares something else before the kernel.
pub fn case_with(declarations: &str, grid: u32, block: u32, body: &str) -> Case {
    Case { module: module_with(declarations, body), ..case(grid, block, "") }
}

/// What a run leaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub report: Report,
    pub a: Vec<u32>,
    pub b: Vec<u32>,
}

impl Case {
    pub fn run(&self, seed: u64, resident: u32) -> Result<Done, Fault> {
        self.run_in(&mut Memory::new(1 << 30), seed, resident)
    }

    /// A run that leaves its memory.
    pub fn run_in(&self, memory: &mut Memory, seed: u64, resident: u32) -> Result<Done, Fault> {
        let variables = self.module.variables();
        let places: Vec<u64> =
            variables.iter().map(|variable| memory.alloc(variable.bytes).unwrap()).collect();
        for (variable, place) in variables.iter().zip(&places) {
            memory.fill(*place, 0, 1, variable.bytes).unwrap();
            memory.write(*place, &variable.image(&places)).unwrap();
        }
        let a = memory.alloc(self.a.len() as u64).unwrap();
        let b = memory.alloc(2 * self.b.len() as u64).unwrap();
        memory.write(a, &self.a).unwrap();
        memory.write(b, &self.b).unwrap();
        let mut params = Vec::new();
        params.extend(a.to_le_bytes());
        params.extend(b.to_le_bytes());
        params.extend(self.n.to_le_bytes());
        let kernel = self.module.kernel("k").unwrap().bound(&places);
        let launch = Launch {
            kernel: &kernel,
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.dynamic,
            params: &params,
            cooperative: false,
            resident,
            seed,
            budget: self.budget,
        };
        let report = run(memory, &launch)?;
        let read = |address, len| {
            let mut bytes = vec![0; len];
            memory.read(address, &mut bytes).unwrap();
            bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
        };
        Ok(Done { report, a: read(a, self.a.len()), b: read(b, self.b.len()) })
    }

    /// Runs without a fault, with the same results and counts whatever the order.
    pub fn silent(&self) -> Done {
        let mut first: Option<Done> = None;
        for seed in 0..self.seeds {
            for resident in [self.resident, 1 + self.resident / 7] {
                if resident == self.resident || self.resident == 64 && seed % 3 == 0 {
                    let done = self.run(seed, resident).unwrap_or_else(|fault| panic!("{fault}"));
                    let first = first.get_or_insert_with(|| done.clone());
                    assert!(
                        *first == done,
                        "seed {seed} and {resident} resident make a difference"
                    );
                }
            }
        }
        first.expect("some seed")
    }

    /// Runs without a fault whatever the order; results and counts may differ.
    pub fn no_fault(&self) -> Vec<Done> {
        let run = |seed| self.run(seed, self.resident).unwrap_or_else(|fault| panic!("{fault}"));
        (0..self.seeds).map(run).collect()
    }

    /// Is reported, whatever the order, at a line that contains one of `sources`, parted by `|`.
    pub fn fault(&self, kind: FaultKind, sources: &str) -> Fault {
        let mut last = None;
        for seed in 0..self.seeds {
            let fault = match self.run(seed, self.resident) {
                Err(fault) => fault,
                Ok(_) => panic!("seed {seed}: nothing is reported, but {kind} is expected"),
            };
            assert_eq!(fault.kind, kind, "{fault}");
            assert_eq!(fault.seed, seed);
            let found = sources.split('|').any(|source| fault.source.contains(source));
            assert!(found, "not at {sources:?}: {fault}");
            last = Some(fault);
        }
        last.expect("some seed")
    }
}
