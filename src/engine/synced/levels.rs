//! In how many steps every rank comes to have the records of all.
use super::Rank;
use crate::Result;

/// How many ranks gather in each step, from neighbours on: their product is `size`, and each is at most `most`
/// where `size` has such divisors.
///
/// A gather takes a time that grows with its ranks, one step after another the time of all of them: 256 ranks in
/// steps of 16 and 16 wait for 30 neighbours each, not for 255.
fn steps(size: usize, most: usize) -> Vec<usize> {
    let (mut rest, mut steps) = (size, vec![]);
    while rest > most {
        let divides = |d: &usize| rest.is_multiple_of(*d);
        let Some(step) = (2..=most.min(rest / 2)).rev().find(divides) else { break };
        steps.push(step);
        rest /= step;
    }
    if rest > 1 || steps.is_empty() {
        steps.push(rest);
    }
    steps
}

/// One step: who gathers, and of which ranks each of them has the record by then.
#[derive(Debug, Clone)]
pub(super) struct Level<C> {
    pub ranks: C,
    /// By rank of these: how many ranks' records are merged in what that one gives, and the first of them; they
    /// lie one after the other.
    pub of: Vec<std::ops::Range<usize>>,
}

/// The steps for this rank, each a collective of its own unless one does. Every rank calls it.
pub(super) fn levels<C: Rank>(whole: &C, most: usize) -> Result<Vec<Level<C>>> {
    let (size, rank) = (whole.size(), whole.rank());
    let steps = steps(size, most);
    let (mut levels, mut stride) = (vec![], 1);
    for &step in &steps {
        let block = stride * step;
        // The ranks that differ from this one in this digit alone.
        let (high, low) = (rank / block, rank % stride);
        let ranks = match steps.len() {
            1 => whole.clone(),
            _ => whole.split(high * stride + low)?,
        };
        let of = (0..step).map(|k| {
            let from = high * block + k * stride;
            from..from + stride
        });
        levels.push(Level { ranks, of: of.collect() });
        stride = block;
    }
    Ok(levels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worlds_are_gathered_in_steps_of_neighbours() {
        let cases: [(usize, usize, &[usize]); 10] = [
            (1, 16, &[1]),
            (2, 16, &[2]),
            (16, 16, &[16]),
            (17, 16, &[17]), // no divisor
            (24, 16, &[12, 2]),
            (64, 16, &[16, 4]),
            (64, 8, &[8, 8]),
            (4096, 16, &[16, 16, 16]),
            (6, 2, &[2, 3]), // 3 has none
            (4, 1, &[4]),
        ];
        for (size, most, expected) in cases {
            let got = steps(size, most);
            assert_eq!(got, expected, "{size} by {most}");
            assert_eq!(got.iter().product::<usize>(), size);
        }
    }
}
