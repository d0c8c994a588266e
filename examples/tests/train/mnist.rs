//! Files as MNIST comes in, and files that lie.
use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::example::data::Data;
use super::{folder, run};

const FILES: [&str; 4] = [
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
];

fn idx(magic: u32, sizes: &[u32], content: &[u8]) -> Vec<u8> {
    let header = [&[magic], sizes].concat();
    let header = header.iter().flat_map(|word| word.to_be_bytes());
    header.chain(content.iter().copied()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A set of 8 training and 3 test images of 2 x 3 pixels, in the order of `FILES`.
fn good() -> [Vec<u8>; 4] {
    let pixels: Vec<u8> = (0..48).map(|i| i * 5).collect();
    [
        idx(0x803, &[8, 2, 3], &pixels),
        idx(0x801, &[8], &[0, 1, 2, 3, 4, 5, 9, 9]),
        idx(0x803, &[3, 2, 3], &pixels[..18]),
        idx(0x801, &[3], &[7, 8, 9]),
    ]
}

fn write(dir: &Path, files: &[Vec<u8>; 4]) {
    for (name, bytes) in FILES.iter().zip(files) {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn refused(dir: &Path) -> String {
    format!("{:#}", Data::mnist(dir).unwrap_err())
}

#[test]
fn mnist_files_are_read_plain_and_gzipped() {
    let dir = folder("mnist_good");
    write(&dir, &good());
    let plain = Data::mnist(&dir).unwrap();
    assert_eq!(plain.to_string(), "mnist, 8 training and 3 test images of 6 pixels");
    assert_eq!(plain.train.labels(), [0, 1, 2, 3, 4, 5, 9, 9]);
    let expected = [6, 7, 8, 9, 10, 11].map(|i| (i * 5) as f32 / 255.0);
    assert_eq!(plain.train.image(1).collect::<Vec<_>>(), expected);

    for (name, bytes) in FILES.iter().zip(good()) {
        fs::remove_file(dir.join(name)).unwrap();
        fs::write(dir.join(format!("{name}.gz")), gzip(&bytes)).unwrap();
    }
    let zipped = Data::mnist(&dir).unwrap();
    assert_eq!((&zipped.train, &zipped.test), (&plain.train, &plain.test));
    let out = dir.join("out");
    let line = format!("--mnist {} --batch 4 --steps 5 --out {}", dir.display(), out.display());
    assert!(run(&line).unwrap().1.contains("mnist, 8 training"));
}

#[test]
fn bad_mnist_files_are_refused_with_name_expected_and_got() {
    let dir = folder("mnist_bad");
    let images = |sizes: &[u32], content: &[u8]| idx(0x803, sizes, content);
    let huge = u32::MAX;
    let cases: [(usize, Vec<u8>, &str); 14] = [
        (0, vec![], "expected a header of 16 bytes"),
        (0, images(&[8, 2], &[]), "expected a header of 16 bytes"),
        (0, idx(0x801, &[8, 2, 3], &[0; 48]), "expected 0x00000803, got 0x00000801"),
        (1, idx(0x803, &[8], &[0; 8]), "expected 0x00000801, got 0x00000803"),
        (0, images(&[8, 2, 3], &[0; 47]), "expected 48 bytes for [8, 2, 3], got 47"),
        (2, images(&[3, 2, 3], &[0; 19]), "expected 18 bytes for [3, 2, 3], got more"),
        (0, images(&[huge, huge, huge], &[0; 48]), "expected at most 1073741824 bytes"),
        (0, images(&[1000, 1000, 1000], &[0; 48]), "expected 1000000000 bytes"),
        (1, idx(0x801, &[huge], &[0; 8]), "expected at most 1073741824 bytes in all"),
        (0, images(&[8, 0, 3], &[]), "expected at least 1 each, got [8, 0, 3]"),
        (3, idx(0x801, &[2], &[1, 2]), "expected 3 labels"),
        (3, idx(0x801, &[4], &[1; 4]), "got 4"),
        (3, idx(0x801, &[3], &[1, 10, 2]), "label of image 1: expected 0 to 9, got 10"),
        (2, images(&[3, 1, 3], &[0; 9]), "training images have 6 pixels, the test images 3"),
    ];
    for (file, bytes, expected) in cases {
        let mut files = good();
        files[file] = bytes;
        write(&dir, &files);
        let error = refused(&dir);
        assert!(error.contains(expected), "{expected:?}: {error}");
        assert!(error.contains(dir.to_str().unwrap()), "{error}");
    }

    fs::remove_file(dir.join(FILES[3])).unwrap();
    let expected = format!("expected {0} or {0}.gz, got neither", FILES[3]);
    assert!(refused(&dir).contains(&expected), "{}", refused(&dir));
    let zipped = dir.join(format!("{}.gz", FILES[3]));
    fs::write(&zipped, &good()[3]).unwrap();
    assert!(refused(&dir).contains("invalid gzip header"), "{}", refused(&dir));
    let whole = gzip(&good()[3]);
    fs::write(&zipped, &whole[..whole.len() - 9]).unwrap();
    let error = refused(&dir);
    assert!(
        error.contains(zipped.to_str().unwrap()) && error.contains("cannot be read"),
        "{error}"
    );
}

#[test]
fn no_bytes_of_an_mnist_file_panic() {
    let dir = folder("mnist_any");
    write(&dir, &good());
    for (name, bytes) in FILES.iter().zip(good()) {
        for at in 0..bytes.len().min(24) {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                fs::write(dir.join(name), &bytes).unwrap();
                let _ = Data::mnist(&dir);
            }
            fs::write(dir.join(name), &bytes[..at]).unwrap();
            refused(&dir);
        }
        fs::write(dir.join(name), &bytes).unwrap();
    }
    Data::mnist(&dir).unwrap();
}
