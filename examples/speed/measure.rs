//! What plans of the `Cuda` engine count on, measured on a device: JSON lines, of which
//! `scripts/lease_record.py` makes the costs that an engine reads.
use crate::table::{Case, data};
use anyhow::{Context, Result, ensure};
use batchnorm::cudarc::driver::CudaSlice;
use batchnorm::cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
use batchnorm::cudarc::driver::sys::CUevent_flags::CU_EVENT_DEFAULT;
use batchnorm::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use batchnorm::cudarc::driver::sys::{CUdevice_attribute, CUgraphInstantiate_flags};
use batchnorm::{
    Backward, Cuda, DType, Device, Element, Engine, Family, ForwardTrain, Memory, Op, Request,
    Saved, Shape, Stats, Tuning,
};
use half::f16;
use serde_json::{Value, json};
use std::num::NonZeroU32;
use std::time::Instant;

/// Vectors of 16 bytes that a block reads at a time.
const THREADS: u32 = 256;

/// How often what is timed runs.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Launches of a graph.
    pub launches: u32,
    /// Times that it is launched; the median counts.
    pub graphs: u32,
    /// Calls whose host time is taken together.
    pub calls: u32,
}

/// On a real device.
pub const EFFORT: Effort = Effort { launches: 20, graphs: 5, calls: 200 };

/// An engine in a context where cudarc records no events, which a graph must not wait for.
pub fn untracked(ordinal: usize) -> Result<Cuda> {
    let context = Cuda::new(ordinal)?.stream().context().clone();
    // SAFETY: everything of this program is on the one stream below.
    unsafe { context.disable_event_tracking() };
    Ok(Cuda::on_stream(context.new_stream()?)?)
}

/// Groups of so many blocks, of slices of so many channels.
fn groups(blocks: u32, channels: u32) -> Tuning {
    let tuning = Tuning::new(Family::Resident { blocks: NonZeroU32::new(blocks) });
    NonZeroU32::new(channels).map_or(tuning, |channels| tuning.channels(channels))
}

/// A forward and its backward, with their tensors.
struct Step<E: Element<Acc = f32>> {
    shape: Shape,
    x: CudaSlice<E>,
    y: CudaSlice<E>,
    grad_x: CudaSlice<E>,
    mean: CudaSlice<f32>,
    var: CudaSlice<f32>,
    saved: Saved<Device, f32>,
}

impl<E: Element<Acc = f32>> Step<E> {
    fn new(engine: &Cuda, case: &Case) -> Result<Self> {
        let (on, shape) = (engine.memory(), case.shape()?);
        let (n, c) = (shape.len(), shape.channels());
        Ok(Self {
            shape,
            x: on.upload(&data::tensor::<E>(case, data::X))?,
            y: on.zeros(n)?,
            grad_x: on.zeros(n)?,
            mean: on.zeros(c)?,
            var: on.zeros(c)?,
            saved: Saved::new(),
        })
    }
    fn forward(&mut self, engine: &Cuda) -> Result<()> {
        let args = ForwardTrain::<Device, E>::new(self.x.as_view(), self.y.as_view_mut())
            .running(self.mean.as_view_mut(), self.var.as_view_mut(), 1.0)
            .saved(&mut self.saved);
        Ok(engine.forward_train(&self.shape, args)?)
    }
    /// The gradient of y is y.
    fn backward(&mut self, engine: &Cuda) -> Result<()> {
        let args = Backward::<Device, E>::new(&self.saved, self.x.as_view(), self.y.as_view())
            .grad_x(self.grad_x.as_view_mut());
        Ok(engine.backward(&self.shape, args)?)
    }
}

/// Seconds of a launch among others, by a graph of them: what the host does between two is not in it.
fn seconds(
    effort: Effort,
    engine: &Cuda,
    mut launch: impl FnMut(&Cuda) -> Result<()>,
) -> Result<f64> {
    let stream = engine.stream();
    launch(engine)?; // makes all memory, loads all modules
    stream.synchronize()?;
    stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let launched = (0..effort.launches).try_for_each(|_| launch(engine));
    let graph = stream.end_capture(CUgraphInstantiate_flags(0))?;
    launched?;
    let graph = graph.context("a graph without launches")?;
    graph.launch()?;
    let mut times = Vec::new();
    for _ in 0..effort.graphs {
        let start = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        graph.launch()?;
        let end = stream.record_event(Some(CU_EVENT_DEFAULT))?;
        times.push(f64::from(start.elapsed_ms(&end)?) * 1e-3 / f64::from(effort.launches));
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn explain(engine: &Cuda, shape: &Shape, dtype: DType, op: Op) -> Result<String> {
    Ok(engine.explain(shape, Request::new(op, dtype))?)
}

fn multiprocessors(engine: &Cuda) -> Result<u32> {
    const COUNT: CUdevice_attribute = CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    Ok(u32::try_from(engine.stream().context().attribute(COUNT)?)?)
}

/// What a group's turn takes: slices that give each thread one vector, in one round and in several, by
/// the number of blocks that wait for each other and by the channels that they add up.
pub fn turns(
    effort: Effort,
    engine: &Cuda,
    blocks: &[u32],
    mut line: impl FnMut(Value) -> Result<()>,
) -> Result<()> {
    let slots = 2 * multiprocessors(engine)?;
    for channels in [16, 32, 64] {
        let rows = THREADS / (channels / 8);
        for &blocks in blocks.iter().filter(|blocks| **blocks <= slots) {
            for rounds in [1, 4] {
                let all = channels * (slots / blocks) * rounds;
                let dims = [(rows * blocks) as usize, all as usize];
                let case = Case::parse("fwd_train", &dims, "nc", "f16")?;
                let mut step = Step::<f16>::new(engine, &case)?;
                let tuned = engine.tuned(groups(blocks, channels).kept(1));
                let plan = explain(&tuned, &step.shape, DType::F16, Op::ForwardTrain)?;
                let seconds = seconds(effort, &tuned, |engine| step.forward(engine))?;
                line(json!({
                    "measure": "turn", "blocks": blocks, "channels": channels, "rounds": rounds,
                    "seconds": seconds, "plan": plan,
                }))?;
            }
        }
    }
    Ok(())
}

/// What rows of 32 to 256 bytes cost, of tensors whose channels are last.
pub fn rows(
    effort: Effort,
    engine: &Cuda,
    (samples, side): (usize, usize),
    of_channels: &[usize],
    mut line: impl FnMut(Value) -> Result<()>,
) -> Result<()> {
    for &all in of_channels {
        let case = Case::parse("fwd_train", &[samples, all, side, side], "nhwc", "f16")?;
        let mut step = Step::<f16>::new(engine, &case)?;
        for channels in [16, 32, 64, 128].into_iter().filter(|slice| *slice as usize <= all) {
            let tuned = engine.tuned(groups(0, channels));
            for (name, op) in [("forward", Op::ForwardTrain), ("backward", Op::Backward)] {
                let plan = explain(&tuned, &step.shape, DType::F16, op)?;
                let seconds = match op {
                    Op::Backward => seconds(effort, &tuned, |engine| step.backward(engine))?,
                    _ => seconds(effort, &tuned, |engine| step.forward(engine))?,
                };
                let bytes = case.bytes() * if op == Op::Backward { 3 } else { 2 };
                line(json!({
                    "measure": "row", "step": name, "all_channels": all, "row_bytes": 2 * channels,
                    "bytes": bytes, "seconds": seconds, "plan": plan,
                }))?;
            }
        }
    }
    Ok(())
}

/// What it is worth that half of the groups of a step begin later: tensors whose groups take several slices each.
pub fn offsets(
    effort: Effort,
    engine: &Cuda,
    shapes: &[(&[usize], &str)],
    mut line: impl FnMut(Value) -> Result<()>,
) -> Result<()> {
    for (dims, layout) in shapes {
        let case = Case::parse("fwd_train", dims, layout, "f16")?;
        let mut step = Step::<f16>::new(engine, &case)?;
        for at_once in [false, true] {
            let tuned = engine.tuned(groups(0, 0).at_once(at_once));
            for (name, op) in [("forward", Op::ForwardTrain), ("backward", Op::Backward)] {
                let plan = explain(&tuned, &step.shape, DType::F16, op)?;
                let seconds = match op {
                    Op::Backward => seconds(effort, &tuned, |engine| step.backward(engine))?,
                    _ => seconds(effort, &tuned, |engine| step.forward(engine))?,
                };
                line(json!({
                    "measure": "offset", "step": name, "shape": case.dims_name(), "at_once": at_once,
                    "seconds": seconds, "plan": plan,
                }))?;
            }
        }
    }
    Ok(())
}

/// What the sums of tiles take of the kernels that read a tensor twice: the pass that only reads, over so many
/// rows of channels.
pub fn tiles(
    effort: Effort,
    engine: &Cuda,
    of_rows: &[usize],
    channels: usize,
    mut line: impl FnMut(Value) -> Result<()>,
) -> Result<()> {
    let tuned = engine.tuned(Tuning::new(Family::Split));
    let on = tuned.memory();
    let mut record = on.zeros::<f64>(3 * channels + 1)?;
    for &rows in of_rows {
        let shape = Shape::new(&[rows, channels], 1)?;
        let x = on.zeros::<f16>(shape.len())?;
        let plan = explain(&tuned, &shape, DType::F16, Op::Stats)?;
        let seconds = seconds(effort, &tuned, |engine| {
            let args = Stats::<Device, f16>::new(x.as_view(), record.as_view_mut());
            Ok(engine.stats(&shape, args)?)
        })?;
        let bytes = 2 * shape.len();
        line(json!({"measure": "tile", "bytes": bytes, "seconds": seconds, "plan": plan}))?;
    }
    Ok(())
}

/// One launch of the largest group there is, again and again: every time the same bits.
pub fn repeats(
    engine: &Cuda,
    dims: &[usize],
    count: u32,
    mut line: impl FnMut(Value) -> Result<()>,
) -> Result<()> {
    let case = Case::parse("fwd_train", dims, "nhwc", "f16")?;
    let mut step = Step::<f16>::new(engine, &case)?;
    let tuned = engine.tuned(groups(u32::MAX, 0));
    let plan = explain(&tuned, &step.shape, DType::F16, Op::ForwardTrain)?;
    let on = engine.memory();
    let bits = |values: Vec<f16>| values.into_iter().map(f16::to_bits).collect::<Vec<_>>();
    let (mut first, mut differ) = (None, Vec::new());
    for i in 0..count {
        on.zero(step.mean.as_view_mut())?;
        on.zero(step.var.as_view_mut())?;
        step.forward(&tuned)?;
        let mean = on.download(step.mean.as_view())?;
        let var = on.download(step.var.as_view())?;
        let statistics: Vec<u32> = mean.iter().chain(&var).map(|value| value.to_bits()).collect();
        // All of y now and then: it is large.
        let y = (i % 100 == 0).then(|| on.download(step.y.as_view()).map(bits)).transpose()?;
        let (right, right_y) = first.get_or_insert_with(|| (statistics.clone(), y.clone()));
        if *right != statistics || y.is_some() && y != *right_y {
            differ.push(i);
        }
    }
    line(json!({
        "measure": "repeats", "count": count, "differ": differ.len(), "plan": plan,
        "first": differ.iter().take(10).collect::<Vec<_>>(),
    }))?;
    ensure!(differ.is_empty(), "{} of {count} repeats differ from the first", differ.len());
    Ok(())
}

/// Small tensors: how long a call keeps the host, and what the device needs for it.
pub fn host(
    effort: Effort,
    engine: &Cuda,
    tracked: bool,
    shapes: &[(&[usize], &str)],
    mut line: impl FnMut(Value) -> Result<()>,
) -> Result<()> {
    for (dims, layout) in shapes {
        let case = Case::parse("fwd_train", dims, layout, "f32")?;
        let mut step = Step::<f32>::new(engine, &case)?;
        step.forward(engine)?;
        for backward in [false, true] {
            let mut run = |engine: &Cuda| match backward {
                true => step.backward(engine),
                false => step.forward(engine),
            };
            run(engine)?;
            engine.stream().synchronize()?;
            let begin = Instant::now();
            (0..effort.calls).try_for_each(|_| run(engine))?;
            let host = begin.elapsed().as_secs_f64() / f64::from(effort.calls);
            engine.stream().synchronize()?;
            let all = begin.elapsed().as_secs_f64() / f64::from(effort.calls);
            // A graph must not wait for the events that tracking records.
            let device = (!tracked).then(|| seconds(effort, engine, &mut run)).transpose()?;
            let shape = case.dims_name();
            line(json!({
                "measure": "host", "step": if backward { "backward" } else { "forward" },
                "shape": shape, "layout": layout, "tracked": tracked, "host_s": host,
                "call_s": all, "device_s": device,
            }))?;
        }
    }
    Ok(())
}
