//! Ranks on CUDA devices, by NVIDIA's NCCL.
//!
//! `raw` calls the library, `member` is a rank's communicator from its beginning to its end, `watch` looks after what it
//! has queued.
use super::{Collective, Rank, Words};
use crate::engine::pointers::Pointers;
use crate::{Device, Error, Memory, Real, Result};
use cudarc::driver::{CudaStream, CudaView, CudaViewMut};
use member::Member;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

mod member;
#[allow(unsafe_code)]
mod raw;
mod watch;

/// Ranks on CUDA devices, one device each: what they exchange is queued by NVIDIA's NCCL on the stream of the engine, and
/// the host waits for none of it. What hosts tell each other, the [exchange](Rank::exchange) before a step above all,
/// goes by a channel `H` of their own: [`Threads`](crate::Threads) for devices of one process, `Mpi` of `batchnorm-mpi`
/// for processes, or any [`Rank`]. It carries the id that NCCL is set up with, too.
///
/// ```no_run
/// # use batchnorm::{BatchNorm, Config, Gpu, Nccl, Rank, Result, Synced};
/// # use std::time::Duration;
/// fn on_rank(hosts: &impl Rank, device: usize) -> Result<()> {
///     let own = Gpu::new(device)?;
///     let ranks = Nccl::new(own.stream(), hosts, Duration::from_secs(60))?;
///     let mut bn = BatchNorm::<f32, _>::new(&Synced::new(&own, &ranks)?, 64, Config::default())?;
///     // ... forward, backward ...
///     ranks.wait(Duration::from_secs(600))?; // in place of stream.synchronize(): an error, not a hang
///     # let _ = &mut bn;
///     Ok(())
/// }
/// ```
///
/// # Ranks that are lost
/// A rank that does not come to the exchange is the host channel's error. One that is lost after it is seen on the
/// device alone: what is queued waits for it. A thread of every communicator looks after that, and where the stream has
/// come to a collective and the limit has passed, or NCCL tells of an error, it aborts the communicator: the stream goes
/// on, whoever waits for it returns, and every call from then on is [`Error::Collective`]. What the lost collective was to
/// write, and what was computed from it, running statistics too, is undefined then, as after [`Error::Device`]: results
/// are whole where [`wait`](Self::wait) has said so, or a later call has not failed.
///
/// # Graphs
/// A step is captured as on one device, by every rank or by none, after a step outside a graph, which connects the ranks
/// and makes all memory; every rank launches its graph. Capture by thread (`CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`): a
/// capture that forbids to all threads what is unsafe forbids the one that looks after collectives to ask about them. It
/// does not see those of a launch: [`wait`](Self::wait) does. Drop the graphs before the last clone of this: NCCL waits
/// for them.
///
/// # Its end
/// The last clone waits for the collectives of its rank, and for the other ranks' last clones, up to the limit, and
/// aborts after it. During a panic it aborts at once: the other ranks have an error at their limit.
///
/// Which NCCL is taken, is the loader's choice: `libnccl.so.2`, as NVIDIA's packages and the wheels `nvidia-nccl-cu12` and
/// `nvidia-nccl-cu13` install it (the folder `nvidia/nccl/lib` of the latter in `LD_LIBRARY_PATH`), or `libnccl.so`, of
/// version 2.18 or later.
#[derive(Clone)]
pub struct Nccl<H> {
    member: Arc<Member>,
    host: H,
}

/// Words of an exchange that hold a part of an id; the first says how the rank that sends it is.
const CARRIED: usize = 7;

impl<H: Rank> Nccl<H> {
    /// This rank, with the stream of its engine. Every rank makes the call, at the same place in the order of calls of the
    /// channel, and each on another device. A collective may take so long, once the stream has come to it, and so may
    /// ranks until all have made this call.
    ///
    /// # Errors
    /// [`Error::Library`] where there is no NCCL, [`Error::LibraryUnfit`] where it is too old; on the other ranks
    /// [`Error::Collective`], as where NCCL refuses or not all come within the limit.
    pub fn new(stream: &Arc<CudaStream>, host: &H, limit: Duration) -> Result<Self> {
        let (rank, size) = (host.rank(), host.size());
        let own = raw::find().and_then(|()| raw::bind(stream.context()));
        let own = own.and_then(|()| if rank == 0 { raw::unique_id() } else { Ok([0; 128]) });
        let mut id = vec![];
        let mine = own.as_ref().map_or([0; 128], |id| *id);
        // All parts whatever happens: the ranks stay in step.
        for part in words_of(&mine).chunks(CARRIED) {
            let mut words = [0; 8];
            words[0] = u64::from(own.is_ok());
            words[1..=part.len()].copy_from_slice(part);
            let all = host.exchange(words);
            let all = if own.is_ok() { all? } else { all.unwrap_or_default() };
            if let Some(lost) = all.iter().position(|words| words[0] == 0) {
                own?;
                return Err(Error::collective(Some(lost), "it has no NCCL, or none that does"));
            }
            id.extend(all.first().map_or(&[][..], |first| &first[1..]));
        }
        own?;
        let id = id_of(&id);
        let member = Member::new(stream.clone(), (rank, size), id, limit)?;
        Ok(Self { member: Arc::new(member), host: host.clone() })
    }

    /// Waits for the stream, at most so long: everything that was queued there is done then, graphs too, and no collective
    /// was lost.
    ///
    /// # Errors
    /// [`Error::Collective`] where one was lost, or where the stream is at work when that time has passed: the
    /// communicator is aborted then. [`Error::Device`] where the device has failed.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        self.member.wait(limit)
    }
    /// The stream that it was made with.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.member.stream()
    }
    /// The channel between the hosts.
    pub fn host(&self) -> &H {
        &self.host
    }
    /// The most that a collective may take.
    pub fn limit(&self) -> Duration {
        self.member.limit()
    }
    /// The version of the library, 23000 for 2.30.0.
    ///
    /// # Errors
    /// [`Error::Library`], [`Error::LibraryUnfit`].
    pub fn version() -> Result<usize> {
        raw::version()
    }
}

/// An id as words of an exchange.
fn words_of(id: &raw::Id) -> Vec<u64> {
    id.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect()
}
fn id_of(words: &[u64]) -> raw::Id {
    let mut id = [0; 128];
    for (bytes, word) in id.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_ne_bytes();
    }
    id
}

impl<H: Rank> Rank for Nccl<H> {
    fn rank(&self) -> usize {
        self.host.rank()
    }
    fn size(&self) -> usize {
        self.host.size()
    }
    fn exchange(&self, mine: Words) -> Result<Vec<Words>> {
        self.member.check()?;
        self.host.exchange(mine)
    }
    /// A communicator of its own, on the same stream.
    fn split(&self, color: usize) -> Result<Self> {
        self.member.check()?;
        Self::new(self.stream(), &self.host.split(color)?, self.limit())
    }
}

impl<H: Rank> Collective<Device> for Nccl<H> {
    fn all_gather(
        &self,
        on: &Device,
        part: CudaView<'_, f64>,
        all: CudaViewMut<'_, f64>,
    ) -> Result<()> {
        on.check_here("part", &part)?;
        on.check_here("all", &all.as_view())?;
        let (count, got) = (part.len(), all.len());
        let expected = count.saturating_mul(self.size());
        if got != expected {
            return Err(Error::Length { what: "all", expected, got });
        }
        let mut pointers = Pointers::new(on.stream());
        self.member.queue("all_gather", on, count, |communicator| {
            communicator.all_gather((part, all), &mut pointers)
        })
    }
    fn all_reduce<P: Real>(&self, on: &Device, sums: CudaViewMut<'_, P>) -> Result<()> {
        on.check_here("sums", &sums.as_view())?;
        let (count, mut pointers) = (sums.len(), Pointers::new(on.stream()));
        self.member.queue("all_reduce", on, count, |communicator| {
            communicator.all_reduce(sums, &mut pointers)
        })
    }
}

impl<H: fmt::Debug> fmt::Debug for Nccl<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nccl")
            .field("device", &self.member.stream().context().ordinal())
            .field("limit", &self.member.limit())
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_carried_whole() {
        let id: raw::Id = std::array::from_fn(|i| (i * 37 + 1) as u8);
        let words = words_of(&id);
        assert_eq!(words.len(), 16);
        assert_eq!(id_of(&words), id);
    }
}
