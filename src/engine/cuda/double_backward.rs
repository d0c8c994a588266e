//! The double backward: sums of the parts, what they add up to, and what that makes of the elements.
use super::arguments::Channels;
use super::launch::{Bound, Counting, Cut, DoubleLauncher, Follows, Parameters, Reads, Writes};
use super::{Cuda, Layout, Pointers, Ptr, masked};
use crate::engine::places::Places;
use crate::engine::pointers::SavedAt;
use crate::engine::saved::ByChannel;
use crate::engine::{DOUBLE_SUMS, Derivative, DoubleBackward};
use crate::{DType, Device, Element, Real, Result, Shape};

/// How it is cut: rows that are dealt out to groups one by one.
pub(super) fn cut(shape: &Shape, dtype: DType) -> Cut {
    match Rows::of(shape) {
        Some(rows) => Cut::new(&rows.one, dtype).with_bits_of(shape, dtype),
        None => Cut::new(shape, dtype),
    }
}
/// What it works in: behind the sums of parts those of a group, where rows are dealt out.
pub(super) fn layout(shape: &Shape, dtype: DType) -> Layout {
    let of_group = Rows::of(shape).map_or(0, |rows| 8 * (DOUBLE_SUMS * rows.one.channels()) as u64);
    Layout::of_partials(cut(shape, dtype).room() + of_group)
}

/// Rows that are dealt out to groups, each of which has channels of its own.
struct Rows {
    /// The shape of one.
    one: Shape,
    groups: usize,
    /// Of each group.
    each: usize,
}

impl Rows {
    fn of(shape: &Shape) -> Option<Self> {
        let groups = shape.dealt()?.groups;
        Some(Self { one: shape.of_dealt_row()?, groups, each: shape.batch() })
    }
}

/// That many elements behind; nowhere, if that is where it is.
fn behind<T>(at: Ptr<T>, elements: usize) -> Ptr<T> {
    match at.is_null() {
        true => at,
        false => Ptr::at(at.address() + (elements * size_of::<T>()) as u64),
    }
}

impl<T> Reads<T> {
    /// From an element on, which is the first one of a byte of the mask.
    fn from(self, element: usize, bits: usize) -> Self {
        let Self { x, grad_y, residual, v_x, v_residual, mask, counting } = self;
        let [x, grad_y, residual, v_x, v_residual] =
            [x, grad_y, residual, v_x, v_residual].map(|tensor| behind(tensor, element));
        let mask = behind(mask, element / bits);
        Self { x, grad_y, residual, v_x, v_residual, mask, counting }
    }
}
impl<T> Writes<T> {
    fn from(self, element: usize) -> Self {
        let [gg_grad_y, gg_x, gg_residual] =
            [self.gg_grad_y, self.gg_x, self.gg_residual].map(|tensor| behind(tensor, element));
        Self { gg_grad_y, gg_x, gg_residual }
    }
}

impl Cuda {
    /// The arguments are checked.
    pub(in crate::engine) fn launch_double_backward<E: Element>(
        &self,
        shape: &Shape,
        args: DoubleBackward<'_, Device, E>,
    ) -> Result<()> {
        self.cut(shape, E::DTYPE)?; // refuses what has no grid
        let (forward, saved) = args.saved.made()?;
        let kernels = self.shared.modules.double_backward(E::DTYPE)?;
        let room = self.shared.workspace.room(&self.memory, layout(shape, E::DTYPE))?;
        let mut pointers = Pointers::new(self.stream());
        let activation = forward.activation;
        let batch = forward.batch_statistics || args.total_sums.is_some();
        let curved = activation.is_curved();
        let source = activation.derivative_from(forward.residual);
        let masks = source == Derivative::FromMask;
        let residual = args.residual.filter(|_| source == Derivative::FromResidual);
        let SavedAt { by_channel, reserve } = pointers.read_saved(saved);
        let ByChannel { mean, mean_rest, invstd, weight, bias } = by_channel;
        let mut counting = Counting::ALL;
        let (mut counts, mut count_eps) = (Ptr::NULL, 0.0);
        if let Some((rules, places)) = forward.mask.zip(args.mask) {
            let of = Places::new(shape, rules.last)?;
            counting = Counting::new(pointers.read(places), of, &cut(shape, E::DTYPE));
            count_eps = rules.count_eps;
            counts = match args.saved.counted() {
                Some(all) => pointers.read(all.counts.as_view()),
                None => masked::counts(reserve, shape, size_of::<E>(), masks),
            };
        }
        let from = Reads {
            x: pointers.read(args.x),
            grad_y: pointers.read(args.grad_y),
            residual: pointers.read_some(residual),
            v_x: pointers.read_some(args.v_x),
            v_residual: pointers.read_some(args.v_residual),
            mask: if masks { reserve } else { Ptr::NULL },
            counting,
        };
        let to = Writes {
            gg_grad_y: pointers.write_some(args.gg_grad_y),
            gg_x: pointers.write_some(args.gg_x),
            gg_residual: pointers.write_some(args.gg_residual),
        };
        let (total, values) = match args.total_sums {
            Some((total, values)) => (pointers.read(total), values),
            None => (Ptr::NULL, shape.per_channel()),
        };
        let parameters = Parameters {
            v_weight: pointers.read_some(args.v_weight),
            v_bias: pointers.read_some(args.v_bias),
            gg_weight: pointers.write_some(args.gg_weight),
            gg_bias: pointers.write_some(args.gg_bias),
            nonfinite: self.shared.workspace.nonfinite(),
            accumulate: args.accumulate.into(),
            batch: batch.into(),
            sums: pointers.write_some(args.sums),
            total,
            values: values.max(1) as f64,
            counts,
            count_eps,
        };
        let follows = Follows {
            activation: activation.code(),
            source: source.code(),
            slope: Real::from_f64(activation.negative_slope()),
        };
        let launcher = DoubleLauncher {
            kernels: &kernels,
            stream: Bound::new(self.stream()),
            cut: cut(shape, E::DTYPE),
            by: Channels { mean, mean_rest, invstd, weight, bias },
            curved,
            room: room.partials(),
        };
        if let Some(rows) = Rows::of(shape) {
            return launcher.rows(&rows, (from, to), follows, parameters);
        }
        let of_parameters =
            !parameters.gg_weight.is_null() || curved && !parameters.gg_bias.is_null();
        let asks = !parameters.sums.is_null();
        let own = parameters.total.is_null() && (of_parameters || batch && to.any());
        let has_sums = !shape.is_empty() && (asks || own);
        if has_sums {
            launcher.sums(from, follows)?;
        }
        launcher.finalize(parameters, has_sums)?;
        if to.any() && !asks {
            launcher.apply(from, follows, parameters.batch, to)?;
        }
        Ok(())
    }
}

impl<A: Real> DoubleLauncher<'_, A> {
    /// Of rows that are dealt out: the sums over those of a group, then each of them by those.
    fn rows<E: Element<Acc = A>>(
        mut self,
        rows: &Rows,
        (from, to): (Reads<E>, Writes<E>),
        follows: Follows<A>,
        parameters: Parameters<A>,
    ) -> Result<()> {
        let (channels, len) = (rows.one.channels(), rows.one.len());
        let (bits, all) = (self.cut.bits(), self.by);
        let sums = Ptr::at(self.room.address() + self.cut.room());
        for group in 0..rows.groups {
            let first = group * channels;
            let [mean, mean_rest, invstd, weight, bias] =
                [all.mean, all.mean_rest, all.invstd, all.weight, all.bias]
                    .map(|array| behind(array, first));
            self.by = Channels { mean, mean_rest, invstd, weight, bias };
            let element = |row: usize| (row * rows.groups + group) * len;
            let of_rows = Parameters { sums, total: Ptr::NULL, ..parameters };
            for row in 0..rows.each {
                self.sums(from.from(element(row), bits), follows)?;
                self.finalize(Parameters { accumulate: (row > 0).into(), ..of_rows }, true)?;
            }
            let [v_weight, v_bias, gg_weight, gg_bias] =
                [parameters.v_weight, parameters.v_bias, parameters.gg_weight, parameters.gg_bias]
                    .map(|array| behind(array, first));
            let total =
                Parameters { total: sums, v_weight, v_bias, gg_weight, gg_bias, ..parameters };
            self.finalize(total, false)?;
            for row in (0..rows.each).filter(|_| to.any()) {
                let (from, to) = (from.from(element(row), bits), to.from(element(row)));
                self.apply(from, follows, parameters.batch, to)?;
            }
        }
        Ok(())
    }
}
