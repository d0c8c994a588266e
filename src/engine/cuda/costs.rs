//! What a launch costs beside the memory it moves: counted from machine code, or from a record of a measurement.
use crate::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/costs.rs")); // RECORDS: texts of measured costs, oldest first

/// Changes costs of all engines made afterwards.
const VARIABLE: &str = "BATCHNORM_CUDA_COSTS";

/// What [`Family::Fastest`](crate::Family::Fastest) compares plans by, beside the bytes that each of them moves: times
/// in nanoseconds.
///
/// An engine takes the first of these that there is:
///
/// 1. [`Tuning::costs`](crate::Tuning::costs);
/// 2. the environment variable `BATCHNORM_CUDA_COSTS`: `turn=2500,barrier=4000` changes these two, and a value
///    without `=` is the path of a file of such lines;
/// 3. a measurement of this model of device that ships with the crate; today there is none;
/// 4. what was counted from the kernels' machine code and never measured, for devices with fast and with slow f64,
///    and seven eighths of the bandwidth that the driver states.
///
/// # Files
/// `name = value` lines, `#` before remarks. A line `device = NVIDIA H200` makes the file one of this model, by the driver's name;
/// other devices ignore it. What is not named stays as it was.
///
/// ```
/// # use batchnorm::Costs;
/// let costs = Costs::default().changed("# of a run\nturn = 2600\nbarrier = 4000")?;
/// assert_eq!((costs.turn, costs.barrier, costs.launch), (2600, 4000, Costs::default().launch));
/// # Ok::<(), batchnorm::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Costs {
    /// From the last byte that a block reads of a slice to the first that it writes, where it waits for no other.
    pub turn: u32,
    /// How much longer that takes where the blocks of a group wait for each other.
    pub barrier: u32,
    /// And for every 2048 partial sums of the group, which its last block adds up.
    pub merge: u32,
    /// What a multiprocessor needs for the sums of a tile of the kernels that read a tensor twice, where that does not
    /// hide behind what other blocks read.
    pub tile: u32,
    /// A launch and its gap.
    pub launch: u32,
    /// Of a copy on the device, in megabytes (10^6 bytes) per second, read and written ones added; not 0.
    pub bandwidth: u32,
}

/// What is known of a device without measuring it.
pub(super) struct Model<'a> {
    pub name: &'a str,
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Of its memory, in kHz; 0 where unknown.
    pub memory_clock: u32,
    /// Bits that it moves at a time, twice in a clock.
    pub memory_width: u32,
}

impl Costs {
    /// Of an H200.
    pub(super) const H200: Self =
        Self { turn: 2500, barrier: 3500, merge: 200, tile: 0, launch: 2000, bandwidth: 4_300_000 };
    /// Of a device that computes two f64 numbers in a clock and multiprocessor: sums across threads, which are f64, are
    /// what takes longest then. A turn has about 230 such instructions in each of 2 blocks of 8 warps, a tile 320.
    pub(super) const SLOW_F64: Self = Self { turn: 30_000, tile: 25_000, ..Self::H200 };

    /// Those of a device, as far as the environment does not say otherwise.
    pub(super) fn of(model: &Model<'_>) -> Result<Self> {
        let told = match std::env::var(VARIABLE) {
            Ok(text) if text.contains('=') || text.trim().is_empty() => text,
            Ok(path) => std::fs::read_to_string(path.trim()).map_err(|error| {
                let reason =
                    format!("expected name=value or the path of a file, got {path:?}: {error}");
                Error::Invalid { what: VARIABLE, reason }
            })?,
            Err(_) => String::new(),
        };
        Self::counted(model).told(RECORDS, model.name)?.told(&[&told], model.name)
    }

    /// By rates that the driver states.
    fn counted(model: &Model<'_>) -> Self {
        let slow = matches!(model.capability, (7, 5) | (8, 6 | 7 | 9) | (10, 3) | (11.., _));
        let stated = u64::from(model.memory_clock) * u64::from(model.memory_width) / 4000;
        let bandwidth = match u32::try_from(stated / 8 * 7) {
            // A multiprocessor's share on an H200.
            Ok(0) | Err(_) => 32_600 * model.multiprocessors.clamp(1, 10_000),
            Ok(bandwidth) => bandwidth,
        };
        Self { bandwidth, ..if slow { Self::SLOW_F64 } else { Self::H200 } }
    }

    /// By the texts that are about this model, the last of which counts.
    fn told(self, texts: &[&str], model: &str) -> Result<Self> {
        let about = |text: &&&str| {
            let mut devices = lines(text).filter_map(|line| line.split_once('='));
            devices.all(|(name, of)| name.trim() != "device" || of.trim() == model)
        };
        texts.iter().filter(about).try_fold(self, |costs, text| costs.changed(text))
    }

    /// The same, but for what a text says.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an unknown name, or a value that is no number, or a bandwidth of 0.
    pub fn changed(mut self, text: &str) -> Result<Self> {
        for line in lines(text) {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            let to = match name.trim() {
                "device" => continue,
                "turn" => &mut self.turn,
                "barrier" => &mut self.barrier,
                "merge" => &mut self.merge,
                "tile" => &mut self.tile,
                "launch" => &mut self.launch,
                "bandwidth" => &mut self.bandwidth,
                _ => return Err(invalid(line)),
            };
            *to = value.trim().parse().map_err(|_| invalid(line))?;
        }
        if self.bandwidth == 0 {
            return Err(invalid("bandwidth = 0"));
        }
        Ok(self)
    }

    /// How long a copy takes that moves so many bytes.
    pub(super) fn nanoseconds(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(1000) / u64::from(self.bandwidth.max(1))
    }
    /// Bytes that a copy moves in this time.
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

/// What a text says, without remarks.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(|line| line.split_once('#').map_or(line, |(line, _)| line));
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|line| !line.is_empty())
}

fn invalid(line: &str) -> Error {
    let names = "device, turn, barrier, merge, tile, launch or bandwidth";
    Error::Invalid {
        what: "costs",
        reason: format!("expected {names}, = and a number, got {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Model<'_> = Model {
        name: "NVIDIA H200",
        capability: (9, 0),
        multiprocessors: 132,
        memory_clock: 3_201_000,
        memory_width: 6144,
    };

    #[test]
    fn a_text_changes_what_it_names() {
        let costs = Costs::H200.changed("turn=1, barrier = 70,").unwrap();
        assert_eq!(costs, Costs { turn: 1, barrier: 70, ..Costs::H200 });
        let file = "# measured\ndevice = any\n\nmerge = 3 # ns\ntile=0\nlaunch=4\nbandwidth = 5\n";
        let costs = Costs::H200.changed(file).unwrap();
        assert_eq!(costs, Costs { merge: 3, tile: 0, launch: 4, bandwidth: 5, ..Costs::H200 });
        assert_eq!(Costs::H200.changed("").unwrap(), Costs::H200);
        for wrong in ["turn", "turn=", "turn=-1", "bandwidth=0", "turns=3", "turn=1;barrier=2"] {
            let refused = Costs::H200.changed(wrong).unwrap_err().to_string();
            assert!(refused.starts_with("costs: expected device, turn"), "{refused}");
        }
    }

    #[test]
    fn a_record_is_of_the_model_it_names_and_the_last_one_counts() {
        let records = [
            "device = NVIDIA H200\nturn = 10\nbarrier = 20",
            "device = NVIDIA H200\nturn = 11",
            "device = NVIDIA L4\nturn = 12",
        ];
        let of = |name| Costs::SLOW_F64.told(&records, name).unwrap();
        assert_eq!(of("NVIDIA H200"), Costs { turn: 11, barrier: 20, ..Costs::SLOW_F64 });
        assert_eq!(of("NVIDIA L4"), Costs { turn: 12, ..Costs::SLOW_F64 });
        assert_eq!(of("NVIDIA H200 NVL"), Costs::SLOW_F64);
    }

    #[test]
    fn records_that_ship_can_be_read() {
        for text in RECORDS {
            assert!(lines(text).any(|line| line.starts_with("device")), "{text}");
            Costs::H200.changed(text).unwrap();
        }
    }

    #[test]
    fn what_is_not_measured_is_counted() {
        let bandwidth = 4_302_144; // of 4.9 TB/s that the driver states
        assert_eq!(Costs::counted(&H200), Costs { bandwidth, ..Costs::H200 });
        let unknown = Model { memory_clock: 0, multiprocessors: 100, ..H200 };
        assert_eq!(Costs::counted(&unknown).bandwidth, 3_260_000);
        for capability in [(7, 5), (8, 6), (8, 9), (12, 0)] {
            let slow = Costs::counted(&Model { capability, ..H200 });
            assert_eq!(slow, Costs { bandwidth, ..Costs::SLOW_F64 }, "{capability:?}");
        }
        assert_eq!(Costs::counted(&Model { capability: (10, 0), ..H200 }).tile, 0);
    }

    #[test]
    fn a_larger_group_waits_longer() {
        let waits = [(1, 64), (2, 64), (131, 32), (131, 64), (262, 64)];
        let waits = waits.map(|(blocks, channels)| Costs::H200.wait(blocks, channels));
        assert!(waits.is_sorted_by(|a, b| a < b), "{waits:?}");
    }
}
