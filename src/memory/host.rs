use super::Memory;
use crate::{Error, Plain, Result};

/// Ordinary memory: `Vec<T>`, `&[T]`, `&mut [T]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Host;

impl Memory for Host {
    type Buf<T: Plain> = Vec<T>;
    type View<'a, T: Plain> = &'a [T];
    type ViewMut<'a, T: Plain> = &'a mut [T];

    fn zeros<T: Plain>(&self, len: usize) -> Result<Vec<T>> {
        Ok(vec![T::default(); len])
    }
    fn upload<T: Plain>(&self, host: &[T]) -> Result<Vec<T>> {
        Ok(host.to_vec())
    }
    fn write<T: Plain>(&self, host: &[T], to: &mut [T]) -> Result<()> {
        if host.len() != to.len() {
            return Err(Error::Length { what: "host", expected: to.len(), got: host.len() });
        }
        to.copy_from_slice(host);
        Ok(())
    }
    fn download<T: Plain>(&self, view: &[T]) -> Result<Vec<T>> {
        Ok(view.to_vec())
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
    fn len<T: Plain>(view: &&[T]) -> usize {
        view.len()
    }
}
