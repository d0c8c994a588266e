//! What the sums of a channel make of its elements: every result is a combination of `v_x`, `g`, xhat, 1 and
//! the curved part, with coefficients of the channel.
use super::super::kernels::double_backward::{FIELDS, FORWARD, SUMS};
use super::super::plan::Plan;
use super::super::table::{Fields, FieldsMut, finite};
use crate::Real;
use std::ops::Range;

/// What is known of a channel before there are sums.
#[derive(Debug, Clone, Copy)]
pub(super) struct Channel {
    pub mean: f64,
    pub rest: f64,
    pub invstd: f64,
    pub weight: f64,
    pub bias: f64,
    pub v_weight: f64,
    pub v_bias: f64,
    /// By a mask.
    pub counted: Option<Counted>,
}

/// Of which values the statistics of a channel are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counted {
    pub count: f64,
    /// What divides their sums, and the share of that which is no value.
    pub n: f64,
    pub share: f64,
}

/// A channel's coefficients, and its gradients of weight and bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coefs {
    /// `weight * invstd`: of `v_x` in u.
    pub scale: f64,
    /// Of xhat, and alone, in u.
    pub u_xhat: f64,
    pub u_one: f64,
    /// Of `v_x`, `g`, xhat, and alone, in `gg_x`, whose curved part has `scale`.
    pub x_v: f64,
    pub x_g: f64,
    pub x_xhat: f64,
    pub x_one: f64,
    pub gg_weight: f64,
    pub gg_bias: f64,
}

impl Channel {
    /// By the sums over the `m` values of the channel, through which gradients flow if the statistics were
    /// those of the `batch`.
    #[inline]
    pub fn coefs(&self, sums: &[f64; SUMS], m: f64, batch: bool) -> Coefs {
        let each = 1.0 / m;
        let Self { invstd, weight, v_weight, v_bias, .. } = *self;
        if let Some(counted) = self.counted.filter(|_| batch) {
            return self.masked_coefs(sums, counted);
        }
        let [g, g_xhat, v, v_xhat, v_g, q, q_xhat, q_xhat_2, q_v, q_v_xhat, q_r, q_r_xhat] = *sums;
        let scale = weight * invstd;
        let (u_xhat, u_one) = match batch {
            true => (v_weight - scale * (v_xhat * each), v_bias - scale * (v * each)),
            false => (v_weight, v_bias),
        };
        // Sums of the curved part, and of it times xhat.
        let h = scale * q_v + u_xhat * q_xhat + u_one * q + q_r;
        let h_xhat = scale * q_v_xhat + u_xhat * q_xhat_2 + u_one * q_xhat + q_r_xhat;
        let mut coefs = Coefs {
            scale,
            u_xhat,
            u_one,
            x_v: 0.0,
            x_g: invstd * v_weight,
            x_xhat: 0.0,
            x_one: 0.0,
            gg_weight: invstd * v_g + h_xhat,
            gg_bias: h,
        };
        if batch {
            let kappa = v_g - v * (g * each) - v_xhat * (g_xhat * each);
            // Sums of what flows to xhat, and of it times xhat.
            let t = v_weight * g - scale * (v * (g_xhat * each) + g * (v_xhat * each));
            let t_xhat = v_weight * g_xhat - 2.0 * scale * (v_xhat * (g_xhat * each));
            coefs.x_v = -invstd * (scale * (g_xhat * each));
            coefs.x_g = invstd * (v_weight - scale * (v_xhat * each));
            coefs.x_xhat = -(invstd * ((t_xhat + scale * kappa) * each) + scale * (h_xhat * each));
            coefs.x_one = -(invstd * (t * each) + scale * (h * each));
            coefs.gg_weight = invstd * kappa + h_xhat;
        }
        coefs
    }

    /// The same where not all values count: the sums of `v` and of `v xhat` are over those that do, which alone have
    /// coefficients of `v_x`, xhat and 1 in `gg_x`.
    fn masked_coefs(&self, sums: &[f64; SUMS], counted: Counted) -> Coefs {
        let Self { mean, rest, invstd, weight, v_weight, v_bias, .. } = *self;
        let Counted { count, n, share } = counted;
        let [g, g_xhat, v, v_xhat, v_g, q, q_xhat, q_xhat_2, q_v, q_v_xhat, q_r, q_r_xhat] = *sums;
        let scale = weight * invstd;
        // The mean of xhat over them.
        let shift = if share > 0.0 { invstd * (mean + rest) * share } else { 0.0 };
        let (one, slope) = (v / n, (v_xhat - shift * v) / n);
        let (u_xhat, u_one) = (v_weight - scale * slope, v_bias - scale * one);
        let h = scale * q_v + u_xhat * q_xhat + u_one * q + q_r;
        let h_xhat = scale * q_v_xhat + u_xhat * q_xhat_2 + u_one * q_xhat + q_r_xhat;
        let kappa = v_g - one * g - slope * g_xhat;
        let t = v_weight * g - scale * (slope * g + (v - one * count) * (g_xhat / n));
        let t_xhat = v_weight * g_xhat - 2.0 * scale * slope * g_xhat;
        let x_xhat = -(invstd * ((t_xhat + scale * kappa) / n) + scale * (h_xhat / n));
        let x_v = -invstd * (scale * (g_xhat / n));
        Coefs {
            scale,
            u_xhat,
            u_one,
            x_v,
            x_g: invstd * u_xhat,
            x_xhat,
            x_one: -(invstd * (t / n) + scale * (h / n)) - x_v * one - x_xhat * shift,
            gg_weight: invstd * kappa + h_xhat,
            gg_bias: h,
        }
    }
}

/// The coefficients of some channels in the type that loops compute with, an array for each.
pub(super) type Table<'a, A> = Fields<'a, A, FIELDS>;

impl<A: Real> Table<'_, A> {
    pub fn at(&self, channel: usize) -> [A; FIELDS] {
        self.fields.map(|field| field[channel - self.first])
    }
    /// Those of `N` channels at most.
    pub fn several<const N: usize>(&self, channels: Range<usize>) -> [[A; FIELDS]; N] {
        let mut several = [[A::default(); FIELDS]; N];
        let of = channels.start - self.first..channels.end - self.first;
        for (k, field) in self.fields.iter().enumerate() {
            several.iter_mut().zip(&field[of.clone()]).for_each(|(to, value)| to[k] = *value);
        }
        several
    }
    /// The first `count` fields of every column.
    pub fn expand<const N: usize>(
        &self,
        plan: &Plan,
        cols: &Range<usize>,
        count: usize,
        to: &mut [[A; N]; FIELDS],
    ) {
        let channels = plan.channels_in(cols);
        let of = channels.start - self.first..channels.end - self.first;
        for (field, to) in self.fields.iter().zip(to).take(count) {
            plan.expand(cols, &field[of.clone()], to);
        }
    }
    /// `weight * xhat + bias` as the forward computed it.
    pub fn normalize(&self, channel: usize, x: A) -> A {
        let [mean, _, _, scale, bias, ..] = self.at(channel);
        (x - mean) * scale + bias
    }
}

/// A [`Table`] to write.
pub(super) type TableMut<'a, A> = FieldsMut<'a, A, FIELDS>;

impl<A: Real> TableMut<'_, A> {
    /// What a forward took: the same bits, in the type's own arithmetic.
    pub(super) fn forward(&mut self, channel: usize, of: &Channel) {
        let k = channel - self.channels.start;
        let [mean, rest, invstd] = [of.mean, of.rest, of.invstd].map(A::from_f64);
        let [weight, bias, zero] = [of.weight, of.bias, 0.0].map(A::from_f64);
        let scale = weight * invstd;
        // A scale that is infinite times no rest would be NaN.
        let bias = if rest == zero { bias } else { bias - rest * scale };
        let less = A::from_f64(-finite(of.rest * of.invstd));
        let values = [mean, invstd, less, scale, bias];
        for (field, value) in self.fields.iter_mut().zip(values) {
            field[k] = value;
        }
    }
    pub(super) fn gradient(&mut self, channel: usize, of: &Coefs) {
        let k = channel - self.channels.start;
        let values = [of.u_xhat, of.u_one, of.x_v, of.x_g, of.x_xhat, of.x_one];
        for (field, value) in self.fields[FORWARD..].iter_mut().zip(values) {
            field[k] = A::from_f64(value);
        }
    }
}
