//! What a kernel says: the text of an assertion that does not hold, and what it prints.

use super::{Trouble, access::Access, lanes, shared::Shared, warp::Warp};
use crate::{
    fault::FaultKind,
    instr::{LOCAL_WINDOW, Reg, SHARED_WINDOW, WINDOW},
};

/// Bytes of a text at most.
const TEXT: u64 = 4096;

/// A conversion of a format: `%-8.3f`.
struct Conversion<'a> {
    flags: &'a str,
    width: usize,
    precision: Option<usize>,
    letter: char,
}

impl<'a> Conversion<'a> {
    /// Behind the `%`; with what follows. Lengths (`l`, `h`, ...) say nothing that the letter and the value do not.
    fn parse(text: &'a str) -> Option<(Self, &'a str)> {
        let (flags, rest) = split(text, |c| "-+ #0".contains(c));
        let (width, rest) = split(rest, |c| c.is_ascii_digit());
        let (precision, rest) = match rest.strip_prefix('.') {
            Some(rest) => {
                let (digits, rest) = split(rest, |c| c.is_ascii_digit());
                (Some(digits.parse().unwrap_or(0)), rest)
            }
            None => (None, rest),
        };
        let (_, rest) = split(rest, |c| "hlLjzt".contains(c));
        let letter = rest.chars().next()?;
        let width = width.parse().unwrap_or(0).min(1024);
        let precision = precision.map(|precision: usize| precision.min(1024));
        Some((Self { flags, width, precision, letter }, &rest[letter.len_utf8()..]))
    }

    /// Whether its value has 8 bytes, and not 4.
    fn is_wide(length: &str, letter: char) -> bool {
        "aAeEfFgGps".contains(letter) || length.contains(['l', 'j', 'z', 't'])
    }

    /// The text with sign and padding.
    fn pad(&self, sign: &str, digits: &str, is_number: bool) -> String {
        let room = self.width.saturating_sub(sign.chars().count() + digits.chars().count());
        if self.flags.contains('-') {
            format!("{sign}{digits}{}", " ".repeat(room))
        } else if self.flags.contains('0') && is_number {
            format!("{sign}{}{digits}", "0".repeat(room))
        } else {
            format!("{}{sign}{digits}", " ".repeat(room))
        }
    }

    fn sign(&self, negative: bool) -> &'static str {
        match negative {
            true => "-",
            false if self.flags.contains('+') => "+",
            false if self.flags.contains(' ') => " ",
            false => "",
        }
    }

    fn integer(&self, negative: bool, digits: String, prefix: &str) -> String {
        let zeros = self.precision.unwrap_or(0).saturating_sub(digits.len());
        let prefix = if self.flags.contains('#') { prefix } else { "" };
        let sign = format!("{}{prefix}", self.sign(negative));
        self.pad(&sign, &format!("{}{digits}", "0".repeat(zeros)), self.precision.is_none())
    }

    fn float(&self, value: f64) -> String {
        let sign = self.sign(value.is_sign_negative() && !value.is_nan());
        let size = value.abs();
        let digits = match (size.is_finite(), self.letter.to_ascii_lowercase()) {
            (false, _) => return self.pad(sign, if size.is_nan() { "nan" } else { "inf" }, false),
            (_, 'e') => exponent(size, self.precision.unwrap_or(6)),
            (_, 'g') => shortest(size, self.precision.unwrap_or(6).max(1)),
            _ => format!("{size:.*}", self.precision.unwrap_or(6)),
        };
        self.pad(sign, &digits, true)
    }
}

/// The beginning whose characters are all such, and the rest.
fn split(text: &str, is_such: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !is_such(c)).unwrap_or(text.len()))
}

/// As C writes it: two digits of the exponent at least.
fn exponent(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, power) = match power.strip_prefix('-') {
        Some(power) => ('-', power),
        None => ('+', power),
    };
    format!("{digits}e{sign}{power:0>2}")
}

/// `%g`.
fn shortest(value: f64, precision: usize) -> String {
    let text = exponent(value, precision - 1);
    let power = text.split_once('e').and_then(|(_, power)| power.parse::<i32>().ok()).unwrap_or(0);
    let trim = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        let (digits, power) = text.split_once('e').unwrap_or((&text, "+00"));
        return format!("{}e{power}", trim(digits));
    }
    trim(&format!("{value:.*}", (precision as i32 - 1 - power).max(0) as usize))
}

impl Access<'_> {
    /// Bytes at a generic address of a lane; `None` where they are not all there.
    fn peek(
        &self,
        address: u64,
        bytes: u64,
        lane: u32,
        (warp, shared): (&mut Warp, &mut Shared),
    ) -> Option<Vec<u8>> {
        let within = |start: u64, len: usize| {
            let at = address.checked_sub(start).filter(|at| *at < WINDOW)?;
            (at + bytes <= len as u64).then_some(at as usize)
        };
        let bytes_of =
            |data: &[u8], at: usize| data.get(at..at + bytes as usize).map(<[u8]>::to_vec);
        if (SHARED_WINDOW..SHARED_WINDOW + WINDOW).contains(&address) {
            let at = within(SHARED_WINDOW, shared.len())?;
            return bytes_of(shared.piece().data, at);
        }
        if (LOCAL_WINDOW..LOCAL_WINDOW + WINDOW).contains(&address) {
            let at = within(LOCAL_WINDOW, warp.local.len())?;
            let (piece, start) = warp.local.of(lane);
            return bytes_of(piece.data, start + at);
        }
        let mut data = vec![0; bytes as usize];
        self.memory.read(address, &mut data).ok()?;
        Some(data)
    }

    /// The text at an address, up to its 0.
    fn text(&self, address: u64, lane: u32, place: (&mut Warp, &mut Shared)) -> Option<String> {
        let (warp, shared) = place;
        let mut text = Vec::new();
        while (text.len() as u64) < TEXT {
            let byte = self.peek(address + text.len() as u64, 1, lane, (warp, shared))?[0];
            if byte == 0 {
                break;
            }
            text.push(byte);
        }
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// The trouble that an assertion of the lowest lane is.
    pub(super) fn assertion(
        &self,
        warp: &mut Warp,
        shared: &mut Shared,
        [message, file, line, function]: [Reg; 4],
        mask: u32,
    ) -> Trouble {
        let lane = mask.trailing_zeros();
        let line = warp.registers.row(line)[lane as usize];
        let mut text = |reg: Reg| {
            let address = warp.registers.row(reg)[lane as usize];
            let text = self.text(address, lane, (warp, shared));
            text.unwrap_or_else(|| format!("(no text at {address:#x})"))
        };
        let (message, file, function) = (text(message), text(file), text(function));
        let detail = format!("`{message}` does not hold, {file}:{line}, {function}");
        Trouble::new(FaultKind::Assertion, lane, detail)
    }

    /// `vprintf`, lane by lane.
    pub(super) fn print(
        &mut self,
        warp: &mut Warp,
        shared: &mut Shared,
        [result, format, values]: [Reg; 3],
        mask: u32,
    ) -> Result<(), Trouble> {
        for lane in lanes(mask) {
            let format = warp.registers.row(format)[lane as usize];
            let values = warp.registers.row(values)[lane as usize];
            let Some(format) = self.text(format, lane, (warp, shared)) else {
                let detail = format!("prints the text at {format:#x}, where there is none");
                return Err(Trouble::new(FaultKind::OutOfBounds, lane, detail));
            };
            let (text, count) = self.formatted(&format, values, lane, (warp, shared))?;
            self.memory.say(&text);
            warp.registers.row_mut(result)[lane as usize] = count;
        }
        Ok(())
    }

    /// The text of a format with its values, and how many those are.
    fn formatted(
        &self,
        format: &str,
        values: u64,
        lane: u32,
        (warp, shared): (&mut Warp, &mut Shared),
    ) -> Result<(String, u64), Trouble> {
        let (mut text, mut rest, mut count, mut at) = (String::new(), format, 0, values);
        while let Some((before, behind)) = rest.split_once('%') {
            text += before;
            if let Some(behind) = behind.strip_prefix('%') {
                text.push('%');
                rest = behind;
                continue;
            }
            let Some((conversion, after)) = Conversion::parse(behind) else {
                text.push('%');
                rest = behind;
                continue;
            };
            let written = &behind[..behind.len() - after.len()];
            let bytes = if Conversion::is_wide(written, conversion.letter) { 8 } else { 4 };
            at = at.next_multiple_of(bytes);
            let Some(value) = self.peek(at, bytes, lane, (warp, shared)) else {
                let detail = format!(
                    "prints a value for `%{written}` of {bytes} bytes at {at:#x}, where there is none"
                );
                return Err(Trouble::new(FaultKind::OutOfBounds, lane, detail));
            };
            at += bytes;
            count += 1;
            let mut wide = [0; 8];
            wide[..value.len()].copy_from_slice(&value);
            let bits = u64::from_le_bytes(wide);
            let signed = if bytes == 4 { i64::from(bits as i32) } else { bits as i64 };
            text += &match conversion.letter {
                'd' | 'i' => conversion.integer(signed < 0, signed.unsigned_abs().to_string(), ""),
                'u' => conversion.integer(false, bits.to_string(), ""),
                'x' => conversion.integer(false, format!("{bits:x}"), "0x"),
                'X' => conversion.integer(false, format!("{bits:X}"), "0X"),
                'o' => conversion.integer(false, format!("{bits:o}"), "0"),
                'c' => conversion.pad("", &char::from(bits as u8).to_string(), false),
                'p' => conversion.pad("", &format!("{bits:#x}"), false),
                's' => {
                    let given = self.text(bits, lane, (warp, shared)).unwrap_or_default();
                    let most = conversion.precision.unwrap_or(usize::MAX);
                    conversion.pad("", &given.chars().take(most).collect::<String>(), false)
                }
                'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                    let number = conversion.float(f64::from_bits(bits));
                    if conversion.letter.is_uppercase() { number.to_uppercase() } else { number }
                }
                _ => format!("%{written}"),
            };
            rest = after;
        }
        Ok((text + rest, count))
    }
}
