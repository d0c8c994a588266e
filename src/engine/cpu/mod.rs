//! tmp
#[derive(Debug, Clone, Default)]
/// x
pub struct Cpu;
