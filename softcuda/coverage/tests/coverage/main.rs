//! `COVERAGE.md`: which instructions there are, of which types, and which calls. Instructions are what the loader says
//! of each form in `forms.rs`, with every type put in its place; calls are what the libraries export.
//! `SOFTCUDA_WRITE_TABLE=1 cargo test -p softcuda-coverage` writes it.
#![cfg(target_os = "linux")]

#[allow(unsafe_code)]
mod calls;
mod forms;

use forms::{FORMS, ISA};
use ptx_vm::Module;
use std::fmt::Write;

const TYPES: [&str; 20] = [
    "pred", "b8", "b16", "b32", "b64", "b128", "u8", "u16", "u32", "u64", "s8", "s16", "s32",
    "s64", "f16", "bf16", "f16x2", "bf16x2", "f32", "f64",
];

const INSTRUCTIONS: &str = "\
## Instructions

Of PTX, by the manual's names. `T` stands for each of the types in the second column. The operands: `t` is a register of \
that type, `w` one of twice its width, `u` one of 32 bits, `d` of 64, `p` and `q` are predicates. A form stands for those \
that differ from it in what changes no result here (hints to caches) or is one of a kind (another rounding, comparison, \
order or scope). A module with an instruction that is not there does not load, and the message names line and form.

| form | `T` |
|---|---|
";

/// Whether a kernel of that body loads.
fn loads(body: &str) -> Result<(), String> {
    let function = ".func (.param .b32 r) f(.param .b32 p) { ret; }\n.const .b64 constant[2];";
    let registers = ".reg .pred %p<3>; .reg .b16 %h<3>; .reg .b32 %r<3>; .reg .b64 %d<3>;";
    let text = format!(
        ".version 7.8\n.target sm_90\n.address_size 64\n{function}\n.visible .entry k(.param .u64 param)\n{{\n{registers}\n$l:\n{body}\nret;\n}}\n"
    );
    Module::load(&text).map(|_| ()).map_err(|error| error.message)
}

/// A register of a type: 8 bits live in 16.
fn register(ty: &str) -> &'static str {
    let bits = ty.trim_start_matches(char::is_alphabetic);
    match (ty, bits) {
        ("pred", _) => "%p1",
        (_, "8" | "16") => "%h1",
        (_, "32" | "16x2") => "%r1",
        _ => "%d1",
    }
}

/// One of twice the width.
fn double(ty: &str) -> &'static str {
    if register(ty) == "%h1" { "%r1" } else { "%d1" }
}

/// The form with a type in its place: `t` a register of it, `w` one of twice the width, `p` a predicate, `u` 32 bits,
/// `d` 64 bits; whatever else stands for itself.
fn instance(opcode: &str, operands: &str, ty: &str) -> String {
    let opcode = opcode.replace(".T", &format!(".{ty}"));
    let mut text = String::new();
    for part in
        operands.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && !"$%_.".contains(c))
    {
        let (word, end) =
            part.split_at(part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len());
        let word = match word {
            "t" => register(ty),
            "w" => double(ty),
            "p" => "%p1",
            "q" => "%p2",
            "u" => "%r2",
            "d" => "%d2",
            other => other,
        };
        text += word;
        text += end;
    }
    format!("{opcode} {text};")
}

/// The types with which a form loads; `None` for a form without a type, which loads.
fn types(opcode: &str, operands: &str) -> Result<Option<Vec<&'static str>>, String> {
    if !opcode.contains(".T") {
        return loads(&instance(opcode, operands, "")).map(|()| None);
    }
    let fits = |ty: &&str| loads(&instance(opcode, operands, ty)).is_ok();
    let types: Vec<_> = TYPES.into_iter().filter(fits).collect();
    if types.is_empty() {
        Err(loads(&instance(opcode, operands, "u32")).unwrap_err())
    } else {
        Ok(Some(types))
    }
}

fn opcode_of(form: &str) -> &str {
    form.split('.').next().unwrap()
}

#[test]
fn the_table_is_what_there_is() {
    let mut table = "# What there is\n\n".to_owned();
    for (title, library, prefix) in [
        ("Driver", "libsoftcuda.so", "cu"),
        ("cuBLAS", "libsoftcublas.so", "cublas"),
        ("cuDNN", "libsoftcudnn.so", "cudnn"),
        ("cuRAND", "libsoftcurand.so", "curand"),
        ("NCCL", "libsoftnccl.so", "nccl"),
    ] {
        let names = calls::exported(library, prefix);
        assert!(names.len() > 10, "{library}: {names:?}");
        write!(table, "## {title}\n\n{}\n", calls::table(prefix, &names)).unwrap();
        if prefix == "cu" {
            let refused = include_str!("../../../driver/src/entry/unsupported.rs").lines();
            let refused: Vec<_> =
                refused.map(str::trim).filter(|line| line.starts_with("cu")).collect();
            assert!(
                !refused.is_empty()
                    && refused.iter().all(|call| names.iter().any(|name| name == call))
            );
            write!(
                table,
                "Of these, the answer is always error 801, not supported: `{}`.\n\n",
                refused.join("`, `")
            )
            .unwrap();
        }
    }
    table += INSTRUCTIONS;
    let mut refused = Vec::new();
    for (opcode, operands) in FORMS {
        let types = match types(opcode, operands) {
            Ok(types) => types.map_or(String::new(), |types| types.join(", ")),
            Err(error) => {
                refused.push(format!("{opcode} {operands}: {error}"));
                continue;
            }
        };
        let form = format!("{opcode} {operands}").replace('|', "\\|");
        writeln!(table, "| `{}` | {types} |", form.trim_end()).unwrap();
    }
    assert_eq!(refused, [""; 0]);
    let missing =
        ISA.iter().filter(|opcode| !FORMS.iter().any(|(form, _)| opcode_of(form) == **opcode));
    let missing: Vec<_> = missing.map(|opcode| format!("`{opcode}`")).collect();
    write!(table, "\nNot there: {}.\n", missing.join(", ")).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../driver/COVERAGE.md");
    if std::env::var_os("SOFTCUDA_WRITE_TABLE").is_some() {
        std::fs::write(path, &table).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == table, "COVERAGE.md is old: SOFTCUDA_WRITE_TABLE=1 writes it");
}

/// What has no form in the table is unknown to the loader: an opcode that is added must be added to `forms.rs`.
#[test]
fn what_is_not_in_the_table_is_not_there() {
    for opcode in ISA {
        let message = loads(&format!("{opcode};")).err();
        let known = !message.is_some_and(|message| message.starts_with("unknown instruction"));
        let listed = FORMS.iter().any(|(form, _)| opcode_of(form) == *opcode);
        assert_eq!(known, listed, "{opcode}");
    }
    for (form, _) in FORMS {
        assert!(ISA.contains(&opcode_of(form)), "{form}");
    }
    assert!(ISA.is_sorted() && ISA.windows(2).all(|pair| pair[0] != pair[1]));
}
