//! The IDX files of MNIST: a magic number, sizes, bytes. Plain or gzipped.
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;

use super::data::Images;

/// What unsigned bytes in so many dimensions begin with.
const IMAGES: u32 = 0x0803;
const LABELS: u32 = 0x0801;

/// More than any set of this kind has (MNIST: 47 MB), and no more than a machine bears: a gzipped
/// file of a few bytes may announce, and even deliver, any number.
const LARGEST: u64 = 1 << 30;

/// One half of MNIST: `train` or `t10k`, as the files' names begin.
pub fn read(dir: &Path, half: &str) -> Result<Images> {
    let (path, images) = open(dir, &format!("{half}-images-idx3-ubyte"))?;
    let ([count, height, width], pixels) =
        idx(images, IMAGES).with_context(|| path.display().to_string())?;
    let (labels_path, labels) = open(dir, &format!("{half}-labels-idx1-ubyte"))?;
    let ([labelled], labels) =
        idx(labels, LABELS).with_context(|| labels_path.display().to_string())?;
    ensure!(
        count == labelled,
        "{}: expected {count} labels, as many as {} has images, got {labelled}",
        labels_path.display(),
        path.display(),
    );
    Images::new(pixels, labels, height * width, u8::MAX).with_context(|| path.display().to_string())
}

/// The file of that name, or else the one with `.gz` behind it.
fn open(dir: &Path, name: &str) -> Result<(PathBuf, Box<dyn Read>)> {
    let plain = dir.join(name);
    let zipped = dir.join(format!("{name}.gz"));
    let open = |path: &Path| {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        anyhow::Ok(BufReader::new(file))
    };
    if plain.exists() {
        let file = open(&plain)?;
        return Ok((plain, Box::new(file)));
    }
    if zipped.exists() {
        let file = open(&zipped)?;
        return Ok((zipped, Box::new(MultiGzDecoder::new(file))));
    }
    bail!("{}: expected {name} or {name}.gz, got neither", dir.display())
}

/// Sizes and content of a file with `N` dimensions.
fn idx<const N: usize>(mut file: impl Read, magic: u32) -> Result<([usize; N], Vec<u8>)> {
    let mut word = || -> Result<u32> {
        let mut bytes = [0; 4];
        file.read_exact(&mut bytes)
            .with_context(|| format!("expected a header of {} bytes", 4 + 4 * N))?;
        Ok(u32::from_be_bytes(bytes))
    };
    let got = word()?;
    ensure!(got == magic, "magic number: expected {magic:#010x}, got {got:#010x}");
    let mut sizes = [0; N];
    for size in &mut sizes {
        *size = word()?;
    }
    // Four-byte factors, three of them at most, fit into 16 bytes.
    let expected: u128 = sizes.iter().map(|&size| u128::from(size)).product();
    ensure!(
        expected <= u128::from(LARGEST),
        "sizes: expected at most {LARGEST} bytes in all, got {sizes:?}, which is {expected}"
    );
    ensure!(expected > 0, "sizes: expected at least 1 each, got {sizes:?}");
    // The buffer grows with what comes, not by what the header promises. One byte more than that
    // shows whether there is more.
    let (expected, mut content) = (expected as u64, Vec::new());
    file.take(expected + 1).read_to_end(&mut content).context("the content cannot be read")?;
    let got = content.len() as u64;
    ensure!(got >= expected, "content: expected {expected} bytes for {sizes:?}, got {got}");
    ensure!(got == expected, "content: expected {expected} bytes for {sizes:?}, got more");
    Ok((sizes.map(|size| size as usize), content))
}
