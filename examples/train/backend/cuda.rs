//! Matrix products by cuBLAS, everything else by the kernels of `examples/kernels/network.cu`.
use std::io::Read;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use batchnorm::Device;
use batchnorm::cudarc::cublas::sys::cublasOperation_t::{self, CUBLAS_OP_N, CUBLAS_OP_T};
use batchnorm::cudarc::cublas::{self, CudaBlas, Gemm, GemmConfig, StridedBatchedConfig};
use batchnorm::cudarc::driver::{
    CudaFunction, CudaModule, CudaStream, CudaView, CudaViewMut, LaunchConfig, PushKernelArg,
};
use batchnorm::cudarc::nvrtc::Ptx;
use flate2::read::GzDecoder;

use super::{Backend, Nonlinearity, Operand, products, rows, same};

/// The backend beside the engines that work on a CUDA device, on the stream of one of them.
#[derive(Clone)]
pub struct CudaBackend {
    stream: Arc<CudaStream>,
    blas: Arc<CudaBlas>,
    kernels: Arc<Kernels>,
}

struct Kernels {
    add_bias: CudaFunction,
    sum_rows: CudaFunction,
    sigmoid: CudaFunction,
    sigmoid_backward: CudaFunction,
    relu: CudaFunction,
    relu_backward: CudaFunction,
    cross_entropy: CudaFunction,
    sgd: CudaFunction,
}

/// A gzip file for each target that has instructions of its own, the newest first.
const PTX: &[(i32, &[u8])] = &[(75, include_bytes!("../../kernels/ptx/network.sm_75.ptx.gz"))];

impl CudaBackend {
    /// In this memory, on its stream.
    pub fn new(memory: &Device) -> Result<Self> {
        // SAFETY: loads what cudarc loads, whose loading only sets up its own state.
        let present = unsafe { cublas::sys::is_culib_present() };
        ensure!(present, "cuBLAS: the loader finds no library of that name");
        let stream = memory.stream().clone();
        let module = load(&stream, PTX)?;
        let kernel = |name| module.load_function(name).context(name);
        let kernels = Kernels {
            add_bias: kernel("add_bias")?,
            sum_rows: kernel("sum_rows")?,
            sigmoid: kernel("sigmoid")?,
            sigmoid_backward: kernel("sigmoid_backward")?,
            relu: kernel("relu")?,
            relu_backward: kernel("relu_backward")?,
            cross_entropy: kernel("cross_entropy")?,
            sgd: kernel("sgd")?,
        };
        let blas = CudaBlas::new(stream.clone()).context("cublasCreate")?;
        Ok(Self { stream, blas: Arc::new(blas), kernels: Arc::new(kernels) })
    }

    /// Where it works.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }
}

/// The newest of these gzip files that the stream's device takes.
pub fn load(stream: &CudaStream, ptx: &[(i32, &[u8])]) -> Result<Arc<CudaModule>> {
    let context = stream.context();
    let (major, minor) = context.compute_capability()?;
    let fitting = ptx.iter().find(|(target, _)| *target <= 10 * major + minor);
    let (_, packed) = fitting
        .with_context(|| format!("expected compute capability 7.5 or more, got {major}.{minor}"))?;
    let mut source = String::new();
    GzDecoder::new(*packed).read_to_string(&mut source).context("the packed PTX")?;
    context.load_module(Ptx::from_src(source)).context("cuModuleLoadData")
}

/// A thread for each of so many elements.
pub fn threads(count: u64) -> Result<LaunchConfig> {
    const BLOCK: u32 = 256;
    // A grid of no blocks is refused, and one has nothing to do.
    let blocks = u32::try_from(count.div_ceil(BLOCK.into()).max(1))?;
    Ok(LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (BLOCK, 1, 1), shared_mem_bytes: 0 })
}

/// How cuBLAS, whose matrices lie column by column, sees one of so many `columns` when it is not
/// transposed, `rows` when it is: its operation and its leading dimension.
fn seen<'a>(
    operand: Operand<'a, Device>,
    [rows, columns]: [i32; 2],
) -> (CudaView<'a, f32>, cublasOperation_t, i32) {
    match operand {
        Operand::Plain(view) => (view, CUBLAS_OP_N, columns),
        Operand::Transposed(view) => (view, CUBLAS_OP_T, rows),
    }
}

impl Backend for CudaBackend {
    type Memory = Device;

    fn matmul(
        &self,
        [m, k, n]: [usize; 3],
        a: Operand<'_, Device>,
        b: Operand<'_, Device>,
        mut c: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let (count, [to_a, to_b]) = products([m, k, n], [a.len(), b.len(), c.len()])?;
        let to_c = (m * n) as i64;
        let [m, k, n, count] = [m, k, n, count].map(i32::try_from);
        let (m, k, n, count) = (m?, k?, n?, count?);
        let ((a, op_a, ld_a), (b, op_b, ld_b)) = (seen(a, [m, k]), seen(b, [k, n]));
        // Column by column, what lies here is the transposed product: b's transposed by a's.
        let gemm = GemmConfig {
            transa: op_b,
            transb: op_a,
            m: n,
            n: m,
            k,
            alpha: 1.0,
            lda: ld_b,
            ldb: ld_a,
            beta: 0.0,
            ldc: n,
        };
        self.stream.context().bind_to_thread()?;
        if count == 1 {
            // SAFETY: `products` has compared every length with the size.
            return unsafe { self.blas.gemm(gemm, &b, &a, &mut c) }.context("cublasSgemm");
        }
        let config = StridedBatchedConfig {
            gemm,
            batch_size: count,
            stride_a: to_b as i64,
            stride_b: to_a as i64,
            stride_c: to_c,
        };
        // SAFETY: as above, for each of them.
        unsafe { self.blas.gemm_strided_batched(config, &b, &a, &mut c) }
            .context("cublasSgemmStridedBatched")
    }

    fn add_bias(&self, bias: CudaView<'_, f32>, mut y: CudaViewMut<'_, f32>) -> Result<()> {
        rows("add_bias", bias.len(), y.len())?;
        let (columns, count) = (bias.len() as u64, y.len() as u64);
        let mut call = self.stream.launch_builder(&self.kernels.add_bias);
        call.arg(&bias).arg(&mut y).arg(&columns).arg(&count);
        // SAFETY: the kernel's arguments, and the lengths of its memory.
        unsafe { call.launch(threads(count)?) }.context("add_bias").map(drop)
    }

    fn sum_rows(
        &self,
        grad_y: CudaView<'_, f32>,
        mut grad_bias: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        rows("sum_rows", grad_bias.len(), grad_y.len())?;
        let columns = grad_bias.len();
        let (count, width) = ((grad_y.len() / columns) as u64, columns as u64);
        let mut call = self.stream.launch_builder(&self.kernels.sum_rows);
        call.arg(&grad_y).arg(&mut grad_bias).arg(&count).arg(&width);
        // SAFETY: the kernel's arguments; grad_y is so many rows of so many columns.
        unsafe { call.launch(threads(width)?) }.context("sum_rows").map(drop)
    }

    fn activate(&self, nonlinearity: Nonlinearity, mut y: CudaViewMut<'_, f32>) -> Result<()> {
        let kernel = match nonlinearity {
            Nonlinearity::Sigmoid => &self.kernels.sigmoid,
            Nonlinearity::Relu => &self.kernels.relu,
        };
        let count = y.len() as u64;
        let mut call = self.stream.launch_builder(kernel);
        call.arg(&mut y).arg(&count);
        // SAFETY: the kernel's arguments, and the length of its memory.
        unsafe { call.launch(threads(count)?) }.context("activate").map(drop)
    }

    fn activate_backward(
        &self,
        nonlinearity: Nonlinearity,
        y: CudaView<'_, f32>,
        mut grad: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        same("activate_backward", y.len(), grad.len())?;
        let kernel = match nonlinearity {
            Nonlinearity::Sigmoid => &self.kernels.sigmoid_backward,
            Nonlinearity::Relu => &self.kernels.relu_backward,
        };
        let count = y.len() as u64;
        let mut call = self.stream.launch_builder(kernel);
        call.arg(&y).arg(&mut grad).arg(&count);
        // SAFETY: the kernel's arguments, and the length of both.
        unsafe { call.launch(threads(count)?) }.context("activate_backward").map(drop)
    }

    /// A label that is no class is not refused, since that would take waiting: the loss is NaN.
    fn cross_entropy(
        &self,
        logits: CudaView<'_, f32>,
        labels: CudaView<'_, u8>,
        mut scores: CudaViewMut<'_, f32>,
        mut grad: Option<CudaViewMut<'_, f32>>,
    ) -> Result<()> {
        same("cross_entropy, scores", 2, scores.len())?;
        rows("cross_entropy", labels.len(), logits.len())?;
        if let Some(grad) = &grad {
            same("cross_entropy, grad", logits.len(), grad.len())?;
        }
        let (count, classes) = (labels.len() as u64, (logits.len() / labels.len()) as u64);
        let mut call = self.stream.launch_builder(&self.kernels.cross_entropy);
        call.arg(&logits).arg(&labels).arg(&mut scores);
        match &mut grad {
            Some(grad) => call.arg(grad),
            None => call.arg(&0u64),
        };
        call.arg(&count).arg(&classes);
        // As many threads as the kernel says.
        let block = LaunchConfig { block_dim: (128, 1, 1), ..threads(1)? };
        // SAFETY: the kernel's arguments; the lengths are compared above, and a grad that is not
        // there is null.
        unsafe { call.launch(block) }.context("cross_entropy").map(drop)
    }

    fn sgd(
        &self,
        learning_rate: f32,
        grad: CudaView<'_, f32>,
        mut value: CudaViewMut<'_, f32>,
    ) -> Result<()> {
        same("sgd", value.len(), grad.len())?;
        let count = value.len() as u64;
        let mut call = self.stream.launch_builder(&self.kernels.sgd);
        call.arg(&learning_rate).arg(&grad).arg(&mut value).arg(&count);
        // SAFETY: the kernel's arguments, and the length of both.
        unsafe { call.launch(threads(count)?) }.context("sgd").map(drop)
    }

    /// One after the other: they share a stream.
    fn join<A: Send, B: Send>(
        &self,
        a: impl FnOnce() -> A + Send,
        b: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        (a(), b())
    }
}
