//! The functions that a library exports.
use std::path::Path;

/// Those of the library that cargo has built beside this test, whose names begin so and go on with an upper-case letter.
pub fn exported(library: &str, prefix: &str) -> Vec<String> {
    let path = std::env::current_exe().unwrap().with_file_name(library);
    let bytes = std::fs::read(&path).unwrap();
    let library = open(&path);
    let is_call = |name: &&[u8]| {
        let rest = name.strip_prefix(prefix.as_bytes()).unwrap_or_default();
        rest.first().is_some_and(u8::is_ascii_uppercase)
            && rest.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
    };
    // Among all texts in the file, those that the loader finds.
    let names = bytes.split(|byte| *byte == 0).filter(is_call);
    let mut names: Vec<_> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    names.sort();
    names.dedup();
    names.retain(|name| has(&library, name));
    names
}

fn open(path: &Path) -> libloading::Library {
    // SAFETY: a library of this workspace, whose loading runs nothing of its own.
    unsafe { libloading::Library::new(path) }.unwrap()
}

fn has(library: &libloading::Library, name: &str) -> bool {
    // SAFETY: not called.
    unsafe { library.get::<extern "C" fn()>(name) }.is_ok()
}

/// What a line of the table is about: `cuMem` of `cuMemAlloc_v2`.
fn subject<'a>(prefix: &str, name: &'a str) -> &'a str {
    let rest = &name[prefix.len()..];
    let end = rest[1..].find(|c: char| !c.is_ascii_lowercase()).map_or(rest.len(), |end| end + 1);
    &name[..prefix.len() + end]
}

/// The table: a line for each subject.
pub fn table(prefix: &str, names: &[String]) -> String {
    let mut table = String::from("| of | calls |\n|---|---|\n");
    for group in names.chunk_by(|a, b| subject(prefix, a) == subject(prefix, b)) {
        let calls: Vec<_> = group.iter().map(|name| format!("`{name}`")).collect();
        table += &format!("| `{}` | {} |\n", subject(prefix, &group[0]), calls.join(", "));
    }
    table
}
