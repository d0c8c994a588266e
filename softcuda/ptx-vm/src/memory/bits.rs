//! Which bytes were ever written: one bit each.

/// A bit per byte of an allocation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
}

/// The bits `from..to` of a word; `to` is at most 64.
fn span(from: usize, to: usize) -> u64 {
    debug_assert!(from < to && to <= 64);
    (!0 >> (64 - (to - from))) << from
}

impl Bits {
    /// All clear, for `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        Self { words: vec![0; len.div_ceil(64)] }
    }

    /// Clears all of them and makes room for `len` bytes.
    pub(crate) fn reset(&mut self, len: usize) {
        self.words.clear();
        self.words.resize(len.div_ceil(64), 0);
    }

    /// Marks `start..start + len`.
    #[inline]
    pub(crate) fn set(&mut self, start: usize, len: usize) {
        self.put(start, len, true);
    }

    /// Marks or clears `start..start + len`.
    pub(crate) fn put(&mut self, start: usize, len: usize, value: bool) {
        let (mut at, end) = (start, start + len);
        while at < end {
            let word = at / 64;
            let to = (end - word * 64).min(64);
            let bits = span(at % 64, to);
            if value {
                self.words[word] |= bits;
            } else {
                self.words[word] &= !bits;
            }
            at = word * 64 + to;
        }
    }

    /// The first byte of `start..start + len` that is not marked.
    #[inline]
    pub(crate) fn first_clear(&self, start: usize, len: usize) -> Option<usize> {
        let (mut at, end) = (start, start + len);
        while at < end {
            let word = at / 64;
            let to = (end - word * 64).min(64);
            let missing = !self.words[word] & span(at % 64, to);
            if missing != 0 {
                return Some(word * 64 + missing.trailing_zeros() as usize);
            }
            at = word * 64 + to;
        }
        None
    }

    /// How many bytes of `start..start + len` are not marked.
    pub(crate) fn count_clear(&self, start: usize, len: usize) -> usize {
        let (mut at, end, mut count) = (start, start + len, 0);
        while at < end {
            let word = at / 64;
            let to = (end - word * 64).min(64);
            count += (!self.words[word] & span(at % 64, to)).count_ones() as usize;
            at = word * 64 + to;
        }
        count
    }

    /// Whether a byte is marked.
    pub(crate) fn get(&self, at: usize) -> bool {
        self.words[at / 64] >> (at % 64) & 1 == 1
    }

    /// The marks of `start..start + len`, to be put elsewhere with [`Bits::paste`].
    pub(crate) fn cut_out(&self, start: usize, len: usize) -> Self {
        let mut out = Self::new(len);
        for i in 0..len.div_ceil(64) {
            let (word, shift) = ((start + i * 64) / 64, (start + i * 64) % 64);
            let mut bits = self.words[word] >> shift;
            if shift != 0 && word + 1 < self.words.len() {
                bits |= self.words[word + 1] << (64 - shift);
            }
            out.words[i] = bits;
        }
        out
    }

    /// Makes the marks from `start` on those of `from`, `len` of them.
    pub(crate) fn paste(&mut self, start: usize, from: &Self, len: usize) {
        if from.first_clear(0, len).is_none() {
            return self.set(start, len);
        }
        for i in 0..len {
            self.put(start + i, 1, from.get(i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Bits;

    /// Against a vector of booleans, over ranges that begin and end at any place of a word.
    #[test]
    fn ranges_agree_with_a_plain_vector() {
        let (len, mut plain) = (300, vec![false; 300]);
        let mut bits = Bits::new(len);
        let mut state = 1u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % below
        };
        for round in 0..2000 {
            let start = next(len);
            let count = next(len - start + 1);
            let value = round % 3 != 0;
            bits.put(start, count, value);
            plain[start..start + count].fill(value);
            let from = next(len);
            let n = next(len - from + 1);
            let clear = (from..from + n).find(|&i| !plain[i]);
            assert_eq!(bits.first_clear(from, n), clear);
            let missing = plain[from..from + n].iter().filter(|set| !**set).count();
            assert_eq!(bits.count_clear(from, n), missing);
            let piece = bits.cut_out(from, n);
            assert!((0..n).all(|i| piece.get(i) == plain[from + i]));
            let to = next(len - n + 1);
            bits.paste(to, &piece, n);
            let copy = plain[from..from + n].to_vec();
            plain[to..to + n].copy_from_slice(&copy);
            assert!((0..len).all(|i| bits.get(i) == plain[i]));
        }
    }
}
