//! PTX text to words and marks.

use crate::module::LoadError;

/// A word, number, string or mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub text: &'a str,
    /// From 1.
    pub line: u32,
}

/// Splits the text. Comments are left out; a word may have dots and double colons inside.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, LoadError> {
    let mut tokens = Vec::new();
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1);
    while at < bytes.len() {
        let start = at;
        match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            byte if byte.is_ascii_whitespace() => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at = end_of(text, at, "\n").unwrap_or(bytes.len())
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => match end_of(text, at + 2, "*/") {
                Some(end) => {
                    line += newlines(&text[at..end]);
                    at = end + 2;
                }
                None => return Err(unfinished(text, line, "a comment has no end")),
            },
            b'"' => match end_of(text, at + 1, "\"") {
                Some(end) => {
                    at = end + 1;
                    tokens.push(Token { text: &text[start..at], line });
                    line += newlines(&text[start..at]);
                }
                None => return Err(unfinished(text, line, "a string has no end")),
            },
            byte if is_word(byte) => {
                while at < bytes.len() && goes_on(bytes, start, at) {
                    at += if bytes[at] == b':' { 2 } else { 1 };
                }
                tokens.push(Token { text: &text[start..at], line });
            }
            byte if byte.is_ascii_punctuation() => {
                at += 1;
                tokens.push(Token { text: &text[start..at], line });
            }
            0 => break,
            _ => return Err(unfinished(text, line, "a character that PTX does not have")),
        }
    }
    Ok(tokens)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_$%.".contains(&byte)
}

fn goes_on(bytes: &[u8], start: usize, at: usize) -> bool {
    match bytes[at] {
        b':' => bytes.get(at + 1) == Some(&b':'),
        // The exponent of a decimal number.
        b'+' | b'-' => {
            bytes[start].is_ascii_digit()
                && bytes[start..at].contains(&b'.')
                && bytes[at - 1].eq_ignore_ascii_case(&b'e')
        }
        byte => is_word(byte),
    }
}

fn end_of(text: &str, from: usize, mark: &str) -> Option<usize> {
    text.get(from..)?.find(mark).map(|found| from + found)
}

fn newlines(text: &str) -> u32 {
    text.bytes().filter(|&byte| byte == b'\n').count() as u32
}

fn unfinished(text: &str, line: u32, message: &str) -> LoadError {
    let form = text.lines().nth(line as usize - 1).unwrap_or_default().trim().to_owned();
    LoadError { line, form, message: message.to_owned() }
}
