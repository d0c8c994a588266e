//! Tensors with their axes as they lie in memory.
use batchnorm::MemoryOrder;
use candle_core::{Error, Result, Tensor};

/// The order of a tensor's memory; row-major where that is not dense.
pub(crate) fn of(x: &Tensor) -> Result<MemoryOrder> {
    let order = MemoryOrder::new(x.dims(), x.stride());
    order.or_else(|_| MemoryOrder::row_major(x.dims())).map_err(Error::wrap)
}

/// A tensor with its axes in this order, dense: copied only where its memory lies otherwise.
pub(crate) fn apply(order: &MemoryOrder, t: &Tensor) -> Result<Tensor> {
    if order.is_row_major() { t.contiguous() } else { t.permute(order.axes())?.contiguous() }
}

/// The axes of such a tensor as they were.
pub(crate) fn undo(order: &MemoryOrder, t: Tensor) -> Result<Tensor> {
    if order.is_row_major() { Ok(t) } else { t.permute(order.inverse()) }
}
