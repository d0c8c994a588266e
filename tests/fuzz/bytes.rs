//! An input as a list of choices, and files with changes in them.

/// Choices, one after the other; after the last byte all are 0.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }
    pub fn number(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }
    /// Less than `limit`, which is at most 2^16; 0 where that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let byte = |bytes: &mut Self| usize::from(bytes.byte());
        let value = if limit <= 256 { byte(self) } else { byte(self) << 8 | byte(self) };
        value % limit.max(1)
    }
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
    /// Never after the last byte.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// A safetensors file with changes, most of them in its header.
pub fn changed(file: &[u8], by: &mut Bytes) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..by.below(8) {
        change(&mut file, by);
    }
    file
}

fn change(file: &mut Vec<u8>, by: &mut Bytes) {
    let header = 8..header_end(file);
    if header.is_empty() {
        return;
    }
    let kind = by.below(10);
    // Far into a long file, too.
    let anywhere = by.number() as usize % file.len();
    let at = header.start + anywhere % header.len();
    match kind {
        0 => file[anywhere] = by.byte(),
        1 => file[at] = by.byte(),
        // Most changes in the header break its syntax; digits change sizes and offsets.
        2..=4 => {
            let digit = (at..header.end).find(|&i| file[i].is_ascii_digit());
            digit.into_iter().for_each(|i| file[i] = b'0' + by.byte() % 10);
        }
        5 => file.truncate(anywhere),
        6 => {
            let more =
                by.pick(&["9", "99999999999999999999", "-", ",", "{", "[", "[[", "\\u0000", "1e9"]);
            file.splice(at..at, more.bytes());
            length(file, header.len() + more.len());
        }
        7 => {
            let end = (at + by.below(64)).min(header.end);
            file.drain(at..end);
            length(file, header.len() - (end - at));
        }
        8 => {
            let part = file[at..(at + by.below(64)).min(header.end)].to_vec();
            let to = header.start + by.below(header.len());
            file.splice(to..to, part.iter().copied());
            length(file, header.len() + part.len());
        }
        _ => {
            let types = [
                "BOOL", "U8", "I8", "F8_E4M3", "I16", "F16", "BF16", "F32", "I64", "U64", "F64",
                "F4",
            ];
            let (mark, new) = (b"\"dtype\":\"", by.pick(&types));
            let found = (at..header.end).find(|&i| file[i..header.end].starts_with(mark));
            let Some(start) = found.map(|i| i + mark.len()) else { return };
            let end = (start..header.end).find(|&i| file[i] == b'"').unwrap_or(header.end);
            file.splice(start..end, new.bytes());
            length(file, header.len() + new.len() - (end - start));
        }
    }
}

fn header_end(file: &[u8]) -> usize {
    let len = file.first_chunk().map_or(0, |len| u64::from_le_bytes(*len));
    usize::try_from(len).unwrap_or(usize::MAX).saturating_add(8).min(file.len())
}

/// What the first 8 bytes say of the header.
fn length(file: &mut [u8], header: usize) {
    file[..8].copy_from_slice(&(header as u64).to_le_bytes());
}
