//! Who makes a call: with all that it may be given, in memory that is seen to stay as it was if it is refused.
use super::blank::Blank;
use super::call::{Held, Views};
use super::faults::{Fault, On, RowsOn, pattern};
use super::run::{self, SavedOn};
use batchnorm::{
    Argument, Arguments, Element, Engine, Error, Memory, Op, Real, Result, Role, Saved, Shape,
};

/// A call to make.
pub struct Desk<'e, G: Engine> {
    pub on: On<'e, G>,
    pub fault: Fault,
    /// Elements and channels.
    pub sizes: (usize, usize),
}

/// What has come of a call.
pub struct Called {
    pub held: Held,
    pub result: Result<()>,
}

impl Called {
    pub fn refused(self, fault: &Fault) -> Option<Error> {
        let error = self.result.err();
        assert!(error.is_none() || self.held.is_untouched(), "{fault:?}: {error:?}");
        error
    }
}

/// A call of `$desk`: its arguments are made once to see which buffers they want (`$content`, by the walk
/// over them), and once more to lend them these.
macro_rules! call {
    ($desk:ident, $views:ident, |$blank:ident: $e:ty| $make:expr, |$engine:ident, $args:ident| $run:expr) => {{
        let content = |_: Argument| None;
        call!($desk, $views, |$blank: $e| $make, content, |$engine, $args| $run)
    }};
    ($desk:ident, $views:ident, |$blank:ident: $e:ty| $make:expr, $content:ident, |$engine:ident, $args:ident| $run:expr) => {{
        let mut $blank = Blank::<$e, G>::new($desk.on.engine);
        let mut held = $desk.held(&mut $make, $content);
        let mut $args = $make;
        held.lend(&mut $args, $views);
        let $engine = $desk.on.engine;
        let result = $run;
        Called { held, result }
    }};
}

impl<G: Engine> Desk<'_, G> {
    /// Buffers for all that may be given, by a pattern where `content` says nothing else.
    pub fn held<'a>(
        &self,
        args: &mut impl Arguments<'a, G::Memory>,
        content: impl Fn(Argument) -> Option<Vec<f64>>,
    ) -> Held {
        let Self { on: On { engine, elsewhere }, fault, sizes } = self;
        Held::new::<G::Memory>(args, |argument, _| {
            let Argument { name, role, .. } = argument;
            let not_plain = role == Role::Sums || name == "grad_residual";
            let not_plain = not_plain || ["v_residual", "gg_residual"].contains(&name);
            if fault.without == name || fault.plain && not_plain {
                return None;
            }
            let at = elsewhere.filter(|(there, _)| *there == name);
            let at = at.map_or(engine.memory(), |(_, memory)| memory).clone();
            let by = if fault.length.0 == name { fault.length.1 } else { 0 };
            let right = || pattern(role.len(sizes.0, sizes.1));
            let mut values = content(argument).unwrap_or_else(right);
            values.resize(values.len().checked_add_signed(by).unwrap(), 0.5);
            if fault.late == name {
                values.insert(0, 0.5);
            }
            Some((at, values))
        })
    }

    pub fn train<E: Element>(
        &self,
        shape: &Shape,
        saved: Option<&mut SavedOn<G, E>>,
        views: impl Views<G::Memory>,
    ) -> Called {
        call!(self, views, |blank: E| blank.train(self.fault), |engine, args| {
            args.saved = saved;
            engine.forward_train(shape, args)
        })
    }
    pub fn eval<E: Element>(
        &self,
        shape: &Shape,
        saved: Option<&mut SavedOn<G, E>>,
        views: impl Views<G::Memory>,
    ) -> Called {
        call!(self, views, |blank: E| blank.eval(self.fault), |engine, args| {
            args.saved = saved;
            engine.forward_eval(shape, args)
        })
    }
    pub fn backward<E: Element>(
        &self,
        shape: &Shape,
        saved: &SavedOn<G, E>,
        views: impl Views<G::Memory>,
    ) -> Called {
        call!(self, views, |blank: E| blank.backward(self.fault, saved), |engine, args| engine
            .backward(shape, args))
    }
    pub fn double_backward<E: Element>(
        &self,
        shape: &Shape,
        saved: &SavedOn<G, E>,
        views: impl Views<G::Memory>,
    ) -> Called {
        call!(self, views, |blank: E| blank.double_backward(saved), |engine, args| engine
            .double_backward(shape, args))
    }
    pub fn layer_norm<E: Element>(
        &self,
        shape: &Shape,
        saved: Option<&mut RowsOn<G, E>>,
        views: impl Views<G::Memory>,
    ) -> Called {
        call!(self, views, |blank: E| blank.layer_norm(self.fault), |engine, args| {
            args.saved = saved;
            engine.layer_norm(shape, args)
        })
    }
    pub fn layer_norm_backward<E: Element>(
        &self,
        shape: &Shape,
        saved: &RowsOn<G, E>,
        views: impl Views<G::Memory>,
    ) -> Called {
        call!(self, views, |blank: E| blank.layer_norm_backward(saved), |engine, args| engine
            .layer_norm_backward(shape, args))
    }
    pub fn stats<E: Element>(&self, shape: &Shape, views: impl Views<G::Memory>) -> Called {
        call!(self, views, |blank: E| blank.stats(self.fault), |engine, args| engine
            .stats(shape, args))
    }
    /// `records` apart, as their content says how many values there are.
    pub fn merge<P: Real>(&self, records: &[f64], views: impl Views<G::Memory>) -> Called {
        let content = |a: Argument| (a.role == Role::Records).then(|| records.to_vec());
        call!(self, views, |blank: P| blank.merge(self.fault), content, |engine, args| engine
            .merge_stats(args))
    }
    pub fn optimizer_step<E: Element>(&self, views: impl Views<G::Memory>) -> Called {
        call!(self, views, |blank: E| blank.optimizer_step(), |engine, args| engine
            .optimizer_step(args))
    }
    pub fn regularize<E: Element>(&self, views: impl Views<G::Memory>) -> Called {
        call!(self, views, |blank: E| blank.regularize(), |engine, args| engine.regularize(args))
    }
    pub fn renormalize<E: Element>(&self, views: impl Views<G::Memory>) -> Called {
        let fault = self.fault;
        call!(self, views, |blank: E| blank.renormalize(fault), |engine, args| engine
            .renormalize(args))
    }
    pub fn renormalize_backward<E: Element>(&self, views: impl Views<G::Memory>) -> Called {
        call!(self, views, |blank: E| blank.renormalize_backward(), |engine, args| engine
            .renormalize_backward(args))
    }
    pub fn constrain<E: Element>(&self, views: impl Views<G::Memory>) -> Called {
        call!(self, views, |blank: E| blank.constrain(), |engine, args| engine.constrain(args))
    }
}
