//! A parameter brought within its constraint.
use super::{Arguments, Check, Op, Request, Visitor, channel};
use crate::{Constraint, Memory, Real, Result};

/// Arguments of [`Engine::constrain`](crate::Engine::constrain).
#[non_exhaustive]
pub struct Constrain<'a, M: Memory, P: Real> {
    /// Any length: the parameter, before and after.
    pub value: M::ViewMut<'a, P>,
    /// What it is held to.
    pub constraint: Constraint,
}

impl<'a, M: Memory, P: Real> Constrain<'a, M, P> {
    /// Of `value`, of any length.
    pub fn new(value: M::ViewMut<'a, P>, constraint: Constraint) -> Self {
        Self { value, constraint }
    }
    /// What is asked of an engine.
    pub fn request(&self) -> Request {
        Request::new(Op::Constrain, P::DTYPE)
    }
    /// The same for a shorter time.
    pub fn reborrow(&mut self) -> Constrain<'_, M, P> {
        let Self { value, constraint } = self;
        Constrain { value: M::reborrow_mut(value), constraint: *constraint }
    }
    /// The check every engine makes first, for the memory that it works on. What comes back is the
    /// length of the parameter.
    pub(in crate::engine) fn check(&mut self, on: &M) -> Result<usize> {
        let channels = M::len(&M::as_view(&self.value));
        self.walk(&mut Check { on, elements: 0, channels })?;
        self.constraint.check()?;
        Ok(channels)
    }
}

impl<'a, M: Memory, P: Real> Arguments<'a, M> for Constrain<'a, M, P> {
    #[inline]
    fn walk<V: Visitor<'a, M>>(&mut self, visitor: &mut V) -> Result<()> {
        let Self { value, constraint: _ } = self;
        visitor.write(channel("value"), value)
    }
}
