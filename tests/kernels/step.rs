//! A forward and its backward, each by the kernels of either family.
use crate::launch::{
    AnyActivation, Arg, Channels, Device, Given, Gradients, Grid, Group, Layout, Mem, Merge,
    Outputs, Running,
};
use crate::support::run::{Inputs, Mode, Outcome, widen};
use batchnorm::{Activation, DType, Derivative, Element, Real};
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};

/// A type that has kernels.
pub trait Kernels: Element<Acc: Value> + Value {
    const NAME: &'static str;
}
pub trait Value: DeviceRepr + ValidAsZeroBits {}
impl<T: DeviceRepr + ValidAsZeroBits> Value for T {}

macro_rules! kernels {
    ($($t:ty, $name:literal;)*) => {
        $(impl Kernels for $t {
            const NAME: &'static str = $name;
        })*
    };
}
kernels! { f64, "f64"; f32, "f32"; f16, "f16"; bf16, "bf16"; }

/// How the resident family shares out the slices.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Of a group.
    pub blocks: usize,
    pub groups: usize,
    /// Steps that a block keeps.
    pub kept: usize,
}

/// What is run, and how; forward and backward by the split family where there is no cut for them.
pub struct Step<'a, E: Kernels> {
    pub device: &'a Device,
    pub inputs: &'a Inputs<E>,
    pub layout: Layout,
    pub mode: Mode,
    pub cuts: [Option<Cut>; 2],
}

/// What a forward leaves.
struct Statistics<A> {
    mean: Mem<A>,
    rest: Mem<A>,
    invstd: Mem<A>,
    weight: Mem<A>,
    bias: Mem<A>,
}

impl<E: Kernels> Step<'_, E> {
    fn channels(&self) -> usize {
        self.inputs.shape.channels()
    }
    fn merge(&self) -> Merge {
        let (shape, layout) = (&self.inputs.shape, &self.layout);
        let values = layout.tile * layout.width_of::<E>() / layout.channels;
        Merge {
            count: shape.per_channel() as u64,
            tile_count: values as u64,
            channels: self.channels() as u64,
            inner: shape.inner() as u64,
            together: layout.channels as u32,
            positions: 1,
            tiles: layout.tiles::<E>(shape) as u32,
            lanes: layout.width_of::<E>() as u32,
        }
    }
    /// The name of a kernel, if not of its module.
    fn name(&self, kernel: &str) -> String {
        let has_activation = !["stats", "stats_finalize", "eval"].contains(&kernel);
        let any = if has_activation && self.any().is_some() { "any_" } else { "" };
        format!("{kernel}_{any}{}", E::NAME)
    }
    fn module(&self, family: &str, kernel: &str) -> String {
        let any = if self.name(kernel).contains("_any_") { "any_" } else { "" };
        format!("{family}_{any}{}", E::NAME)
    }
    /// What the kernels for any activation are told.
    fn any(&self) -> Option<Arg> {
        let activation = self.inputs.epilogue.activation;
        let number = Activation::ALL.iter().position(|known| *known == activation)? as u32;
        let slope = match activation {
            Activation::Identity | Activation::Relu => return None,
            Activation::LeakyRelu { negative_slope } => negative_slope,
            _ => 0.0,
        };
        Some(match E::DTYPE {
            DType::F64 => Arg::Any64(AnyActivation { activation: number, slope }),
            _ => Arg::Any32(AnyActivation { activation: number, slope: slope as f32 }),
        })
    }
    /// A block for each tile.
    fn tiled(&self, kernel: &str, args: &[Arg]) {
        let suffix = if self.layout.width == Layout::VECTOR { "v" } else { "s" };
        let geometry = self.layout.geometry::<E>(&self.inputs.shape);
        let args = [&[Arg::Geometry(geometry)], args].concat();
        let blocks = geometry.slices as usize * self.merge().tiles as usize;
        let grid = Grid::of(blocks, geometry.threads.next_multiple_of(32));
        let name = format!("{}_{suffix}", self.name(kernel));
        self.device.launch(&self.module("split", kernel), &name, grid, &args);
    }
    /// `channels` channels for each block.
    fn by_channel(&self, kernel: &str, channels: usize, args: &[Arg]) {
        let grid = Grid::of(self.channels().div_ceil(channels), 128);
        self.device.launch(&self.module("split", kernel), &self.name(kernel), grid, args);
    }
    /// Groups of blocks. `tensors` are kept in shared memory.
    fn grouped(&self, kernel: &str, cut: Cut, tensors: usize, words: &Mem<u32>, args: &[Arg]) {
        let mut geometry = self.layout.geometry::<E>(&self.inputs.shape);
        let (threads, lanes) = (geometry.threads as usize, self.layout.width_of::<E>());
        let steps = (geometry.vectors as usize).div_ceil(threads);
        let of_block = steps.div_ceil(cut.blocks);
        geometry.tile = (of_block * threads) as u64;
        let (block, channels) = (threads.next_multiple_of(32), geometry.slice_channels as usize);
        let width = if channels == 1 { 1 } else { geometry.width as usize };
        let slots = if width <= 32 { block / 32 } else { threads / width };
        let scratch = 16 + (40 * channels).next_multiple_of(16) + 8 * lanes * width * slots;
        let room = (self.device.most_shared() - scratch) / (16 * threads * tensors);
        let kept = cut.kept.min(of_block).min(room);
        let shared = 16 * threads * kept * tensors + scratch;
        let blocks = cut.blocks * cut.groups;
        let partials = self.device.unwritten::<f64>(2 * blocks * channels, 0);
        let group = Group {
            blocks: cut.blocks as u32,
            kept: kept as u32,
            early: cut.groups.div_ceil(2) as u32,
            late: 1000,
            partials: if cut.blocks > 1 { partials.ptr() } else { 0 },
            words: if cut.blocks > 1 { words.ptr() } else { 0 },
        };
        let args = [&[Arg::Geometry(geometry), Arg::Group(group)], args].concat();
        let grid = Grid {
            blocks,
            threads: block as u32,
            shared: shared as u32,
            cooperative: cut.blocks > 1,
        };
        self.device.launch(&self.module("resident", kernel), &self.name(kernel), grid, &args);
    }

    /// Everything that the kernels can give.
    pub fn run(&self) -> Outcome {
        let Self { device, inputs, layout, mode, cuts } = self;
        let epilogue = inputs.epilogue;
        let (n, c) = (inputs.shape.len(), self.channels());
        let relu = epilogue.activation == Activation::Relu;
        let tensor = |values: &[E]| device.upload(values, layout.lead);
        let (x, residual) = (tensor(&inputs.x), tensor(&inputs.residual));
        let (weight, bias) = (device.upload(&inputs.weight, 0), device.upload(&inputs.bias, 0));
        let (mean, var) = (device.upload(&inputs.mean, 0), device.upload(&inputs.var, 0));
        let statistics = Statistics {
            mean: device.unwritten::<E::Acc>(c, 0),
            rest: device.unwritten(c, 0),
            invstd: device.unwritten(c, 0),
            weight: device.unwritten(c, 0),
            bias: device.unwritten(c, 0),
        };
        let partials = device.unwritten::<f64>(2 * c * self.merge().tiles as usize, 0);
        let nonfinite = device.upload(&[0u32], 0);
        let ptr = Arg::Pointer;
        let Statistics { mean: m, rest, invstd, weight: saved_weight, bias: saved_bias } =
            &statistics;
        let parameters = [&weight, &bias, saved_weight, saved_bias].map(Mem::ptr);
        let by = [m.ptr(), rest.ptr(), invstd.ptr(), weight.ptr(), bias.ptr()];
        let by = Arg::Channels(Channels(by));
        let not_given = Arg::Given(Given { eps: 0.0, pointers: [0; 9] });
        let y = device.unwritten::<E>(n, layout.lead);
        let source = epilogue.activation.derivative_from(epilogue.residual);
        let masks = source == Derivative::FromMask;
        let mask = device.unwritten::<u8>(n / layout.width_of::<E>(), 0);
        let mask = if masks { mask.ptr() } else { 0 };
        let r = if epilogue.residual { residual.ptr() } else { 0 };
        let pointers = [x.ptr(), r, y.ptr(), mask].map(ptr);
        let act = self.any().unwrap_or(Arg::U32(relu.into()));
        let last = [&pointers[..], &[act]].concat();
        // Zero once: every launch leaves them so that any other can follow.
        let words = device.upload(&[0u32; 32 * 16], 0);
        if let Mode::Train(factor) = mode {
            let record = device.unwritten::<f64>(3 * c + 1, 0);
            let pointers = [m, rest, invstd, &mean, &var].map(Mem::ptr);
            let statistics = [&pointers[..], &[record.ptr()]].concat().try_into().unwrap();
            let outputs = self.outputs(factor.unwrap_or(0.0), statistics, &nonfinite, parameters);
            if let Some(cut) = cuts[0] {
                let count = Arg::U64(inputs.shape.per_channel() as u64);
                let first = [Arg::Outputs(outputs), count];
                self.grouped("forward_resident", cut, 1, &words, &[&first, &last[..]].concat());
            } else {
                self.tiled("stats", &[ptr(x.ptr()), ptr(partials.ptr())]);
                let args = [Arg::Merge(self.merge()), Arg::Outputs(outputs)];
                let args = [&args[..], &[ptr(x.ptr()), ptr(partials.ptr())]].concat();
                self.by_channel("stats_finalize", 4, &args);
            }
            self.judge_record(&device.download(&record), &device.download(m));
            if cuts[0].is_none() {
                self.tiled("apply", &[&[by, not_given], &last[..]].concat());
            }
        } else {
            let given = |saved: &[&Mem<E::Acc>; 5]| {
                let [a, b, c, d, e] = saved.map(Mem::ptr);
                let pointers = [mean.ptr(), var.ptr(), 0, a, b, c, d, e, nonfinite.ptr()];
                Arg::Given(Given { eps: self.inputs.eps, pointers })
            };
            let saved = [m, rest, invstd, saved_weight, saved_bias];
            let by = Arg::Channels(Channels([0, 0, 0, weight.ptr(), bias.ptr()]));
            self.tiled("apply", &[&[by, given(&saved)], &last[..]].concat());
            // What it keeps is what is kept without it.
            let alone = saved.map(|_| device.unwritten::<E::Acc>(c, 0));
            let to = given(&alone.each_ref());
            let args = [Arg::U32(c as u32), to, ptr(weight.ptr()), ptr(bias.ptr())];
            self.by_channel("eval", 128, &args);
            for (with, without) in saved.iter().zip(&alone) {
                assert_eq!(device.download(with), device.download(without));
            }
        }

        let mut outcome = Outcome::from([("y", widen(&device.download(&y)))]);
        if matches!(mode, Mode::Train(_)) {
            outcome.insert("running_mean", widen(&device.download(&mean)));
            outcome.insert("running_var", widen(&device.download(&var)));
        }
        assert_eq!(device.download(saved_weight), inputs.weight);
        assert_eq!(device.download(saved_bias), inputs.bias);
        outcome.insert("saved_mean", widen(&device.download(m)));
        outcome.insert("saved_invstd", widen(&device.download(invstd)));
        let number = match source {
            Derivative::One => 0,
            Derivative::FromX => 1,
            Derivative::FromMask => 2,
            _ => 3,
        };
        let mut read = vec![by, ptr(x.ptr()), ptr(0), ptr(mask), Arg::U32(number)];
        if let Some(any) = self.any() {
            let again = source == Derivative::FromResidual;
            read.extend([ptr(if again { residual.ptr() } else { 0 }), any]);
        }
        self.backward(read, (&partials, &words), &mut outcome);
        assert_eq!(device.download(&nonfinite), [0]);
        outcome
    }

    fn outputs(
        &self,
        factor: f64,
        [mean, rest, invstd, running_mean, running_var, record]: [u64; 6],
        nonfinite: &Mem<u32>,
        [weight, bias, saved_weight, saved_bias]: [u64; 4],
    ) -> Outputs {
        let (eps, nonfinite) = (self.inputs.eps, nonfinite.ptr());
        let pointers =
            [mean, rest, invstd, record, nonfinite, weight, bias, saved_weight, saved_bias];
        let running = Running {
            factor,
            var_factor: factor,
            mean: running_mean,
            var: running_var,
            skipped: 0,
            rules: 0,
            reserved: 0,
        };
        Outputs { eps, running, pointers }
    }

    fn backward(
        &self,
        mut read: Vec<Arg>,
        (partials, words): (&Mem<f64>, &Mem<u32>),
        outcome: &mut Outcome,
    ) {
        let Self { device, inputs, layout, mode, cuts } = self;
        let (n, c) = (inputs.shape.len(), self.channels());
        let frozen = *mode == Mode::Eval;
        let ptr = Arg::Pointer;
        // grad_x holds grad_y before.
        let grad_x = device.upload(&inputs.grad_y, layout.lead);
        let grad_residual = device.unwritten::<E>(n, layout.lead);
        read[2] = ptr(grad_x.ptr());
        let wants = inputs.epilogue.residual;
        let outputs = [grad_x.ptr(), if wants { grad_residual.ptr() } else { 0 }].map(ptr);
        let [grad_weight, grad_bias] = [(); 2].map(|()| device.unwritten::<E::Acc>(c, 0));
        let sums = device.unwritten::<E::Acc>(2 * c + 1, 0);
        let coefs = device.unwritten::<E::Acc>(2 * c, 0);
        let gradients =
            Gradients([0, grad_weight.ptr(), grad_bias.ptr(), sums.ptr(), coefs.ptr(), 0]);
        if let (Some(cut), false) = (cuts[1], frozen) {
            let count = Arg::U64(inputs.shape.per_channel() as u64);
            let first = [read[0], Arg::Gradients(gradients), count];
            let args = [&first, &read[1..], &[Arg::U32(0)], &outputs].concat();
            self.grouped("backward_resident", cut, 2, words, &args);
        } else {
            let first = if frozen { outputs } else { [ptr(0); 2] };
            self.tiled("backward_sums", &[&read[..], &[ptr(partials.ptr())], &first].concat());
            let mut tensors = read.clone();
            if frozen {
                tensors[2] = ptr(0); // overwritten
            }
            let last = [Arg::Gradients(gradients), Arg::U32(0), ptr(partials.ptr())];
            let args = [&[Arg::Merge(self.merge())], &tensors[..], &last].concat();
            self.by_channel("backward_finalize", 4, &args);
            if !frozen {
                self.tiled("backward_apply", &[&read[..], &[ptr(coefs.ptr())], &outputs].concat());
            }
        }
        outcome.insert("grad_x", widen(&device.download(&grad_x)));
        if wants {
            outcome.insert("grad_residual", widen(&device.download(&grad_residual)));
        }
        outcome.insert("grad_weight", widen(&device.download(&grad_weight)));
        outcome.insert("grad_bias", widen(&device.download(&grad_bias)));
        let sums = widen(&device.download(&sums));
        outcome.insert("sum_g", sums[..c].to_vec());
        outcome.insert("sum_g_xhat", sums[c..2 * c].to_vec());
        outcome.insert("count", vec![sums[2 * c]]);
    }

    /// A record holds what else was written.
    fn judge_record(&self, record: &[f64], mean: &[E::Acc]) {
        let c = self.channels();
        let rounded: Vec<_> = record[..c].iter().map(|&mean| E::Acc::from_f64(mean)).collect();
        assert_eq!(rounded, mean);
        assert_eq!(record[3 * c], self.inputs.shape.per_channel() as f64);
    }
}
