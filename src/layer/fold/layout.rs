//! How systems lay out the weights of the layers that a normalization is folded into.
use crate::{Error, Result};
use std::ops::Range;

/// The weight of a convolution, a transposed convolution or a linear layer: its shape, which axis is
/// which, and what else of the layer decides whether a fold is exact.
///
/// | layer | weight | made by |
/// |---|---|---|
/// | PyTorch `Conv1d` to `3d`, ONNX `Conv` | (out, in / groups, kernel..) | [`conv`](Self::conv) |
/// | PyTorch `ConvTranspose1d` to `3d`, ONNX `ConvTranspose` | (in, out / groups, kernel..) | [`conv_transpose`](Self::conv_transpose) |
/// | PyTorch `Linear`, ONNX `Gemm` with transB = 1 | (out, in) | [`linear`](Self::linear) |
/// | Keras `Conv1D` to `3D`, Flax `Conv` | (kernel.., in / groups, out) | [`keras_conv`](Self::keras_conv) |
/// | Keras `Conv1DTranspose` to `3D` | (kernel.., out, in) | [`keras_conv_transpose`](Self::keras_conv_transpose) |
/// | Flax `ConvTranspose` | (kernel.., in, out) | [`flax_conv_transpose`](Self::flax_conv_transpose) |
/// | Keras `DepthwiseConv1D`, `2D` | (kernel.., in, multiplier) | [`keras_depthwise_conv`](Self::keras_depthwise_conv) |
/// | Keras `Dense`, Flax `Dense`, ONNX `Gemm` with transB = 0 and `MatMul` | (in, out) | [`dense`](Self::dense) |
///
/// A separable convolution is a depthwise one and one of kernel 1: what follows folds into the second, what
/// precedes into the first.
///
/// Constructors take the weight's shape. Sources: the classes' own documentation of their weights, and ONNX'
/// operator reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightLayout {
    shape: Vec<usize>,
    output: usize,
    input: usize,
    /// Least number of axes.
    rank: usize,
    groups: Groups,
    transposed: bool,
    pads_with_zeros: bool,
}

/// Which axis has the channels of one group only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Groups {
    /// The input's; and how many groups there are.
    OfInput(usize),
    /// The output's.
    OfOutput(usize),
    /// The output's, each input channel being a group.
    Depthwise,
}

impl WeightLayout {
    fn new(shape: &[usize], [output, input]: [usize; 2], rank: usize, groups: Groups) -> Self {
        let (transposed, pads_with_zeros) = (false, false);
        Self { shape: shape.to_vec(), output, input, rank, groups, transposed, pads_with_zeros }
    }
    /// With the channels' axes last.
    fn channels_last(shape: &[usize], from_last: [usize; 2], groups: Groups) -> Self {
        let axes = from_last.map(|axis| shape.len().saturating_sub(axis));
        Self::new(shape, axes, 3, groups)
    }

    /// A convolution, (out, in / groups, kernel..): PyTorch's and ONNX'.
    pub fn conv(shape: &[usize]) -> Self {
        Self::new(shape, [0, 1], 3, Groups::OfInput(1))
    }
    /// A transposed convolution, (in, out / groups, kernel..): PyTorch's and ONNX'.
    pub fn conv_transpose(shape: &[usize]) -> Self {
        Self { transposed: true, ..Self::new(shape, [1, 0], 3, Groups::OfOutput(1)) }
    }
    /// A linear layer, (out, in): PyTorch's, ONNX' with transB = 1.
    pub fn linear(shape: &[usize]) -> Self {
        Self::new(shape, [0, 1], 2, Groups::OfInput(1))
    }
    /// A linear layer, (in, out): Keras', Flax', ONNX' with transB = 0.
    pub fn dense(shape: &[usize]) -> Self {
        Self::new(shape, [1, 0], 2, Groups::OfInput(1))
    }
    /// A convolution, (kernel.., in / groups, out): Keras' and Flax'.
    pub fn keras_conv(shape: &[usize]) -> Self {
        Self::channels_last(shape, [1, 2], Groups::OfInput(1))
    }
    /// A transposed convolution, (kernel.., out, in): Keras'.
    pub fn keras_conv_transpose(shape: &[usize]) -> Self {
        Self { transposed: true, ..Self::channels_last(shape, [2, 1], Groups::OfOutput(1)) }
    }
    /// A transposed convolution, (kernel.., in, out): Flax'.
    pub fn flax_conv_transpose(shape: &[usize]) -> Self {
        Self { transposed: true, ..Self::channels_last(shape, [1, 2], Groups::OfOutput(1)) }
    }
    /// A depthwise convolution, (kernel.., in, multiplier): Keras'. Output channel `i * multiplier + m` is
    /// filter m of input channel i.
    pub fn keras_depthwise_conv(shape: &[usize]) -> Self {
        Self::channels_last(shape, [1, 2], Groups::Depthwise)
    }

    /// In how many groups the channels are, 1 unless it is said. No effect on a depthwise layout, whose
    /// groups are its input channels.
    pub fn groups(mut self, groups: usize) -> Self {
        match &mut self.groups {
            Groups::OfInput(n) | Groups::OfOutput(n) => *n = groups,
            Groups::Depthwise => {}
        }
        self
    }
    /// Whether the layer pads its input with zeros (padding 1 or more, or Keras' "same" with a kernel
    /// larger than 1), false unless it is said. It matters where a normalization comes before: what it
    /// makes of a padded place is 0, what it makes of a 0 is not.
    pub fn pads_with_zeros(mut self, pads_with_zeros: bool) -> Self {
        self.pads_with_zeros = pads_with_zeros;
        self
    }

    /// The weight's shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Elements of the weight.
    pub(super) fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Channels that go in.
    pub(super) fn in_channels(&self) -> usize {
        match self.groups {
            Groups::OfInput(groups) => self.shape[self.input] * groups,
            _ => self.shape[self.input],
        }
    }
    /// Channels that come out.
    pub(super) fn out_channels(&self) -> usize {
        let own = self.shape[self.output];
        match self.groups {
            Groups::OfInput(_) => own,
            Groups::OfOutput(groups) => own * groups,
            Groups::Depthwise => own * self.in_channels(),
        }
    }
    /// Why an input whose zeros are not zeros before a normalization cannot be folded.
    pub(super) fn shift_is_lost(&self) -> Option<&'static str> {
        match (self.transposed, self.pads_with_zeros) {
            (true, _) => Some(
                "a transposed convolution: how many taps of its kernel meet at an output differs from place to place",
            ),
            (_, true) => Some("a layer that pads its input with zeros"),
            _ => None,
        }
    }

    /// Whether the shape is one of this layer's, and its channels make whole groups.
    pub(super) fn check(&self) -> Result<()> {
        let shape = &self.shape;
        let refused = |expected: String| Err(Error::invalid("weight", expected));
        if shape.len() < self.rank || self.rank == 2 && shape.len() != 2 {
            let least = if self.rank == 2 { "2 axes" } else { "at least 3 axes" };
            return refused(format!("expected {least}, got the shape {shape:?}"));
        }
        if shape.contains(&0) || shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).is_none() {
            return refused(format!("expected axes of at least 1, got the shape {shape:?}"));
        }
        let (groups, whole, what) = match self.groups {
            Groups::OfInput(groups) => (groups, shape[self.output], "output"),
            Groups::OfOutput(groups) => (groups, shape[self.input], "input"),
            Groups::Depthwise => return Ok(()),
        };
        if self.rank == 2 && groups != 1 {
            return Err(Error::invalid(
                "groups",
                format!("expected 1 of a linear layer, got {groups}"),
            ));
        }
        if groups == 0 || whole % groups != 0 {
            let got = format!("expected a divisor of the {whole} {what} channels, got {groups}");
            return Err(Error::invalid("groups", got));
        }
        match shape[if what == "output" { self.input } else { self.output }].checked_mul(groups) {
            Some(_) => Ok(()),
            None => {
                refused(format!("expected fewer channels than {shape:?} in {groups} groups has"))
            }
        }
    }

    /// Output and input channel of every element, in the order of memory.
    pub(super) fn channels(&self) -> impl Iterator<Item = [usize; 2]> {
        let stride = |axis: usize| -> usize { self.shape[axis + 1..].iter().product() };
        let axes = [self.output, self.input].map(|axis| (stride(axis), self.shape[axis]));
        let all: Range<usize> = 0..self.len();
        all.map(move |i| {
            let [output, input] = axes.map(|(stride, n)| i / stride % n);
            match self.groups {
                Groups::OfInput(groups) => {
                    let group = output / (axes[0].1 / groups);
                    [output, group * axes[1].1 + input]
                }
                Groups::OfOutput(groups) => {
                    let group = input / (axes[1].1 / groups);
                    [group * axes[0].1 + output, input]
                }
                Groups::Depthwise => [input * axes[0].1 + output, input],
            }
        })
    }
}
