//! What is measured, in one place for the benchmark, the `speed` example and their tests.
//!
//! `table.json` lists operations, shapes, layouts and dtypes; `scripts/bench_pytorch.py` reads the
//! same file. [`data`] fills tensors with numbers that every peer can make again, [`job`] holds an
//! operation ready to run on an engine, [`check`] compares its results with the f64 reference,
//! [`floor`] is what the memory alone would take, [`turn`] measures.
#![allow(dead_code)] // every user takes a part
use anyhow::{Context, Result, bail, ensure};
use batchnorm::{Activation, DType, Request, Shape};
use serde::Deserialize;
use std::fmt;

pub mod check;
pub mod data;
#[cfg(feature = "cuda")]
pub mod device;
#[allow(unsafe_code)]
pub mod floor;
pub mod job;
#[path = "../../tests/support/tolerance.rs"]
pub mod tolerance;
pub mod turn;

/// Which pass over the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// By batch statistics, updating the running ones.
    Train,
    /// By running statistics.
    Infer,
    /// Gradients of x, weight and bias, and of the residual where there is one.
    Backward,
}

/// A pass and what follows the normalization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Op {
    pub pass: Pass,
    pub relu: bool,
    pub residual: bool,
}

/// Every operation by its name in tables and requests.
const OPS: [(&str, Op); 7] = [
    ("fwd_train", Op::new(Pass::Train, false, false)),
    ("infer", Op::new(Pass::Infer, false, false)),
    ("bwd", Op::new(Pass::Backward, false, false)),
    ("fwd_train_relu", Op::new(Pass::Train, true, false)),
    ("bwd_relu", Op::new(Pass::Backward, true, false)),
    ("fwd_train_add_relu", Op::new(Pass::Train, true, true)),
    ("bwd_add_relu", Op::new(Pass::Backward, true, true)),
];

impl Op {
    const fn new(pass: Pass, relu: bool, residual: bool) -> Self {
        Self { pass, relu, residual }
    }
    pub fn name(self) -> &'static str {
        OPS.iter().find(|(_, op)| *op == self).map_or("?", |(name, _)| name)
    }
    /// How many times a tensor must be read and written at least, were the cache without end.
    pub fn least_passes(self) -> usize {
        let plain = if self.pass == Pass::Backward { 3 } else { 2 };
        plain + usize::from(self.residual)
    }
}

/// How N, C, ... lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row-major, three axes or more.
    Nchw,
    /// Channels last, for any rank from 3.
    Nhwc,
    /// N x C.
    Nc,
}

impl Layout {
    /// The name that requests use.
    pub fn name(self) -> &'static str {
        LAYOUTS.into_iter().find(|(_, layout)| *layout == self).map_or("", |(name, _)| name)
    }
}

const LAYOUTS: [(&str, Layout); 3] =
    [("nchw", Layout::Nchw), ("nhwc", Layout::Nhwc), ("nc", Layout::Nc)];
const DTYPES: [(&str, DType); 3] =
    [("f32", DType::F32), ("bf16", DType::Bf16), ("f16", DType::F16)];

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    pub op: Op,
    /// N, C, ... whatever the layout.
    pub dims: Vec<usize>,
    pub layout: Layout,
    pub dtype: DType,
}

impl Case {
    /// A case by the names that requests use.
    pub fn parse(op: &str, dims: &[usize], layout: &str, dtype: &str) -> Result<Self> {
        let case = Self {
            op: named("op", &OPS, op)?,
            dims: dims.to_vec(),
            layout: named("layout", &LAYOUTS, layout)?,
            dtype: named("dtype", &DTYPES, dtype)?,
        };
        let rank = dims.len();
        match case.layout {
            Layout::Nc => ensure!(rank == 2, "layout nc: expected 2 axes, got shape {dims:?}"),
            _ => ensure!(rank > 2, "layout {layout}: expected 3 axes or more, got shape {dims:?}"),
        }
        ensure!(dims.iter().all(|&d| d > 0), "shape: expected no axis of size 0, got {dims:?}");
        case.shape()?;
        Ok(case)
    }
    /// As it lies in memory.
    pub fn shape(&self) -> Result<Shape> {
        let mut dims = self.dims.clone();
        let mut axis = 1;
        if self.layout == Layout::Nhwc {
            dims[1..].rotate_left(1);
            axis = dims.len() - 1;
        }
        Ok(Shape::new(&dims, axis)?)
    }
    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        let Op { pass, relu, residual } = self.op;
        let op = match pass {
            Pass::Train => batchnorm::Op::ForwardTrain,
            Pass::Infer => batchnorm::Op::ForwardEval,
            Pass::Backward => batchnorm::Op::Backward,
        };
        let activation = if relu { Activation::Relu } else { Activation::Identity };
        Request::new(op, self.dtype).activation(activation).residual(residual)
    }
    pub fn layout_name(&self) -> &'static str {
        self.layout.name()
    }
    /// Bytes of one value.
    pub fn width(&self) -> usize {
        if self.dtype == DType::F32 { 4 } else { 2 }
    }
    /// Bytes of one tensor.
    pub fn bytes(&self) -> usize {
        self.dims.iter().product::<usize>() * self.width()
    }
    /// What memory must move at least.
    pub fn least_traffic(&self) -> usize {
        self.bytes() * self.op.least_passes()
    }
    pub fn dims_name(&self) -> String {
        self.dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
    }
}

/// `bwd_relu 32x64x112x112 nhwc f32`.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (op, dims, layout) = (self.op.name(), self.dims_name(), self.layout_name());
        write!(f, "{op} {dims} {layout} {}", self.dtype)
    }
}

fn named<T: Copy>(what: &str, all: &[(&str, T)], name: &str) -> Result<T> {
    match all.iter().find(|(n, _)| *n == name) {
        Some((_, value)) => Ok(*value),
        None => {
            let names: Vec<&str> = all.iter().map(|(n, _)| *n).collect();
            bail!("{what}: expected one of {}, got {name}", names.join(", "))
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    ops: Vec<String>,
    shapes: Vec<Row>,
    large: Large,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Large {
    ops: Vec<String>,
    shapes: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    shape: Vec<usize>,
    layouts: Vec<String>,
    dtypes: Vec<String>,
    #[serde(default)]
    quick: bool,
}

/// The whole table, or its quick part: four shapes in f32.
pub fn cases(quick: bool) -> Result<Vec<Case>> {
    let file = file()?;
    let rows = file.shapes.iter().filter(|row| row.quick || !quick);
    all(&file.ops, rows, |dtype| dtype == "f32" || !quick)
}

/// Shapes of batches that fill a GPU, those that say most first.
pub fn large_cases() -> Result<Vec<Case>> {
    let Large { ops, shapes } = file()?.large;
    all(&ops, shapes.iter(), |_| true)
}

fn file() -> Result<File> {
    serde_json::from_str(include_str!("table.json")).context("table.json")
}

fn all<'a>(
    ops: &[String],
    rows: impl Iterator<Item = &'a Row>,
    wants: impl Fn(&str) -> bool,
) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for row in rows {
        for dtype in row.dtypes.iter().filter(|dtype| wants(dtype)) {
            for layout in &row.layouts {
                for op in ops {
                    let case = Case::parse(op, &row.shape, layout, dtype);
                    cases.push(case.context("table.json")?);
                }
            }
        }
    }
    Ok(cases)
}
