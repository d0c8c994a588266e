//! Times every operation over the shapes of ResNet-50 and some others, beside what the memory
//! alone would take:
//!
//! ```text
//! cargo run --release -p examples --bin speed
//! cargo run --release -p examples --bin speed -- --filter "bwd nhwc f32" --threads 1 --json
//! ```
//!
//! Every case is compared with the f64 reference before it is timed. `benches/table/table.json`
//! lists the cases, `benches/record/README.md` says what a record of them must say.
use anyhow::{Result, ensure};
#[cfg(feature = "cuda")]
use batchnorm::Cuda;
#[cfg(feature = "cudnn")]
use batchnorm::Cudnn;
use batchnorm::{Cpu, Reference};
use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use sweep::Sweep;

mod sweep;
#[path = "../../benches/table/mod.rs"]
mod table;
mod worker;

/// Times batch normalization over a table of shapes; fails if a result is wrong.
#[derive(Parser)]
struct Arguments {
    /// Which engine.
    #[arg(long, value_enum, default_value_t = EngineName::Cpu)]
    engine: EngineName,
    /// Only cases whose name, as in `bwd_relu 32x64x112x112 nhwc f32`, has all of these words.
    #[arg(long, default_value = "")]
    filter: String,
    /// Only some shapes, in f32.
    #[arg(long)]
    quick: bool,
    /// Threads; by default one per processor, or RAYON_NUM_THREADS.
    #[arg(long)]
    threads: Option<usize>,
    /// Turns that engine and floor take for each case.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Write JSON lines instead of a table.
    #[arg(long)]
    json: bool,
    /// Print the names of the cases and time nothing.
    #[arg(long)]
    list: bool,
    /// Answer requests on the standard input, one JSON object per line, until it ends.
    #[arg(long, value_name = "ENGINE")]
    #[arg(conflicts_with_all = ["engine", "filter", "quick", "rounds", "json", "list"])]
    worker: Option<EngineName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineName {
    Cpu,
    Reference,
    /// On CUDA device 0, which must be a real one: times of the tests' software device say nothing.
    #[cfg(feature = "cuda")]
    Cuda,
    /// NVIDIA's library, there too; it refuses many cases.
    #[cfg(feature = "cudnn")]
    Cudnn,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let threads = arguments.threads.unwrap_or(0); // 0: as many as there are
    // This thread is one of them: else it would work beside them, one more than was asked for.
    rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global()?;
    if let Some(engine) = arguments.worker {
        return match engine {
            EngineName::Cpu => worker::serve(&Cpu::default()),
            EngineName::Reference => worker::serve(&Reference),
            #[cfg(feature = "cuda")]
            EngineName::Cuda => worker::serve(&Cuda::new(0)?),
            #[cfg(feature = "cudnn")]
            EngineName::Cudnn => worker::serve(&Cudnn::new(0)?),
        };
    }
    let words: Vec<&str> = arguments.filter.split_whitespace().collect();
    let mut cases = table::cases(arguments.quick)?;
    cases.retain(|case| {
        let name = case.to_string();
        words.iter().all(|word| name.split(' ').any(|part| part.contains(word)))
    });
    ensure!(!cases.is_empty(), "no case has all of the words {:?}", arguments.filter);
    if arguments.list {
        cases.iter().for_each(|case| println!("{case}"));
        return Ok(ExitCode::SUCCESS);
    }
    let Arguments { rounds, json, .. } = arguments;
    ensure!(rounds > 0, "rounds: expected at least 1, got 0");
    let sweep = Sweep { rounds, json };
    match arguments.engine {
        EngineName::Cpu => sweep.run(&Cpu::default(), &cases),
        EngineName::Reference => sweep.run(&Reference, &cases),
        #[cfg(feature = "cuda")]
        EngineName::Cuda => sweep.run(&Cuda::new(0)?, &cases),
        #[cfg(feature = "cudnn")]
        EngineName::Cudnn => sweep.run(&Cudnn::new(0)?, &cases),
    }
}
