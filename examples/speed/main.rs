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
#[cfg(feature = "cudnn")]
use batchnorm::Cudnn;
use batchnorm::{Cpu, Reference};
#[cfg(feature = "cuda")]
use batchnorm::{Cuda, Family, Tuning};
use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use sweep::Sweep;

#[allow(unsafe_code)]
mod aligned; // what an allocator is
mod double;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod measure; // cudarc's switch for its events
mod steps;
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
    /// The shapes of batches that fill a GPU instead.
    #[arg(long, conflicts_with = "quick")]
    large: bool,
    /// Which kernels of the engine on CUDA: it has its name in what it is called, batchnorm-cuda-split.
    #[cfg(feature = "cuda")]
    #[arg(long, value_enum)]
    family: Option<FamilyName>,
    /// Without the events by which cudarc orders streams; PyTorch records none.
    #[cfg(feature = "cuda")]
    #[arg(long)]
    untracked: bool,
    /// Measure what plans of the engine on CUDA count on instead of the table, as JSON lines.
    #[cfg(feature = "cuda")]
    #[arg(long, value_enum)]
    #[arg(conflicts_with_all = ["engine", "filter", "quick", "large", "rounds", "json", "list", "family"])]
    measure: Option<Measure>,
    /// Threads; by default one per processor, or RAYON_NUM_THREADS.
    #[arg(long)]
    threads: Option<usize>,
    /// Turns that engine and floor take for each case.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Write JSON lines instead of a table.
    #[arg(long)]
    json: bool,
    /// How many times a plain training step one by a mask, with renormalization or of ghost batches takes, and
    /// how many times a backward its own gradients, instead of the table; on the CPU.
    #[arg(long, conflicts_with_all = ["engine", "quick", "large", "json", "list"])]
    steps: bool,
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

#[cfg(feature = "cuda")]
#[derive(Clone, Copy, ValueEnum)]
enum FamilyName {
    /// A launch for every pass.
    Split,
    /// One launch for a step.
    Resident,
}

#[cfg(feature = "cuda")]
#[derive(Clone, Copy, ValueEnum)]
enum Measure {
    /// Turns of groups, by their blocks and channels.
    Turns,
    /// A pass that only reads, of the kernels that read a tensor twice.
    Tiles,
    /// Steps half of whose groups begin later, and the same where all begin at once.
    Offsets,
    /// Slices whose rows are 32 to 256 bytes wide.
    Rows,
    /// One launch of the largest group, 1000 times: the same bits each time?
    Repeats,
    /// What a call on small tensors takes of the host and of the device.
    Host,
}

#[cfg(feature = "cuda")]
impl Arguments {
    fn cuda(&self) -> Result<Cuda> {
        let engine = if self.untracked { measure::untracked(0)? } else { Cuda::new(0)? };
        Ok(match self.family {
            None => engine,
            Some(FamilyName::Split) => engine.tuned(Tuning::new(Family::Split)),
            Some(FamilyName::Resident) => {
                engine.tuned(Tuning::new(Family::Resident { blocks: None }))
            }
        })
    }
    fn variant(&self) -> String {
        let family = match self.family {
            None => "",
            Some(FamilyName::Split) => "-split",
            Some(FamilyName::Resident) => "-resident",
        };
        format!("{family}{}", if self.untracked { "-untracked" } else { "" })
    }
}

#[cfg(feature = "cuda")]
fn measure(what: Measure) -> Result<()> {
    let print = |value: serde_json::Value| {
        use std::io::Write;
        Ok(writeln!(std::io::stdout(), "{value}")?)
    };
    const EFFORT: measure::Effort = measure::EFFORT;
    const SMALL: [(&[usize], &str); 3] =
        [(&[256, 1024], "nc"), (&[32, 64, 14, 14], "nhwc"), (&[8, 512, 7, 7], "nchw")];
    const SEVERAL_SLICES: [(&[usize], &str); 3] = [
        (&[256, 512, 28, 28], "nhwc"),
        (&[256, 1024, 14, 14], "nhwc"),
        (&[128, 64, 112, 112], "nchw"),
    ];
    let engine = measure::untracked(0)?;
    match what {
        Measure::Turns => measure::turns(EFFORT, &engine, &[1, 2, 8, 33, 66, 131, 262], print),
        Measure::Rows => measure::rows(EFFORT, &engine, (256, 28), &[64, 256, 512, 1024], print),
        Measure::Tiles => measure::tiles(EFFORT, &engine, &[1 << 19, 1 << 21], 512, print),
        Measure::Offsets => measure::offsets(EFFORT, &engine, &SEVERAL_SLICES, print),
        Measure::Repeats => measure::repeats(&engine, &[256, 64, 56, 56], 1000, print),
        Measure::Host => {
            measure::host(EFFORT, &engine, false, &SMALL, print)?;
            measure::host(EFFORT, &Cuda::new(0)?, true, &SMALL, print)
        }
    }
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
    #[cfg(feature = "cuda")]
    if let Some(what) = arguments.measure {
        return measure(what).map(|()| ExitCode::SUCCESS);
    }
    let words: Vec<&str> = arguments.filter.split_whitespace().collect();
    if arguments.steps {
        return steps::compare(&Cpu::default(), &words, arguments.rounds);
    }
    let mut cases = match arguments.large {
        true => table::large_cases()?,
        false => table::cases(arguments.quick)?,
    };
    cases.retain(|case| {
        let name = case.to_string();
        words.iter().all(|word| name.split(' ').any(|part| part.contains(word)))
    });
    ensure!(!cases.is_empty(), "no case has all of the words {:?}", arguments.filter);
    if arguments.list {
        cases.iter().for_each(|case| println!("{case}"));
        return Ok(ExitCode::SUCCESS);
    }
    #[cfg(feature = "cuda")]
    let variant = arguments.variant();
    #[cfg(not(feature = "cuda"))]
    let variant = String::new();
    let Arguments { rounds, json, .. } = arguments;
    ensure!(rounds > 0, "rounds: expected at least 1, got 0");
    let sweep = Sweep { rounds, json, variant };
    match arguments.engine {
        EngineName::Cpu => sweep.run(&Cpu::default(), &cases),
        EngineName::Reference => sweep.run(&Reference, &cases),
        #[cfg(feature = "cuda")]
        EngineName::Cuda => sweep.run(&arguments.cuda()?, &cases),
        #[cfg(feature = "cudnn")]
        EngineName::Cudnn => sweep.run(&Cudnn::new(0)?, &cases),
    }
}
