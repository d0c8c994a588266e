//! Kinds `population` and `population_network`: the statistics of a whole data set, of one layer and of two
//! behind each other.
use super::super::super::tolerance::Kind;
use super::super::{Document, narrow, widen};
use super::Outcome;
use super::vectors::{note, note_as, upload};
use anyhow::Result;
use batchnorm::{
    BatchNorm, Config, Element, Engine, Memory, PopulationRule, PopulationStatistics, Shape,
};

pub fn run<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for (rule, names) in [
        (PopulationRule::Exact, &[("mean", "var"), ("precise_mean", "precise_var")][..]),
        (PopulationRule::ExactUnbiased, &[("mean", "var_unbiased")]),
        (PopulationRule::UpdateBn, &[("update_bn_mean", "update_bn_var")]),
    ] {
        let gathered = gather::<G, E>(engine, document, rule);
        let Some(population) = outcome.is_served(rule.name(), gathered)? else { continue };
        let found = population.finish()?;
        for (mean, var) in names {
            if !outcome.computed.contains_key(*mean) {
                note(&mut outcome, document, mean, found.mean.clone())?;
            }
            note(&mut outcome, document, var, found.var.clone())?;
        }
    }
    Ok(outcome)
}

fn gather<G: Engine, E: Element>(
    engine: &G,
    document: &Document,
    rule: PopulationRule,
) -> Result<PopulationStatistics<G::Memory>> {
    let channels = document.shape_of("x_0")?.channels();
    let mut population = PopulationStatistics::new(engine, channels, rule)?;
    for i in 0..document.count("batches")? {
        let (name, shape) = (format!("x_{i}"), document.shape_of(&format!("x_{i}"))?);
        let x = upload::<G, E>(engine, document.values(&name)?)?;
        population.add::<E, G>(engine, &shape, G::Memory::view(&x))?;
    }
    Ok(population)
}

/// A batch normalization, a linear layer and another batch normalization.
struct Network<'a, G: Engine, E: Element> {
    engine: &'a G,
    document: &'a Document,
    first: BatchNorm<E::Acc, G>,
    second: BatchNorm<E::Acc, G>,
}

impl<'a, G: Engine, E: Element> Network<'a, G, E> {
    fn new(engine: &'a G, document: &'a Document) -> Result<Self> {
        let layer = |number: usize| -> Result<BatchNorm<E::Acc, G>> {
            let (weight, bias) = (format!("weight_{number}"), format!("bias_{number}"));
            let config = Config::default().eps(document.number("eps")?);
            let channels = document.values(&weight)?.len();
            let mut bn = BatchNorm::new(engine, channels, config)?;
            for (name, param) in bn.named_parameters_mut() {
                let of = if name == "weight" { &weight } else { &bias };
                param.value = upload::<G, E::Acc>(engine, document.values(of)?)?;
            }
            Ok(bn)
        };
        Ok(Self { engine, document, first: layer(1)?, second: layer(2)? })
    }
    fn population(&self, bn: &BatchNorm<E::Acc, G>) -> Result<PopulationStatistics<G::Memory>> {
        Ok(PopulationStatistics::new(self.engine, bn.channels(), PopulationRule::Exact)?)
    }
    /// What the linear layer makes of a batch, on the host.
    fn linear(&self, y: &[E]) -> Result<(Shape, Vec<E>)> {
        let weight = self.document.values("linear")?;
        let (inputs, outputs) = (self.first.channels(), self.second.channels());
        let wide = |v: &E| widen(*v);
        let row = |y: &[E], o: usize| -> f64 {
            y.iter().zip(&weight[o * inputs..]).map(|(y, w)| wide(y) * w).sum()
        };
        let z = y.chunks(inputs).flat_map(|y| (0..outputs).map(move |o| narrow(row(y, o))));
        Ok((Shape::new(&[y.len() / inputs, outputs], 1)?, z.collect()))
    }
    /// A batch through the first layer and the linear one: `observe` gets the input of the first.
    fn before_second(
        &mut self,
        name: &str,
        observe: Option<&mut PopulationStatistics<G::Memory>>,
    ) -> Result<(Shape, Vec<E>)> {
        let shape = self.document.shape_of(name)?;
        let x = upload::<G, E>(self.engine, self.document.values(name)?)?;
        if let Some(population) = observe {
            population.add::<E, G>(self.engine, &shape, G::Memory::view(&x))?;
        }
        let (y, _) = self.first.forward(&shape, G::Memory::view(&x))?;
        let y = self.engine.memory().download(G::Memory::view(&y))?;
        self.linear(&y)
    }
    fn y(&mut self) -> Result<Vec<f64>> {
        self.first.eval();
        self.second.eval();
        let (shape, z) = self.before_second("x_eval", None)?;
        let z = self.engine.memory().upload(&z)?;
        let y = self.second.infer::<E>(&shape, G::Memory::view(&z))?;
        let y = self.engine.memory().download(G::Memory::view(&y))?;
        Ok(y.into_iter().map(widen).collect())
    }
}

pub fn run_network<G: Engine, E: Element>(engine: &G, document: &Document) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for in_order in [false, true] {
        let pass = if in_order { "in_order" } else { "one_pass" };
        let done = network::<G, E>(engine, document, in_order, &mut outcome);
        outcome.is_served(pass, done)?;
    }
    Ok(outcome)
}

fn network<G: Engine, E: Element>(
    engine: &G,
    document: &Document,
    in_order: bool,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut net = Network::<G, E>::new(engine, document)?;
    let [mut first, mut second] = [net.population(&net.first)?, net.population(&net.second)?];
    let batches = document.count("batches")?;
    let pass = if in_order { "in_order" } else { "one_pass" };
    for i in 0..batches {
        let (shape, z) = net.before_second(&format!("x_{i}"), Some(&mut first))?;
        if !in_order {
            let z = engine.memory().upload(&z)?;
            second.add::<E, G>(engine, &shape, G::Memory::view(&z))?;
        }
    }
    first.apply_to(&mut net.first)?;
    net.first.eval();
    if in_order {
        for i in 0..batches {
            let (shape, z) = net.before_second(&format!("x_{i}"), None)?;
            let z = engine.memory().upload(&z)?;
            second.add::<E, G>(engine, &shape, G::Memory::view(&z))?;
        }
    } else {
        let found = first.finish()?;
        note(outcome, document, "mean_1", found.mean)?;
        note(outcome, document, "var_1", found.var)?;
    }
    second.apply_to(&mut net.second)?;
    let found = second.finish()?;
    note(outcome, document, &format!("{pass}_mean_2"), found.mean)?;
    note(outcome, document, &format!("{pass}_var_2"), found.var)?;

    let y = net.y()?;
    let of_y = (document.dtype, Kind::Element, 1.0);
    note_as(outcome, document, &format!("y_{pass}"), y, of_y)
}
