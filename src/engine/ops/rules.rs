//! What a batch does to running statistics where systems differ.

/// An enum of rules, of which one is the default.
macro_rules! rule {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        #[cfg_attr(
            feature = "serde",
            derive(serde::Serialize, serde::Deserialize),
            serde(rename_all = "snake_case")
        )]
        #[non_exhaustive]
        pub enum $name { $($(#[$of])* $variant),+ }
    };
}

pub(crate) use rule;

rule! {
    /// Which variance of a batch of m values per channel goes into the running variance. What normalizes the
    /// batch itself is biased everywhere.
    Variance {
        /// Over m - 1: PyTorch, cuDNN, and TensorFlow's fused operation (Keras 2 on ranks 4 and 5). Over m where
        /// that is 1.
        #[default]
        Unbiased,
        /// Over m: Keras 3, Keras 2 elsewhere, Flax, Haiku, ONNX, MXNet.
        Biased,
    }
}
rule! {
    /// What a channel's running statistics do in a batch whose mean or variance is infinite or NaN in the type of
    /// the parameters. y and the gradients are not finite there either way.
    NonFinite {
        /// They follow, and stay so, as in every known system.
        #[default]
        Propagate,
        /// Both stay, in that channel alone; [`Running::skipped`](crate::Running::skipped) counts it.
        Skip,
    }
}
rule! {
    /// What a training batch without values does to running statistics.
    EmptyBatch {
        /// They stay: PyTorch.
        #[default]
        Keep,
        /// It has a mean and a variance of NaN, which go into both: Keras, Flax.
        Nan,
    }
}
rule! {
    /// What a channel is of which a mask leaves no value.
    AllMasked {
        /// It is normalized by a mean and a variance of 0, and running statistics stay.
        #[default]
        Keep,
        /// The same, but the zeros go into the running statistics: Keras, whose statistics a batch of padding
        /// alone moves towards 0.
        Zero,
        /// It has a mean and a variance of NaN, as have the running statistics after it: Flax.
        Nan,
    }
}
rule! {
    /// What a training batch with one value per channel is: it has no unbiased variance.
    OneValue {
        /// An error, as in PyTorch.
        #[default]
        Refuse,
        /// A batch of variance 0: y is the bias, and the running variance decays: Keras, Flax, MXNet.
        ZeroVariance,
        /// The same, but for the running variance, which stays.
        KeepVariance,
    }
}
