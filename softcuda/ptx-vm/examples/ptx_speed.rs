//! How many thread instructions per second the machine executes with all its checks, on nvcc-made kernels.
//!
//! `cargo run -p ptx-vm --example ptx_speed`

use std::time::{Duration, Instant};

use ptx_vm::{Module, launch::Launch, launch::run, memory::Memory, report::Report};

const IMAGES: usize = 16;
const CHANNELS: usize = 64;
const PLANE: usize = 1024;
const ELEMENTS: usize = IMAGES * CHANNELS * PLANE;
const REPEATS: usize = 3;

/// An allocation with these bytes in it.
fn filled(memory: &mut Memory, bytes: &[u8]) -> u64 {
    let address = memory.alloc(bytes.len() as u64).expect("it fits");
    memory.write(address, bytes).expect("it was just allocated");
    address
}

/// A forward kernel over a tensor of elements of `size` bytes.
fn forward(module: &Module, name: &str, element: impl Fn(f32) -> Vec<u8>) -> (Report, Duration) {
    let mut memory = Memory::new(1 << 30);
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7 & 1023) as f32 / 256.0 - 1.0;
    let x: Vec<u8> = (0..ELEMENTS).flat_map(|i| element(value(i))).collect();
    let x = filled(&mut memory, &x);
    let y = memory.alloc(ELEMENTS as u64 * element(0.0).len() as u64).expect("it fits");
    let mut params = [x.to_le_bytes(), y.to_le_bytes()].concat();
    for _ in ["weight", "bias", "running mean", "running variance", "mean", "invstd"] {
        let ones = 1f32.to_le_bytes().repeat(CHANNELS);
        params.extend(filled(&mut memory, &ones).to_le_bytes());
    }
    params.extend([1e-5f32.to_le_bytes(), 0.1f32.to_le_bytes()].concat());
    params.extend([IMAGES, CHANNELS, PLANE].iter().flat_map(|n| (*n as u32).to_le_bytes()));
    let kernel = module.kernel(name).expect("the text has it");
    params.resize(kernel.param_bytes, 0);
    let launch = Launch {
        kernel,
        grid: [CHANNELS as u32, 1, 1],
        block: [256, 1, 1],
        dynamic_shared: 0,
        params: &params,
        cooperative: false,
        resident: 16,
        seed: 1,
        budget: u64::MAX,
    };
    let start = Instant::now();
    let report = run(&mut memory, &launch).unwrap_or_else(|fault| panic!("{fault}"));
    (report, start.elapsed())
}

fn main() {
    let module = Module::load(&softcuda_kernels::ptx("batchnorm", 80)).expect("nvcc made it");
    let bf16 = |x: f32| x.to_le_bytes()[2..].to_vec();
    for name in ["forward_f32", "forward_bf16"] {
        let run = |_| match name {
            "forward_f32" => forward(&module, name, |x| x.to_le_bytes().to_vec()),
            _ => forward(&module, name, bf16),
        };
        let (report, time) = (0..REPEATS).map(run).min_by_key(|(_, time)| *time).expect("repeats");
        let (instructions, seconds) = (report.thread_instructions as f64, time.as_secs_f64());
        println!(
            "{name:14} {:4.0} M thread instructions/s, {:.1} per element, {seconds:.3} s",
            instructions / seconds / 1e6,
            instructions / ELEMENTS as f64
        );
        println!("{report:?}");
    }
}
