//! Rules of running statistics, for tests.
use batchnorm::{EmptyBatch, Memory, NonFinite, OneValue, Real, Running, RunningRules, Variance};

/// How a batch moves running statistics, where it is not as [`Running::new`] has it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// That of the mean if absent.
    pub var_factor: Option<f64>,
    pub averages: bool,
    pub variance: Variance,
    pub one_value: OneValue,
    pub empty_batch: EmptyBatch,
    pub non_finite: NonFinite,
    /// How many updates each channel has skipped before.
    pub skipped: Option<f64>,
}

impl Rules {
    /// What a request says of running statistics by these rules and with this weight of the new mean.
    pub fn of_request(&self, factor: f64) -> RunningRules {
        RunningRules::default()
            .variance(self.variance)
            .empty_batch(self.empty_batch)
            .non_finite(self.non_finite)
            .separate_factors(self.var_factor.is_some_and(|var_factor| var_factor != factor))
            .factor_per_channel(self.averages && self.skipped.is_some())
    }
    /// Running statistics by these rules.
    pub fn running<'a, M: Memory, P: Real>(
        &self,
        mean: M::ViewMut<'a, P>,
        var: M::ViewMut<'a, P>,
        factor: f64,
        skipped: Option<M::ViewMut<'a, f64>>,
    ) -> Running<'a, M, P> {
        let mut running = Running::new(mean, var, factor)
            .var_factor(self.var_factor.unwrap_or(factor))
            .averages(self.averages)
            .variance(self.variance)
            .empty_batch(self.empty_batch)
            .non_finite(self.non_finite);
        running.skipped = skipped;
        running
    }
}
