//! Buffers for every argument of a call, by the walk that its check takes: a new argument is made, lent
//! and looked at without a line here.
use super::run::{narrow, widen};
use batchnorm::{Argument, Arguments, Element, Memory, Result, Visitor};
use std::any::Any;
use std::collections::BTreeMap;

/// A buffer and what it held at first.
trait Buffer {
    fn any(&mut self) -> &mut dyn Any;
    fn values(&self) -> Vec<f64>;
    fn before(&self) -> &[f64];
}

struct Typed<M: Memory, T: Element> {
    buf: M::Buf<T>,
    before: Vec<f64>,
    at: M,
}

impl<M: Memory, T: Element> Buffer for Typed<M, T> {
    fn any(&mut self) -> &mut dyn Any {
        &mut self.buf
    }
    fn values(&self) -> Vec<f64> {
        widen(&self.at.download(M::view(&self.buf)).unwrap())
    }
    fn before(&self) -> &[f64] {
        &self.before
    }
}

/// A call's buffers.
#[derive(Default)]
pub struct Held(BTreeMap<&'static str, (Argument, Box<dyn Buffer>)>);

struct Bytes<M: Memory> {
    buf: M::Buf<u8>,
    before: Vec<f64>,
    at: M,
}

impl<M: Memory> Buffer for Bytes<M> {
    fn any(&mut self) -> &mut dyn Any {
        &mut self.buf
    }
    fn values(&self) -> Vec<f64> {
        self.at.download(M::view(&self.buf)).unwrap().into_iter().map(f64::from).collect()
    }
    fn before(&self) -> &[f64] {
        &self.before
    }
}

impl Held {
    /// A buffer for each argument, given or not, that `give` has values for, where it says; it is told
    /// whether the argument is one that is always there.
    pub fn new<'a, M: Memory>(
        args: &mut impl Arguments<'a, M>,
        give: impl FnMut(Argument, bool) -> Option<(M, Vec<f64>)>,
    ) -> Self {
        let mut make = Make { give, held: Self::default() };
        args.walk(&mut make).unwrap();
        make.held
    }
    /// Has the arguments be these buffers: those that have none are left out.
    pub fn lend<'a, M: Memory>(
        &'a mut self,
        args: &mut impl Arguments<'a, M>,
        views: impl Views<M>,
    ) {
        let held = self.0.iter_mut().map(|(name, (_, buffer))| (*name, buffer.any())).collect();
        args.walk(&mut Lend { held, views }).unwrap();
    }
    pub fn arguments(&self) -> impl Iterator<Item = Argument> {
        self.0.values().map(|(argument, _)| *argument)
    }
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
    /// What each holds, inputs too.
    pub fn values(&self) -> Vec<(Argument, Vec<f64>)> {
        self.0.values().map(|(argument, buffer)| (*argument, buffer.values())).collect()
    }
    /// Whether nothing has been written, bit for bit.
    pub fn is_untouched(&self) -> bool {
        let bits = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        self.0.values().all(|(_, buffer)| bits(&buffer.values()) == bits(buffer.before()))
    }
}

struct Make<F> {
    give: F,
    held: Held,
}

impl<F> Make<F> {
    fn make<M: Memory, T: Element>(&mut self, argument: Argument, always: bool) -> Result<()>
    where
        F: FnMut(Argument, bool) -> Option<(M, Vec<f64>)>,
    {
        if let Some((at, values)) = (self.give)(argument, always) {
            let values: Vec<T> = values.into_iter().map(narrow).collect();
            let (buf, before) = (at.upload(&values)?, widen(&values));
            let buffer = Box::new(Typed::<M, T> { buf, before, at });
            let twice = self.held.0.insert(argument.name, (argument, buffer));
            assert!(twice.is_none(), "two arguments are called {}", argument.name);
        }
        Ok(())
    }
}

impl<'a, M: Memory, F: FnMut(Argument, bool) -> Option<(M, Vec<f64>)>> Visitor<'a, M> for Make<F> {
    fn read<T: Element>(&mut self, argument: Argument, _: &mut M::View<'a, T>) -> Result<()> {
        self.make::<M, T>(argument, true)
    }
    fn write<T: Element>(&mut self, argument: Argument, _: &mut M::ViewMut<'a, T>) -> Result<()> {
        self.make::<M, T>(argument, true)
    }
    fn read_bytes(&mut self, argument: Argument, _: &mut M::View<'a, u8>) -> Result<()> {
        if let Some((at, values)) = (self.give)(argument, true) {
            // Of a mask: both kinds of places, the first of them one that counts.
            let bytes: Vec<u8> = (0..values.len()).map(|i| u8::from(i % 3 != 1)).collect();
            let (buf, before) = (at.upload(&bytes)?, bytes.into_iter().map(f64::from).collect());
            self.held.0.insert(argument.name, (argument, Box::new(Bytes::<M> { buf, before, at })));
        }
        Ok(())
    }
    fn read_some<T: Element>(
        &mut self,
        argument: Argument,
        _: &mut Option<M::View<'a, T>>,
    ) -> Result<()> {
        self.make::<M, T>(argument, false)
    }
    fn write_some<T: Element>(
        &mut self,
        argument: Argument,
        _: &mut Option<M::ViewMut<'a, T>>,
    ) -> Result<()> {
        self.make::<M, T>(argument, false)
    }
}

/// How buffers become views.
pub trait Views<M: Memory> {
    fn view<'a, T: Element>(&self, argument: Argument, buf: &'a M::Buf<T>) -> M::View<'a, T>;
    fn bytes<'a>(&self, argument: Argument, buf: &'a M::Buf<u8>) -> M::View<'a, u8>;
    fn view_mut<'a, T: Element>(
        &self,
        argument: Argument,
        buf: &'a mut M::Buf<T>,
    ) -> M::ViewMut<'a, T>;
}

/// All of them.
pub struct Whole;

impl<M: Memory> Views<M> for Whole {
    fn view<'a, T: Element>(&self, _: Argument, buf: &'a M::Buf<T>) -> M::View<'a, T> {
        M::view(buf)
    }
    fn bytes<'a>(&self, _: Argument, buf: &'a M::Buf<u8>) -> M::View<'a, u8> {
        M::view(buf)
    }
    fn view_mut<'a, T: Element>(&self, _: Argument, buf: &'a mut M::Buf<T>) -> M::ViewMut<'a, T> {
        M::view_mut(buf)
    }
}

struct Lend<'a, V> {
    held: BTreeMap<&'static str, &'a mut dyn Any>,
    views: V,
}

impl<'a, V> Lend<'a, V> {
    fn take<M: Memory, T: Element>(&mut self, argument: Argument) -> Option<&'a mut M::Buf<T>> {
        let any = self.held.remove(argument.name)?;
        Some(any.downcast_mut().expect("the type that it was made of"))
    }
}

impl<'a, M: Memory, V: Views<M>> Visitor<'a, M> for Lend<'a, V> {
    fn read<T: Element>(&mut self, argument: Argument, view: &mut M::View<'a, T>) -> Result<()> {
        let buf = self.take::<M, T>(argument).expect("a buffer for what is required");
        *view = self.views.view(argument, buf);
        Ok(())
    }
    fn write<T: Element>(
        &mut self,
        argument: Argument,
        view: &mut M::ViewMut<'a, T>,
    ) -> Result<()> {
        let buf = self.take::<M, T>(argument).expect("a buffer for what is required");
        *view = self.views.view_mut(argument, buf);
        Ok(())
    }
    fn read_bytes(&mut self, argument: Argument, view: &mut M::View<'a, u8>) -> Result<()> {
        let any = self.held.remove(argument.name).expect("a buffer for what is required");
        let buf: &'a mut M::Buf<u8> = any.downcast_mut().expect("bytes");
        *view = self.views.bytes(argument, buf);
        Ok(())
    }
    fn read_some<T: Element>(
        &mut self,
        argument: Argument,
        view: &mut Option<M::View<'a, T>>,
    ) -> Result<()> {
        *view = self.take::<M, T>(argument).map(|buf| self.views.view(argument, buf));
        Ok(())
    }
    fn write_some<T: Element>(
        &mut self,
        argument: Argument,
        view: &mut Option<M::ViewMut<'a, T>>,
    ) -> Result<()> {
        *view = self.take::<M, T>(argument).map(|buf| self.views.view_mut(argument, buf));
        Ok(())
    }
}
