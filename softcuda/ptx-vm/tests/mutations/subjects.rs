//! Kernels that nvcc made, and all they are launched with.

use ptx_vm::{
    Module,
    launch::{Launch, run},
    memory::Memory,
};

pub enum Arg {
    /// A buffer that holds these bytes.
    In(Vec<u8>),
    /// A buffer of so many bytes, to be written.
    Out(usize),
    /// A buffer that holds these bytes and is written.
    InOut(Vec<u8>),
    /// A number of 4 bytes.
    Number(u32),
}

pub struct Subject {
    file: &'static str,
    pub kernel: &'static str,
    grid: [u32; 3],
    dynamic: u32,
    resident: u32,
    pub args: Vec<Arg>,
}

fn floats(count: usize) -> Vec<u8> {
    let value = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7 & 1023) as f32 / 256.0 - 1.0;
    (0..count).flat_map(|i| value(i).to_le_bytes()).collect()
}

/// f16 or bf16: any finite numbers.
fn halves(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (0x3c00 + (i * 37 % 997) as u16).to_le_bytes()).collect()
}

fn float(value: f32) -> Arg {
    Arg::Number(value.to_bits())
}

fn numbers<const N: usize>(values: [u32; N]) -> impl Iterator<Item = Arg> {
    values.into_iter().map(Arg::Number)
}

fn forward(kernel: &'static str, fill: fn(usize) -> Vec<u8>, size: usize) -> Subject {
    let (images, channels, plane) = (2usize, 3, 2309);
    let all = images * channels * plane;
    let mut args = vec![Arg::In(fill(all)), Arg::Out(all * size)];
    args.extend([Arg::In(floats(channels)), Arg::In(floats(channels))]);
    args.extend([Arg::InOut(floats(channels)), Arg::InOut(floats(channels))]);
    args.extend([Arg::Out(4 * channels), Arg::Out(4 * channels), float(1e-5), float(0.1)]);
    args.extend(numbers([images, channels, plane].map(|n| n as u32)));
    let grid = [channels as u32, 1, 1];
    Subject { file: "batchnorm", kernel, grid, dynamic: 0, resident: 3, args }
}

fn backward(kernel: &'static str, fill: fn(usize) -> Vec<u8>, size: usize) -> Subject {
    let (images, channels, plane) = (2usize, 3, 2309);
    let all = images * channels * plane;
    let mut args = vec![Arg::In(fill(all)), Arg::In(fill(all)), Arg::Out(all * size)];
    args.extend((0..3).map(|_| Arg::In(floats(channels))));
    args.extend([Arg::Out(4 * channels), Arg::Out(4 * channels)]);
    args.extend(numbers([images, channels, plane].map(|n| n as u32)));
    let grid = [channels as u32, 1, 1];
    Subject { file: "batchnorm", kernel, grid, dynamic: 0, resident: 3, args }
}

fn split(
    kernel: &'static str,
    fill: fn(usize) -> Vec<u8>,
    shape: [usize; 3],
    splits: usize,
) -> Subject {
    let [images, channels, plane] = shape;
    let mut args = vec![Arg::In(fill(images * channels * plane))];
    args.extend([Arg::Out(8 * channels * splits), Arg::InOut(vec![0; 4 * channels])]);
    args.extend([Arg::Out(4 * channels), Arg::Out(4 * channels)]);
    args.extend(numbers([images, channels, plane].map(|n| n as u32)));
    let grid = [splits as u32, channels as u32, 1];
    Subject { file: "split_stats", kernel, grid, dynamic: 0, resident: 5, args }
}

fn cooperative(kernel: &'static str, fill: fn(usize) -> Vec<u8>, size: usize) -> Subject {
    let (rows, channels, blocks) = (1003usize, 32usize, 7usize);
    let lane_rows = 256 / (channels / (16 / size));
    // So few that some rows of each block are read again.
    let tile_rows = lane_rows;
    let all = rows * channels;
    let mut args = vec![Arg::In(fill(all)), Arg::Out(all * size)];
    args.extend([Arg::In(floats(channels)), Arg::In(floats(channels))]);
    args.extend([Arg::Out(4 * channels), Arg::Out(4 * channels)]);
    args.extend([Arg::Out(8 * blocks * channels), Arg::InOut(vec![0; 4])]);
    args.extend(numbers([rows, channels, tile_rows].map(|n| n as u32)));
    args.push(float(1e-5));
    let scratch = 4 * (16 / size * 256 + 2 * channels);
    let dynamic = (tile_rows * channels * size + scratch) as u32;
    Subject {
        file: "cooperative",
        kernel,
        grid: [blocks as u32, 1, 1],
        dynamic,
        resident: blocks as u32,
        args,
    }
}

pub fn subjects() -> Vec<Subject> {
    vec![
        forward("forward_f32", floats, 4),
        forward("forward_bf16", halves, 2),
        backward("backward_f32", floats, 4),
        backward("backward_f16", halves, 2),
        split("split_stats_f32", floats, [2, 3, 4500], 4),
        split("split_stats_f32", floats, [1, 1, 133_117], 130),
        split("split_stats_bf16", halves, [2, 3, 11_003], 5),
        cooperative("normalize_grid_f32", floats, 4),
        cooperative("normalize_grid_f16", halves, 2),
    ]
}

impl Subject {
    pub fn text(&self, capability: u32) -> Vec<String> {
        let text = softcuda_kernels::ptx(self.file, capability);
        text.lines().map(str::to_owned).collect()
    }

    /// The lines of the kernel.
    pub fn lines(&self, text: &[String]) -> std::ops::Range<usize> {
        let entry = format!(".entry {}(", self.kernel);
        let start = text.iter().position(|line| line.contains(&entry)).expect("the kernel");
        let len = text[start..].iter().position(|line| line == "}").expect("its end");
        start..start + len
    }

    /// What the kernel leaves in the buffers it writes, or what is reported. `shrink`: an argument whose buffer lacks
    /// its last 4 bytes.
    pub fn run(
        &self,
        text: &[String],
        seed: u64,
        shrink: Option<usize>,
    ) -> Result<Vec<u8>, String> {
        let module = Module::load(&text.join("\n")).unwrap_or_else(|error| panic!("{error}"));
        let kernel = module.kernel(self.kernel).expect("the kernel");
        let mut memory = Memory::new(1 << 30);
        let (mut params, mut outputs) = (Vec::<u8>::new(), Vec::new());
        for (i, arg) in self.args.iter().enumerate() {
            let (bytes, content, output) = match arg {
                Arg::Number(number) => {
                    params.extend(number.to_le_bytes());
                    continue;
                }
                Arg::In(content) => (content.len(), Some(content), false),
                Arg::InOut(content) => (content.len(), Some(content), true),
                Arg::Out(bytes) => (*bytes, None, true),
            };
            let bytes = if shrink == Some(i) { bytes - 4 } else { bytes };
            // An empty allocation there is not: a pointer to nothing stands for it.
            let address = if bytes == 0 { 0 } else { memory.alloc(bytes as u64).unwrap() };
            if let Some(content) = content
                && bytes != 0
            {
                memory.write(address, &content[..bytes]).unwrap();
            }
            if output {
                outputs.push((address, bytes));
            }
            params.resize(params.len().next_multiple_of(8), 0);
            params.extend(address.to_le_bytes());
        }
        params.resize(kernel.param_bytes, 0);
        let launch = Launch {
            kernel,
            grid: self.grid,
            block: [256, 1, 1],
            dynamic_shared: self.dynamic,
            params: &params,
            cooperative: false,
            resident: self.resident,
            seed,
            budget: 100_000_000,
        };
        run(&mut memory, &launch).map_err(|fault| fault.to_string())?;
        let mut result = Vec::new();
        for (address, bytes) in outputs {
            let mut output = vec![0; bytes];
            memory.read(address, &mut output).map_err(|error| error.to_string())?;
            result.extend(output);
        }
        Ok(result)
    }
}
