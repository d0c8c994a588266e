//! The measured thresholds by which a tensor is cut and stored, all in one place. They were tuned over
//! the shapes of `benches/table/table.json`, in f32, on machines like that of the records in
//! `benches/record/cpu-amd-epyc-avx512-2c` (AMD Zen 4, 2 cores; caches of 32 KiB, 1 MiB and 32 MiB, the
//! last shared). `speed --filter` measures any of these shapes again.

/// From this many values behind a channel on, a channel's run is worth a loop of its own; shorter
/// runs of several channels are taken together, with coefficients for each column.
pub const LONG_RUN: usize = 256;
/// The same of at most so many rows, as small ghost batches of planes have: what is done for each column takes more than
/// the sums of so few (14 x 14 in groups of 4 take 1.1 to 1.2 times a step of the whole batch instead of 1.4 to 1.7).
pub const SHORTER_RUN: usize = 128;
pub const OF_ROWS: usize = 8;
/// The same of sums alone, which short runs of so few rows have by runs, too: of 16 and 25 values those by columns are
/// faster.
pub const SUMMED_RUN: usize = 32;
/// Elementwise steps take shorter runs, too, one by one: coefficients for each column are three
/// arrays more to read, and columns are not the order of memory (a third of the time of inference).
pub const RUN: usize = 16;
/// Rows of short runs are joined until a row has this many columns.
pub const LONG_ROW: usize = 512;
/// Columns at most of which sums are kept where rows are joined: a loop over that many, but whole groups, has both sums
/// of each in registers with AVX-512.
pub const SUMMED_COLUMNS: usize = 128;
/// Unless there are no more than these.
pub const FEW_ROWS: usize = super::kernels::sums::STRIP_ROWS;
/// A task that keeps all of a channel works on at most this many bytes, so that its second pass
/// finds in cache what its first has read. Of runs shorter than a page, pieces that lie far apart
/// cost more than that saves: such a task must find room in the cache of one core.
pub const CACHED_BYTES: usize = 4 << 20;
pub const CLOSE_BYTES: usize = 512 << 10;
/// Least bytes of a row in a task of the one kind and of the other. Rows whose starts lie whole pages
/// apart share a part of the cache, the smaller the shorter they are: a second pass over a quarter
/// of a page of each finds little of it, and the backward takes twice as long as by whole rows.
pub const PAGE: usize = 4 << 10;
pub const HALF_PAGE: usize = 2 << 10;
/// Fewer tasks than this are too few to keep the threads of a machine busy, if there is work for
/// them.
pub const ENOUGH_TASKS: usize = 8;
/// Ranges that channels are cut into at most for what lies between two passes, about, and values of a range.
pub const RANGES: usize = 32;
pub const RANGE: usize = 4 << 10;
/// Values between two passes that are worth more threads than one: waking them takes a few microseconds.
pub const MERGED_AT_ONCE: usize = 8 << 10;
/// Least channels of a range of them: a cache line of sums in f64.
pub const LEAST_CHANNELS: usize = 8;
/// Elements that are worth a task of their own.
pub const TASK: usize = 64 << 10;
/// Columns of a row up to which a task takes whole rows, and of its part of a longer row.
pub const WHOLE_ROW: usize = 8 << 10;
pub const PART_ROW: usize = 1 << 10;
/// Rows of a task of a column's sums, if that makes enough tasks: those sums are kept until all are
/// merged.
pub const SUMMED_ROWS: usize = 128;
/// Rows from those that a loop sums to those that it asks for. Few fit between in the cache, and
/// fewer come too late.
pub const AHEAD: usize = 8;
/// From here on, all tensors of an operation together, results are written past the cache.
pub const LARGE_BYTES: usize = 32 << 20;
/// The same where rows are so long that their columns' coefficients need the cache, too, and where
/// tasks work on whole channels: what they are about to overwrite lies far apart, and fetching it
/// first has made forwards take twice as long.
pub const LARGE_APART: usize = 24 << 20;
/// Up to here, cutting is not worth a second pass over memory.
pub const SMALL: usize = 32 << 10;
