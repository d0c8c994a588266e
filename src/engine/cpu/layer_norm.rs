//! Layer normalization: some rows are a task. Sums over rows are made of a task's rows, then of the tasks in
//! their order, so that they do not depend on the number of threads.
use super::Cpu;
use super::kernels::rows::{Row, Statistics, Sums};
use super::policy::TASK;
use super::simd::Simd;
use crate::engine::layer_norm::{ByRow, Forward};
use crate::engine::{LayerNormBackward, LayerNormForward};
use crate::{Element, Host, Real, Result, Shape};
use rayon::prelude::*;

/// Rows of a task that sums over them, at least, and the number of such tasks, at most: each keeps two
/// sums for every feature.
const SUMMED_ROWS: usize = 4;
const SUMMED_TASKS: usize = 64;

/// Runs tasks by all threads; one by this.
fn run<T: Send>(mut tasks: Vec<T>, task: impl Fn(&mut T) + Send + Sync) {
    match &mut tasks[..] {
        [one] => task(one),
        _ => tasks.par_iter_mut().for_each(task),
    }
}

/// Some rows of a forward.
struct Rows<'a, E: Element> {
    x: &'a [E],
    y: &'a mut [E],
    /// Mean, its rest and root, one of each per row.
    saved: Option<[&'a mut [E::Acc]; 3]>,
}

pub(super) fn forward<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: LayerNormForward<'_, Host, E>,
) -> Result<()> {
    args.check(&Host, shape)?;
    let simd = cpu.simd()?;
    let mut saved = args.open(cpu, shape)?.map(|opened| opened.filled().by_row_mut());
    let LayerNormForward { x, weight, bias, eps, eps_rule, y, .. } = args;
    let features = shape.channels();
    if let Some(saved) = &mut saved {
        match weight {
            Some(weight) => saved.weight.copy_from_slice(weight),
            None => saved.weight.fill(Real::from_f64(1.0)),
        }
    }
    let rows = TASK.div_ceil(features);
    let mut saved = saved.map(|ByRow { mean, mean_rest, root, .. }| {
        [mean, mean_rest, root].map(|array| array.chunks_mut(rows))
    });
    let parts = x.chunks(rows * features).zip(y.chunks_mut(rows * features));
    let tasks = parts.map(|(x, y)| {
        let saved =
            saved.as_mut().map(|saved| saved.each_mut().map(|of| of.next().unwrap_or_default()));
        Rows { x, y, saved }
    });
    run(tasks.collect(), |Rows { x, y, saved }| {
        simd.vectorize(
            #[inline(always)]
            |simd| {
                let parts = x.chunks_exact(features).zip(y.chunks_exact_mut(features));
                for (n, (x, y)) in parts.enumerate() {
                    let Statistics { mean, rest, std } = Statistics::of(simd, x);
                    let root = eps_rule.root(std, eps);
                    Row::new(eps_rule, eps, mean, rest, root).normalize(simd, x, weight, bias, y);
                    if let Some([means, rests, roots]) = saved {
                        means[n] = Real::from_f64(mean);
                        let rest = mean - means[n].to_f64() + rest;
                        rests[n] = Real::from_f64(if rest.is_finite() { rest } else { 0.0 });
                        roots[n] = Real::from_f64(root);
                    }
                }
            },
        );
    });
    Ok(())
}

/// Some rows of a backward, from row `first` on.
struct Gradients<'a, E> {
    first: usize,
    x: &'a [E],
    grad_y: &'a [E],
    grad_x: Option<&'a mut [E]>,
    sums: Option<Sums<'a>>,
}

impl<E: Element> Gradients<'_, E> {
    #[inline(always)]
    fn run(&mut self, simd: Simd, forward: &Forward, saved: &ByRow<&[E::Acc]>) {
        let Self { first, x, grad_y, grad_x, sums } = self;
        let features = saved.weight.len();
        if let Some(Sums { g, g_xhat }) = sums {
            g.fill(0.0);
            g_xhat.fill(0.0);
        }
        let parts = x.chunks_exact(features).zip(grad_y.chunks_exact(features));
        for (n, (x, grad_y)) in parts.enumerate() {
            let of = |array: &[E::Acc]| array[*first + n].to_f64();
            let (mean, rest, root) = (of(saved.mean), of(saved.mean_rest), of(saved.root));
            let row = Row::new(forward.rule, forward.eps, mean, rest, root);
            if let Some(sums) = sums {
                row.add_to(simd, x, grad_y, sums);
            }
            if let Some(grad_x) = grad_x {
                let grad_x = &mut grad_x[n * features..][..features];
                row.gradient(simd, saved.weight, x, grad_y, grad_x);
            }
        }
    }
}

pub(super) fn backward<E: Element>(
    cpu: &Cpu,
    shape: &Shape,
    mut args: LayerNormBackward<'_, Host, E>,
) -> Result<()> {
    args.check(cpu, shape)?;
    let simd = cpu.simd()?;
    let (forward, saved) = args.saved.made()?;
    let saved = &saved.by_row();
    let LayerNormBackward { x, grad_y, grad_x, grad_weight, grad_bias, accumulate, .. } = args;
    let (features, all) = (shape.channels(), shape.len() / shape.channels());
    let sums = grad_weight.is_some() || grad_bias.is_some();
    let rows = TASK.div_ceil(features);
    let rows = if sums { rows.max(SUMMED_ROWS).max(all.div_ceil(SUMMED_TASKS)) } else { rows };
    let count = all.div_ceil(rows);
    let room = if sums { 2 * features * count } else { 0 };
    cpu.with_workspace(room, |room| {
        let mut partials = room.chunks_exact_mut(2 * features);
        let mut grad_x = grad_x.map(|grad_x| grad_x.chunks_mut(rows * features));
        let parts = x.chunks(rows * features).zip(grad_y.chunks(rows * features)).enumerate();
        let tasks = parts.map(|(task, (x, grad_y))| {
            let grad_x = grad_x.as_mut().and_then(Iterator::next);
            let sums = partials.next().map(|partials| {
                let (g, g_xhat) = partials.split_at_mut(features);
                Sums { g, g_xhat }
            });
            Gradients { first: task * rows, x, grad_y, grad_x, sums }
        });
        run(tasks.collect(), |task| {
            simd.vectorize(
                #[inline(always)]
                |simd| task.run(simd, forward, saved),
            );
        });
        for (gradient, from) in [(grad_bias, 0), (grad_weight, features)] {
            let Some(gradient) = gradient else { continue };
            for (c, gradient) in gradient.iter_mut().enumerate() {
                let sum: f64 = (0..count).map(|task| room[2 * features * task + from + c]).sum();
                let before = if accumulate { gradient.to_f64() } else { 0.0 };
                *gradient = Real::from_f64(before + sum);
            }
        }
    });
    Ok(())
}
