//! Where this process trains, by what started it.
use anyhow::{Result, ensure};
use batchnorm::Rank;
use batchnorm_mpi::Mpi;

/// As on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Device {
    Cpu,
    /// A device of this machine for each of its processes, by NCCL.
    Cuda,
}

/// What `variable` says in the environment, if it is a number.
fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Refuses an environment that speaks of other ranks than MPI does, that of torchrun without mpirun above all.
pub fn check(ranks: &Mpi) -> Result<()> {
    for (variable, got) in [("WORLD_SIZE", ranks.size()), ("RANK", ranks.rank())] {
        let expected = number(variable).unwrap_or(got);
        ensure!(
            expected == got,
            "{variable}: expected {expected}, as the environment says, got {got} of MPI: ranks speak by MPI here, so \
             they are started by mpirun, and not by torchrun alone"
        );
    }
    Ok(())
}

/// This process among those of its machine: by Open MPI, MPICH and Intel MPI, Slurm or torchrun; where none says, as if
/// all were of one machine.
#[cfg(feature = "cuda")]
pub fn local_rank(ranks: &Mpi) -> usize {
    let variables =
        ["OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "LOCAL_RANK"];
    variables.iter().find_map(|variable| number(variable)).unwrap_or(ranks.rank())
}
