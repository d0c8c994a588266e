//! One node of burn's graph: x, gamma, beta and a residual in, y out, gradients back.
use crate::flex::{self, Call, Inputs, Kept, Wanted};
use crate::{Error, Result};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, DispatchDevice, Flex};
use burn::tensor::{Device, GradientCheckpointingStrategy, PrimitiveConversionError, Tensor};
use burn_autodiff::NodeId;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::{
    BalancedCheckpointing, CheckpointStrategy, NoCheckpointing,
};
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, NodeGuard, Ops, OpsKind};
use burn_flex::FlexTensor;
use std::sync::Arc;

/// A tensor of Flex's with its node of the graph.
type Tracked = FloatTensor<Autodiff<Flex>>;

/// The tensors of a call.
pub(crate) struct Tensors<const D: usize> {
    pub x: Tensor<D>,
    pub residual: Option<Tensor<D>>,
    pub gamma: Tensor<1>,
    pub beta: Tensor<1>,
    /// Mean and variance.
    pub running: [Tensor<1>; 2],
}

/// y, and the running statistics where the batch has moved them.
pub(crate) type Applied<const D: usize> = (Tensor<D>, Option<[Tensor<1>; 2]>);

/// Whether it is one that is served, with gradients or without.
pub(crate) fn is_flex(device: &Device) -> bool {
    matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Flex(_))
}

/// Applies a call, within a graph if one of its tensors may have one.
pub(crate) fn apply<const D: usize>(call: &Call, tensors: Tensors<D>) -> Result<Applied<D>> {
    let devices = [
        ("x", Some(tensors.x.device())),
        ("residual", tensors.residual.as_ref().map(Tensor::device)),
        ("gamma", Some(tensors.gamma.device())),
        ("beta", Some(tensors.beta.device())),
    ];
    let mut of_graph: Option<(GradientCheckpointingStrategy, Device)> = None;
    for (what, device) in devices {
        let Some(device) = device else { continue };
        match (device.gradient_checkpointing_strategy(), &of_graph) {
            (Some(other), Some((strategy, first))) if other != *strategy => {
                let (expected, got) = (format!("{first:?}"), format!("{device:?}"));
                return Err(Error::Device { what, expected, got });
            }
            (Some(strategy), None) => of_graph = Some((strategy, device)),
            _ => {}
        }
    }
    match of_graph {
        None => {
            let Tensors { x, residual, gamma, beta, running } = tensors;
            let [mean, var] = running.map(|t| plain("running statistics", t));
            let inputs = Inputs {
                x: plain("x", x)?,
                residual: residual.map(|t| plain("residual", t)).transpose()?,
                gamma: plain("gamma", gamma)?,
                beta: plain("beta", beta)?,
                running: [mean?, var?],
            };
            let given = flex::forward(call, inputs, false)?;
            let running = given.running.map(|both| both.map(Tensor::from_primitive::<Flex>));
            Ok((Tensor::from_primitive::<Flex>(given.y), running))
        }
        Some((GradientCheckpointingStrategy::Disabled, _)) => {
            in_graph::<NoCheckpointing, D>(call, tensors)
        }
        Some((GradientCheckpointingStrategy::Balanced, _)) => {
            in_graph::<BalancedCheckpointing, D>(call, tensors)
        }
    }
}

fn in_graph<C: Strategy, const D: usize>(call: &Call, tensors: Tensors<D>) -> Result<Applied<D>> {
    let Tensors { x, residual, gamma, beta, running } = tensors;
    let [mean, var] = running.map(|t| plain("running statistics", t));
    let nodes = Nodes {
        x: tracked::<C, D>("x", x)?,
        residual: residual.map(|t| tracked::<C, D>("residual", t)).transpose()?,
        gamma: tracked::<C, 1>("gamma", gamma)?,
        beta: tracked::<C, 1>("beta", beta)?,
        running: [mean?, var?],
    };
    let [x, gamma, beta] = [&nodes.x, &nodes.gamma, &nodes.beta].map(|t| t.node());
    let (y, running) = match &nodes.residual {
        None => record::<C, 3>(call, [x, gamma, beta], nodes)?,
        Some(residual) => {
            let residual = residual.node();
            record::<C, 4>(call, [x, gamma, beta, residual], nodes)?
        }
    };
    let lifted = |t| C::tensor(<Autodiff<Flex, C> as AutodiffBackend>::from_inner(t));
    Ok((C::tensor(y), running.map(|both| both.map(lifted))))
}

/// The tensors of a call within a graph.
struct Nodes {
    x: Tracked,
    residual: Option<Tracked>,
    gamma: Tracked,
    beta: Tracked,
    running: [FlexTensor; 2],
}

/// Runs the forward, with a step for the way back if any input asks for a gradient.
fn record<C: Strategy, const N: usize>(
    call: &Call,
    guards: [NodeGuard; N],
    nodes: Nodes,
) -> Result<(Tracked, Option<[FlexTensor; 2]>)> {
    match Step.prepare::<C>(guards).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let x = prepared.checkpoint(&nodes.x);
            let reads_residual = flex::reads_residual(call.activation);
            let residual = nodes.residual.as_ref().filter(|_| reads_residual);
            let residual = residual.map(|t| prepared.checkpoint(t));
            let given = flex::forward(call, nodes.into(), true)?;
            let state = State { x, residual, kept: given.kept.map(Arc::new) };
            Ok((prepared.finish(state, given.y), given.running))
        }
        OpsKind::UnTracked(prepared) => {
            let given = flex::forward(call, nodes.into(), false)?;
            Ok((prepared.finish(given.y), given.running))
        }
    }
}

impl From<Nodes> for Inputs {
    fn from(nodes: Nodes) -> Self {
        Self {
            x: nodes.x.into_primitive(),
            residual: nodes.residual.map(|t| t.into_primitive()),
            gamma: nodes.gamma.into_primitive(),
            beta: nodes.beta.into_primitive(),
            running: nodes.running,
        }
    }
}

#[derive(Debug)]
struct Step;

/// What the way back needs: where burn keeps the inputs that it reads again, and what the forward left.
#[derive(Debug, Clone)]
struct State {
    x: NodeId,
    residual: Option<NodeId>,
    kept: Option<Arc<Kept>>,
}

/// Of the parents x, gamma, beta, and a residual if there are four.
impl<const N: usize> Backward<Flex, N> for Step {
    type State = State;

    fn backward(self, ops: Ops<State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let grad_y = grads.consume::<Flex>(&ops.node);
        let State { x, residual, kept } = ops.state;
        let Some(kept) = kept else { return };
        let x = checkpointer.retrieve_node_output::<FlexTensor>(x);
        let residual = residual.map(|id| checkpointer.retrieve_node_output::<FlexTensor>(id));
        let of = |k: usize| ops.parents.get(k).is_some_and(Option::is_some);
        let wanted = Wanted { x: of(0), gamma: of(1), beta: of(2), residual: of(3) };
        // burn's way back knows no errors, and there are none here but of memory.
        let given = flex::backward(&kept, x, residual, grad_y, wanted)
            .unwrap_or_else(|error| panic!("{error}"));
        let all = [given.x, given.gamma, given.beta, given.residual];
        for (parent, grad) in ops.parents.into_iter().zip(all) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// burn's two plans for what a graph keeps, between its tensors and those of Flex's.
trait Strategy: CheckpointStrategy {
    fn primitive<const D: usize>(
        t: Tensor<D>,
    ) -> std::result::Result<Tracked, PrimitiveConversionError>;
    fn tensor<const D: usize>(t: Tracked) -> Tensor<D>;
}
macro_rules! strategy {
    ($($c:ty),*) => {$(
        impl Strategy for $c {
            fn primitive<const D: usize>(
                t: Tensor<D>,
            ) -> std::result::Result<Tracked, PrimitiveConversionError> {
                t.try_into_primitive::<Autodiff<Flex, $c>>()
            }
            fn tensor<const D: usize>(t: Tracked) -> Tensor<D> {
                Tensor::from_primitive::<Autodiff<Flex, $c>>(t)
            }
        }
    )*};
}
strategy!(NoCheckpointing, BalancedCheckpointing);

/// A tensor with its node; a constant of the graph if it has none.
fn tracked<C: Strategy, const D: usize>(what: &'static str, t: Tensor<D>) -> Result<Tracked> {
    if !t.is_autodiff() {
        return Ok(<Autodiff<Flex, C> as AutodiffBackend>::from_inner(plain(what, t)?));
    }
    let got = t.device();
    C::primitive(t).map_err(|_| elsewhere(what, &got))
}

/// Flex's tensor, without a graph.
fn plain<const D: usize>(what: &'static str, t: Tensor<D>) -> Result<FlexTensor> {
    let got = t.device();
    t.without_autodiff().try_into_primitive::<Flex>().map_err(|_| elsewhere(what, &got))
}

pub(crate) fn elsewhere(what: &'static str, got: &Device) -> Error {
    Error::Device { what, expected: "Flex".into(), got: format!("{got:?}") }
}
