//! A decoded instruction: what the decoder makes and the machine executes.
//!
//! Operands are registers only. An immediate, an address of a shared or local variable and a special register are
//! registers too, filled before the first instruction runs ([`Fill`]).

/// A row of the register file: 32 lanes of 64 bits. A narrower value is kept zero-extended; a predicate is 0 or 1.
pub type Reg = u16;

/// An operand type of PTX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Type {
    Pred,
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    F16x2,
    Bf16x2,
    F32,
    F64,
}

/// A state space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Space {
    Generic,
    Global,
    /// Constant memory: of variables that a module declares so. Its addresses are among those of global memory.
    Const,
    Shared,
    Local,
    Param,
}

/// How far an ordered access reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Scope {
    Block,
    Device,
    System,
}

/// The memory order of an access or a fence. `Weak` accesses of two threads to one place must be ordered by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Order {
    Weak,
    Relaxed(Scope),
    Acquire(Scope),
    Release(Scope),
    AcquireRelease(Scope),
    SequentiallyConsistent(Scope),
    Volatile,
}

/// `@p` or `@!p`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The predicate.
    pub reg: Reg,
    /// Whether the instruction runs where it is false.
    pub negated: bool,
}

/// What to do to a place in memory in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum AtomicOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Inc,
    Dec,
    Exchange,
    CompareExchange,
}

/// Which lane a `shfl` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a `vote` gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum VoteMode {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What a barrier gives besides waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum BarrierMode {
    Sync,
    Arrive,
    /// `bar.red.popc`
    Count,
    /// `bar.red.and`
    And,
    /// `bar.red.or`
    Or,
}

/// The address of an access: a base register (none: the offset alone, or an offset into the parameters) and bytes.
///
/// The sum counts modulo 2^64; in shared and local memory modulo 2^32, as their addresses may be 32 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The state space that the instruction names.
    pub space: Space,
    /// The register that holds the base.
    pub base: Option<Reg>,
    /// Bytes added to it.
    pub offset: i64,
}

/// What an instruction does.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Op {
    /// Registers to registers, lane by lane: see [`crate::alu`].
    Alu(crate::alu::Alu),
    /// `ld`: `regs[..count]` from consecutive elements.
    Load { ty: Type, count: u8, regs: [Reg; 4], address: Address, order: Order },
    /// `st`: `regs[..count]` to consecutive elements.
    Store { ty: Type, count: u8, regs: [Reg; 4], address: Address, order: Order },
    /// `atom` (with `result`) and `red` (without). `values`: the operand; for a compare-exchange the expected value, then the new one.
    Atomic {
        op: AtomicOp,
        ty: Type,
        result: Option<Reg>,
        values: [Reg; 2],
        address: Address,
        order: Order,
    },
    /// `fence`, `membar`.
    Fence { order: Order },
    /// `shfl.sync`.
    Shuffle {
        mode: ShuffleMode,
        result: Reg,
        found: Option<Reg>,
        value: Reg,
        lane: Reg,
        clamp: Reg,
        members: Reg,
    },
    /// `vote.sync`.
    Vote { mode: VoteMode, result: Reg, value: Reg, negated: bool, members: Reg },
    /// `activemask`.
    ActiveMask { result: Reg },
    /// `bar.warp.sync`.
    WarpBarrier { members: Reg },
    /// `bar`, `barrier`: of the block. `aligned`: all lanes of a warp must come together.
    Barrier {
        mode: BarrierMode,
        aligned: bool,
        id: Reg,
        threads: Option<Reg>,
        result: Option<Reg>,
        value: Option<(Reg, bool)>,
    },
    /// `bra` to the instruction of that index.
    Branch { target: u32, uniform: bool },
    /// `ret` of a kernel, `exit`.
    Exit,
    /// `trap`.
    Trap,
    /// `%clock`, `%globaltimer` and their parts: the time, shifted down by so many bits and cut to so many.
    Clock { result: Reg, shift: u8, bits: u8 },
    /// `nanosleep`.
    Sleep { time: Reg },
    /// A call of `__assertfail`: the addresses of three texts, and a line of the source.
    Assertion { message: Reg, file: Reg, line: Reg, function: Reg },
    /// A call of `vprintf`: the addresses of a text and of the values that it prints.
    Print { result: Reg, format: Reg, values: Reg },
    /// What has no effect here: `prefetch`, `.pragma`.
    Nop,
}

/// One instruction and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Instr {
    /// What it does.
    pub op: Op,
    /// Where it does so.
    pub guard: Option<Guard>,
    /// The line of the PTX text, from 1.
    pub line: u32,
}

/// A special register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Special {
    /// `%tid`, by axis
    Thread(u8),
    /// `%ntid`
    Threads(u8),
    /// `%ctaid`
    Block(u8),
    /// `%nctaid`
    Blocks(u8),
    Lane,
    Warp,
    Warps,
    LaneMaskEq,
    LaneMaskLt,
    LaneMaskLe,
    LaneMaskGt,
    LaneMaskGe,
    DynamicSharedSize,
    TotalSharedSize,
}

impl Special {
    /// Whether all threads of a block have the same.
    pub(crate) fn is_of_block(self) -> bool {
        match self {
            Self::Threads(_)
            | Self::Block(_)
            | Self::Blocks(_)
            | Self::Warps
            | Self::DynamicSharedSize
            | Self::TotalSharedSize => true,
            Self::Thread(_)
            | Self::Lane
            | Self::Warp
            | Self::LaneMaskEq
            | Self::LaneMaskLt
            | Self::LaneMaskLe
            | Self::LaneMaskGt
            | Self::LaneMaskGe => false,
        }
    }
}

/// What a register holds before the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fill {
    /// The same bits in every lane.
    Constant(u64),
    /// A special register.
    Special(Special),
    /// The address of the variable of that number of the module, and bytes added to it: see [`Kernel::bound`].
    Symbol(u32, i64),
}

/// A parameter of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Its name.
    pub name: String,
    /// Where it lies in the parameter block, bytes.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// A kernel, ready to run.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// Its parameters, in order.
    pub params: Vec<Param>,
    /// Bytes of the parameter block.
    pub param_bytes: usize,
    /// The instructions.
    pub code: Vec<Instr>,
    /// Registers, those of [`Kernel::fills`] among them: as many as are in use at one time, not as the text names.
    pub registers: usize,
    /// What registers hold at the start; all others hold 0.
    pub fills: Vec<(Reg, Fill)>,
    /// Those that may be read before they are written, the ones of [`Kernel::fills`] among them.
    pub kept: Vec<Reg>,
    /// Bytes of statically declared shared memory; the dynamic part begins behind it, 16-byte aligned.
    pub static_shared: usize,
    /// Bytes of local memory of a thread.
    pub local: usize,
    /// `.maxntid`, multiplied out.
    pub max_threads: Option<u32>,
    /// `.minnctapersm`.
    pub min_blocks: Option<u32>,
    /// The source lines, for messages.
    pub source: std::sync::Arc<[String]>,
}

impl Kernel {
    /// The kernel where the variables of its module lie at these addresses, in the order of the text. One whose module
    /// has variables does not run before.
    ///
    /// # Panics
    ///
    /// If there are fewer addresses than variables.
    pub fn bound(&self, addresses: &[u64]) -> Kernel {
        let mut kernel = self.clone();
        for (_, fill) in &mut kernel.fills {
            if let Fill::Symbol(number, offset) = *fill {
                let address = addresses[number as usize].wrapping_add(offset as u64);
                *fill = Fill::Constant(address);
            }
        }
        kernel
    }

    /// Whether it uses variables of its module that have no address yet.
    pub fn is_unbound(&self) -> bool {
        self.fills.iter().any(|(_, fill)| matches!(fill, Fill::Symbol(..)))
    }
}

/// Where shared memory of a block begins among generic addresses.
pub const SHARED_WINDOW: u64 = 0x7e00_0000_0000;
/// Where local memory of a thread begins among generic addresses.
pub const LOCAL_WINDOW: u64 = 0x7f00_0000_0000;
/// Bytes of each of the two windows.
pub const WINDOW: u64 = 1 << 32;
