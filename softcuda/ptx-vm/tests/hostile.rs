//! Texts that went wrong are refused or read, but never stop the program.

use proptest::prelude::*;
use ptx_vm::Module;
use std::sync::LazyLock;

const SOURCES: [&str; 3] = ["exact_integers", "exact_threads", "cooperative"];
static TEXTS: LazyLock<[String; 3]> =
    LazyLock::new(|| SOURCES.map(|source| softcuda_kernels::ptx(source, 80)));

/// What might stand where something else should.
const WORDS: [&str; 20] = [
    "",
    ";",
    "{",
    "}",
    "[",
    "]",
    ",",
    "@",
    "!",
    "|",
    ".b64",
    ".pred",
    "%r1",
    "-9223372036854775808",
    "18446744073709551615",
    "0",
    ".align 0",
    "\"",
    ".shared .b8 x[99999999999999999999];",
    "\u{e9}",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn changed_words_never_panic(which in 0..SOURCES.len(), at in 0usize..3000, word in 0..WORDS.len(), length in 0usize..3) {
        let lines: Vec<&str> = TEXTS[which].split_inclusive('\n').collect();
        // One kernel and what stands before it is enough, and quick.
        let end = lines.iter().position(|line| line.starts_with('}')).unwrap_or(lines.len() - 1);
        let text = lines[..=end].concat();
        let mut words: Vec<&str> = text.split_inclusive([' ', '\t', '\n', ',', '.']).collect();
        let at = at % words.len();
        let length = length.min(words.len() - at);
        words.splice(at..at + length, [WORDS[word]]);
        if let Err(error) = Module::load(&words.concat()) {
            prop_assert!(error.line >= 1);
            prop_assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn cut_texts_never_panic(which in 0..SOURCES.len(), at in 0usize..20_000) {
        let text = &TEXTS[which];
        _ = Module::load(text.get(..at.min(text.len())).unwrap_or_default());
    }
}

#[test]
fn sizes_beyond_all_bounds_are_refused() {
    let head = ".version 7.8\n.target sm_80\n.address_size 64\n";
    for text in [
        ".shared .align 0 .b8 x[8];\n.visible .entry k() { .reg .b32 %r<2>; mov.u32 %r1, x; }",
        ".shared .align 3 .b8 x[8];\n.visible .entry k() { .reg .b32 %r<2>; mov.u32 %r1, x; }",
        ".shared .b64 x[9223372036854775807];\n.visible .entry k() { .reg .b32 %r<2>; mov.u32 %r1, x; }",
        ".visible .entry k(.param .align 0 .b8 p[8]) { ret; }",
        ".visible .entry k(.param .align 8 .b8 p[18446744073709551615]) { ret; }",
        ".visible .entry k(.param .align 8 .b8 p[18446744073709551608], .param .u64 q) { ret; }",
        ".visible .entry k() .maxntid 4294967295, 4294967295, 4294967295 { ret; }",
        ".visible .entry k() .maxntid 65536, 65536 { ret; }",
    ] {
        assert!(Module::load(&format!("{head}{text}\n")).is_err(), "{text}");
    }
}
