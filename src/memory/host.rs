use super::Memory;
use super::unwritten::unwritten;
use crate::{Error, Plain, Result};
use std::ops::Range;

/// Bytes from which on the allocator is asked whether it has them, before it is told to get them: as
/// the latter it would end the process. Memory of less fails where nothing else succeeds either.
const LARGE: usize = 1 << 20;

/// `len` times this value, or an error where there is no room for it.
pub(crate) fn filled<T: Plain>(len: usize, value: T) -> Result<Vec<T>> {
    // Asked apart, so that zeros still come from the system as they are, untouched.
    if len.saturating_mul(size_of::<T>()) >= LARGE {
        reserved::<T>(len)?;
    }
    Ok(vec![value; len])
}

fn copied<T: Plain>(values: &[T]) -> Result<Vec<T>> {
    let mut copy = reserved(values.len())?;
    copy.extend_from_slice(values);
    Ok(copy)
}

pub(super) fn reserved<T>(len: usize) -> Result<Vec<T>> {
    let mut memory = Vec::new();
    let size = size_of::<T>();
    memory.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { len, size })?;
    Ok(memory)
}

/// Ordinary memory: `Vec<T>`, `&[T]`, `&mut [T]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

impl Memory for Host {
    type Buf<T: Plain> = Vec<T>;
    type View<'a, T: Plain> = &'a [T];
    type ViewMut<'a, T: Plain> = &'a mut [T];

    const BY_ADDRESS: bool = false;

    fn part<T: Plain>(buf: &Vec<T>, range: Range<usize>) -> Option<&[T]> {
        buf.get(range)
    }
    fn zeros<T: Plain>(&self, len: usize) -> Result<Vec<T>> {
        filled(len, T::default())
    }
    fn unwritten<T: Plain>(&self, len: usize) -> Result<Vec<T>> {
        unwritten(len)
    }
    fn upload<T: Plain>(&self, host: &[T]) -> Result<Vec<T>> {
        copied(host)
    }
    fn write<T: Plain>(&self, host: &[T], to: &mut [T]) -> Result<()> {
        if host.len() != to.len() {
            return Err(Error::Length { what: "host", expected: to.len(), got: host.len() });
        }
        to.copy_from_slice(host);
        Ok(())
    }
    fn zero<T: Plain>(&self, to: &mut [T]) -> Result<()> {
        to.fill(T::default());
        Ok(())
    }
    fn copy<T: Plain>(&self, from: &[T], to: &mut [T]) -> Result<()> {
        if from.len() != to.len() {
            return Err(Error::Length { what: "from", expected: to.len(), got: from.len() });
        }
        to.copy_from_slice(from);
        Ok(())
    }
    fn download<T: Plain>(&self, view: &[T]) -> Result<Vec<T>> {
        copied(view)
    }

    fn view<T: Plain>(buf: &Vec<T>) -> &[T] {
        buf
    }
    fn view_mut<T: Plain>(buf: &mut Vec<T>) -> &mut [T] {
        buf
    }
    fn reborrow<'b, T: Plain>(view: &'b &[T]) -> &'b [T] {
        view
    }
    fn reborrow_mut<'b, T: Plain>(view: &'b mut &mut [T]) -> &'b mut [T] {
        view
    }
    fn as_view<'b, T: Plain>(view: &'b &mut [T]) -> &'b [T] {
        view
    }
    fn slice<'b, T: Plain>(view: &'b &[T], range: Range<usize>) -> Option<&'b [T]> {
        view.get(range)
    }
    fn slice_mut<'b, T: Plain>(view: &'b mut &mut [T], range: Range<usize>) -> Option<&'b mut [T]> {
        view.get_mut(range)
    }
    fn split_at_mut<'b, T: Plain>(
        view: &'b mut &mut [T],
        mid: usize,
    ) -> Option<(&'b mut [T], &'b mut [T])> {
        view.split_at_mut_checked(mid)
    }
    fn len<T: Plain>(view: &&[T]) -> usize {
        view.len()
    }
    fn first_above_1(view: &&[u8]) -> Option<(usize, u8)> {
        // Without a way out of the loop it is as fast as memory.
        if view.iter().fold(0, |all, value| all | value) < 2 {
            return None;
        }
        view.iter().copied().enumerate().find(|(_, value)| *value > 1)
    }
}
