//! What cuDNN does not serve: a table that is asked before every call.
//!
//! A row is documented (NVIDIA's reference manual for cuDNN 9), measured (on the library that it
//! names), or unknown. What is unknown is called, and a refusal of cuDNN becomes the same error.
use crate::engine::{Activation, NonFinite, Op, Request, RunningRules, Variance};
use crate::{DType, Error, Result, Shape};

/// How a limit is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Documented,
    Measured,
    Unknown,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask<'a> {
    pub shape: &'a Shape,
    pub request: Request,
}

pub(super) struct Limit {
    pub known: Known,
    /// What is expected and what came, where it came to more than the limit.
    pub exceeded: fn(&Ask) -> Option<String>,
}

/// By what the update of running statistics differs from cuDNN's, if it does: that has one
/// exponentialAverageFactor.
fn rule_of_ours(rules: RunningRules) -> Option<&'static str> {
    if rules.variance != Variance::Unbiased {
        return Some("running statistics take the unbiased variance: expected that, got biased");
    }
    if rules.separate_factors {
        return Some("running statistics have one factor: expected equal ones, got two");
    }
    if rules.non_finite != NonFinite::Propagate {
        return Some("running statistics take what is not finite: expected propagate, got skip");
    }
    let reason = "running statistics have one factor: expected it for all channels, got skipped";
    rules.factor_per_channel.then_some(reason)
}

/// Whether something follows the normalization.
fn is_fused(request: &Request) -> bool {
    request.activation != Activation::Identity || request.residual
}

/// Whether each channel's values lie a row of channels apart: what cuDNN calls NHWC.
pub(super) fn is_channels_last(shape: &Shape) -> bool {
    shape.inner() == 1 || shape.channels() == 1
}

const MOST: usize = i32::MAX as usize;

pub(super) const LIMITS: &[Limit] = &[
    Limit {
        // Operations.
        known: Known::Documented,
        exceeded: |ask| match ask.request.op {
            Op::ForwardTrain | Op::ForwardEval | Op::Backward => None,
            Op::OptimizerStep | Op::Regularize | Op::Constrain => None, // kernels of ours
            Op::BackwardEval => Some("there is no backward through frozen statistics".into()),
            Op::DoubleBackward => Some("there is no backward of a backward".into()),
            Op::Stats => Some("there is no call for statistics alone".into()),
            Op::MergeStats => Some("there is no call that merges statistics".into()),
            Op::Renormalize | Op::RenormalizeBackward => None,
            Op::LayerNorm | Op::LayerNormBackward => {
                Some("there is no call for layer normalization beside those of graphs".into())
            }
        },
    },
    Limit {
        // Frozen statistics.
        known: Known::Documented,
        exceeded: |ask| {
            let reason = "there is no backward through frozen statistics: expected nothing to save";
            let Request { op, saves, .. } = ask.request;
            (op == Op::ForwardEval && saves).then(|| reason.into())
        },
    },
    Limit {
        // Records.
        known: Known::Documented,
        exceeded: |ask| {
            let reason = "statistics are mean and variance: expected these, got a record";
            ask.request.by_record.then(|| reason.into())
        },
    },
    Limit {
        // Parts of a batch.
        known: Known::Documented,
        exceeded: |ask| {
            let reason =
                "backward has no sums of a part of a batch: expected no sums, no total_sums";
            ask.request.sums.then(|| reason.into())
        },
    },
    Limit {
        // Masks.
        known: Known::Documented,
        exceeded: |ask| {
            let reason = "statistics are those of all values: expected no mask, got one";
            ask.request.mask.then(|| reason.into())
        },
    },
    Limit {
        // Rules of running statistics.
        known: Known::Documented,
        exceeded: |ask| ask.request.running.and_then(rule_of_ours).map(str::to_owned),
    },
    Limit {
        // The running variance, running or not: cuDNN computes it for both.
        known: Known::Documented,
        exceeded: |ask| {
            let reason = "the unbiased variance is over m - 1: expected more than 1 value per \
                          channel, got 1";
            let is_one = ask.request.op == Op::ForwardTrain && ask.shape.per_channel() == 1;
            is_one.then(|| reason.into())
        },
    },
    Limit {
        // All gradients.
        known: Known::Documented,
        exceeded: |ask| {
            let Request { op, grad_x, grad_residual, residual, .. } = ask.request;
            let what = match (grad_x, grad_residual || !residual) {
                _ if op != Op::Backward => return None,
                (false, _) => "grad_x",
                (true, false) => "grad_residual",
                (true, true) => return None,
            };
            Some(format!("backward writes every tensor: expected a {what}, got none"))
        },
    },
    Limit {
        // In place: the manual allows no output to be an input, and cuDNN would not see that it is.
        known: Known::Documented,
        exceeded: |ask| {
            let Request { op, in_place, .. } = ask.request;
            let reason = "expected an output apart from the input, got it in place";
            (in_place && op != Op::ForwardEval).then(|| reason.into())
        },
    },
    Limit {
        // No elements.
        known: Known::Documented,
        exceeded: |ask| {
            let reason = || format!("a descriptor has dimensions from 1 on, got {}", ask.shape);
            ask.shape.is_empty().then(reason)
        },
    },
    Limit {
        // Elements: cudnnSetTensorNdDescriptor of 9.26.0 answers NOT_SUPPORTED.
        known: Known::Measured,
        exceeded: |ask| {
            let n = ask.shape.len();
            (n > MOST).then(|| format!("expected at most {MOST} elements, got {n}"))
        },
    },
    Limit {
        // Activations: cudnnBatchNormalizationForwardTrainingEx takes CUDNN_ACTIVATION_RELU alone.
        known: Known::Documented,
        exceeded: |ask| match ask.request.activation {
            Activation::Identity | Activation::Relu => None,
            other => Some(format!("of activations it fuses relu, got {other}")),
        },
    },
    Limit {
        // Residual without ReLU.
        known: Known::Documented,
        exceeded: |ask| {
            let Request { residual, activation, .. } = ask.request;
            let reason = "a residual is added before an activation: expected a ReLU, got none";
            (residual && activation == Activation::Identity).then(|| reason.into())
        },
    },
    Limit {
        // Evaluation alone.
        known: Known::Documented,
        exceeded: |ask| {
            let reason = "evaluation has nothing behind it: expected no ReLU, got one";
            (ask.request.op == Op::ForwardEval && is_fused(&ask.request)).then(|| reason.into())
        },
    },
    Limit {
        // Dtype of a ReLU.
        known: Known::Documented,
        exceeded: |ask| {
            let dtype = ask.request.dtype;
            let is_wide = matches!(dtype, DType::F32 | DType::F64);
            (is_fused(&ask.request) && is_wide)
                .then(|| format!("a ReLU behind the normalization needs f16, got {dtype}"))
        },
    },
    Limit {
        // Layout of a ReLU.
        known: Known::Documented,
        exceeded: |ask| {
            let shape = ask.shape;
            (is_fused(&ask.request) && !is_channels_last(shape)).then(|| {
                format!("a ReLU behind the normalization needs channels last, got {shape}")
            })
        },
    },
    Limit {
        // Channels of a residual.
        known: Known::Documented,
        exceeded: |ask| {
            let c = ask.shape.channels();
            (ask.request.residual && !c.is_multiple_of(4))
                .then(|| format!("a residual needs channels % 4 == 0, got {c}"))
        },
    },
    Limit {
        // Evaluation in place, where every element depends on itself alone.
        known: Known::Unknown,
        exceeded: |ask| ask.request.in_place.then(|| "evaluation in place".into()),
    },
    Limit {
        // Bf16 with a ReLU.
        known: Known::Unknown,
        exceeded: |ask| {
            let is_bf16 = ask.request.dtype == DType::Bf16;
            (is_bf16 && is_fused(&ask.request)).then(|| "bf16 with a ReLU".into())
        },
    },
    Limit {
        // Bf16.
        known: Known::Unknown,
        exceeded: |ask| (ask.request.dtype == DType::Bf16).then(|| "bf16".into()),
    },
    Limit {
        // Batch: where PyTorch turns to its own kernels, for versions that are old by now.
        known: Known::Unknown,
        exceeded: |ask| {
            let most = if ask.request.op == Op::ForwardEval { 65_535 } else { 880_801 };
            let n = ask.shape.batch();
            (n > most).then(|| format!("a batch of more than {most}, here {n}"))
        },
    },
];

/// Refuses what exceeds a limit that is documented or measured.
pub(super) fn check(ask: &Ask) -> Result<()> {
    for limit in LIMITS.iter().filter(|limit| limit.known != Known::Unknown) {
        if let Some(reason) = (limit.exceeded)(ask) {
            return Err(Error::Unsupported { engine: super::NAME, reason });
        }
    }
    Ok(())
}

/// What nobody knows about such a call before it is made.
pub(super) fn unknown(ask: &Ask) -> Vec<String> {
    let unknown = LIMITS.iter().filter(|limit| limit.known == Known::Unknown);
    unknown.filter_map(|limit| (limit.exceeded)(ask)).collect()
}
