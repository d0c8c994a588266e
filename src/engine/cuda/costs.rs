//! What a launch costs beside the memory it moves.
use crate::{Error, Result};

/// Names the costs of the device that engines count on, `turn=2500,barrier=4000` for instance.
const VARIABLE: &str = "BATCHNORM_CUDA_COSTS";

/// What [`Family::Fastest`](crate::Family::Fastest) compares its plans by, beside the bytes that each
/// of them moves: times of an H200, counted from the kernels' machine code and never measured.
///
/// [`Tuning::costs`](crate::Tuning::costs) replaces them for one engine, and the environment variable
/// `BATCHNORM_CUDA_COSTS` for all that are made afterwards: `turn=2500,barrier=4000` changes these two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Costs {
    /// Nanoseconds from the last byte that a block reads of a slice to the first that it writes, where
    /// it waits for no other.
    pub turn: u32,
    /// Nanoseconds that this takes longer where the blocks of a group wait for each other.
    pub barrier: u32,
    /// And for every 2048 partial sums that the group has, which its last block adds up.
    pub merge: u32,
    /// Nanoseconds of a launch and its gap.
    pub launch: u32,
    /// Bytes that a multiprocessor's share of the memory moves in a microsecond.
    pub bandwidth: u32,
}

impl Costs {
    /// Of an H200.
    pub(super) const H200: Self =
        Self { turn: 2500, barrier: 3500, merge: 200, launch: 1500, bandwidth: 32 << 10 };
    /// Of a device that computes f64 at a 32nd of the rate of f32 or less: sums across threads, which
    /// are f64, are what a turn then takes longest for.
    pub(super) const SLOW_F64: Self = Self { turn: 15_000, ..Self::H200 };

    /// Those of a device of this compute capability, as far as the environment does not say otherwise.
    pub(super) fn of(capability: (u32, u32)) -> Result<Self> {
        let slow = matches!(capability, (7, 5) | (8, 6 | 7 | 9) | (10, 3) | (11.., _));
        let costs = if slow { Self::SLOW_F64 } else { Self::H200 };
        match std::env::var(VARIABLE) {
            Ok(text) => costs.changed(&text),
            Err(_) => Ok(costs),
        }
    }

    fn changed(mut self, text: &str) -> Result<Self> {
        for change in text.split(',').map(str::trim).filter(|change| !change.is_empty()) {
            let (name, value) = change.split_once('=').unwrap_or((change, ""));
            let to = match name.trim() {
                "turn" => &mut self.turn,
                "barrier" => &mut self.barrier,
                "merge" => &mut self.merge,
                "launch" => &mut self.launch,
                "bandwidth" => &mut self.bandwidth,
                _ => return Err(invalid(change)),
            };
            *to = value.trim().parse().ok().filter(|&n| n > 0).ok_or_else(|| invalid(change))?;
        }
        Ok(self)
    }

    /// Bytes that a multiprocessor moves in this time.
    pub(super) fn bytes(&self, nanoseconds: u64) -> f64 {
        nanoseconds as f64 * f64::from(self.bandwidth) / 1000.0
    }
    /// Nanoseconds of a turn of a group that has so many blocks and channels.
    pub(super) fn wait(&self, blocks: u32, channels: u32) -> u64 {
        let turn = u64::from(self.turn);
        if blocks == 1 {
            return turn;
        }
        let merges = (u64::from(blocks) * u64::from(channels)).div_ceil(2048);
        turn + u64::from(self.barrier) + merges * u64::from(self.merge)
    }
}

impl Default for Costs {
    /// Those of an H200.
    fn default() -> Self {
        Self::H200
    }
}

fn invalid(change: &str) -> Error {
    let names = "turn, barrier, merge, launch or bandwidth";
    let reason = format!("expected {names}, = and a number above 0, got {change:?}");
    Error::Invalid { what: VARIABLE, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_changes_what_it_names() {
        let costs = Costs::H200.changed("turn=1, barrier = 70,").unwrap();
        assert_eq!(costs, Costs { turn: 1, barrier: 70, ..Costs::H200 });
        assert_eq!(Costs::H200.changed("").unwrap(), Costs::H200);
        for wrong in ["turn", "turn=", "turn=-1", "turn=0", "turns=3", "turn=1;barrier=2"] {
            let refused = Costs::H200.changed(wrong).unwrap_err().to_string();
            assert!(refused.starts_with("BATCHNORM_CUDA_COSTS: "), "{refused}");
        }
    }

    #[test]
    fn a_larger_group_waits_longer() {
        let waits = [(1, 64), (2, 64), (131, 32), (131, 64), (262, 64)];
        let waits = waits.map(|(blocks, channels)| Costs::H200.wait(blocks, channels));
        assert!(waits.is_sorted_by(|a, b| a < b), "{waits:?}");
    }
}
