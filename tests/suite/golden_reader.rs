//! A malformed golden case is an error that names the file and what is wrong in it.
use crate::support::files::{checkout, scratch};
use crate::support::golden::{Case, files};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A case taken apart, to be put together wrongly.
struct Parts {
    tensors: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

fn valid() -> Parts {
    let path = checkout("tests/golden/nhwc_f16_add_relu.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let part = |(name, view): (&str, TensorView<'_>)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    Parts { tensors: file.iter().map(part).collect(), metadata }
}

/// Reads the case with a change, from a file of its own.
fn read(test: &str, change: impl FnOnce(&mut Parts)) -> (PathBuf, anyhow::Result<Case>) {
    let mut parts = valid();
    change(&mut parts);
    let view =
        |(name, (dtype, shape, bytes))| (name, TensorView::new(dtype, shape, bytes).unwrap());
    let views = parts.tensors.iter().map(|(n, (d, s, b))| (n, (*d, s.clone(), &b[..]))).map(view);
    let bytes = safetensors::serialize(views, Some(parts.metadata)).unwrap();
    let folder = scratch(test);
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{test}.safetensors"));
    std::fs::write(&path, bytes).unwrap();
    let case = Case::read(&path);
    std::fs::remove_dir_all(&folder).unwrap();
    (path, case)
}

/// The message must be the file's path, and then this.
#[track_caller]
fn refused(test: &str, message: &str, change: impl FnOnce(&mut Parts)) {
    let (path, case) = read(test, change);
    let error = format!("{:#}", case.unwrap_err());
    assert_eq!(error, format!("{}: {message}", path.display()));
}

#[test]
fn what_was_taken_apart_reads_when_put_together() {
    let (_, case) = read("valid", |_| {});
    let case = case.unwrap();
    assert_eq!((case.name.as_str(), &case.dims[..]), ("valid", &[4, 4, 4, 16][..]));
    assert!(case.optional("residual").is_some());
}

#[test]
fn a_missing_tensor_is_named() {
    for name in valid().tensors.keys() {
        let message = match name.as_str() {
            // These may be absent, but not without their gradients.
            "residual" | "weight" | "bias" => continue,
            name => format!("{name}: is missing"),
        };
        let (path, case) = read(&format!("missing_{name}"), |parts| {
            parts.tensors.remove(name);
        });
        let error = format!("{:#}", case.unwrap_err());
        assert!(error.starts_with(&format!("{}: {message}", path.display())), "{error}");
    }
}

#[test]
fn a_gradient_without_its_input_and_an_unknown_tensor_are_named() {
    for input in ["residual", "weight", "bias"] {
        let reason = "is no tensor of this format, or its input is missing";
        refused(&format!("alone_{input}"), &format!("grad_{input}: {reason}"), |parts| {
            parts.tensors.remove(input);
            parts.tensors.remove(&format!("grad_{input}_eval"));
        });
        refused(&format!("unknown_{input}"), &format!("{input}s: {reason}"), |parts| {
            let tensor = parts.tensors[input].clone();
            parts.tensors.insert(format!("{input}s"), tensor);
        });
        let (_, case) = read(&format!("without_{input}"), |parts| {
            for prefix in ["", "grad_"] {
                parts.tensors.remove(&format!("{prefix}{input}"));
            }
            parts.tensors.remove(&format!("grad_{input}_eval"));
        });
        assert!(case.unwrap().optional(input).is_none());
    }
}

#[test]
fn a_wrong_shape_shows_both_sides() {
    let wrong = |name: &'static str, shape: &'static [usize]| {
        move |parts: &mut Parts| parts.tensors.get_mut(name).unwrap().1 = shape.to_vec()
    };
    let expected = "expected shape [4, 4, 4, 16], got [4, 4, 16, 4]";
    for name in ["grad_y", "residual", "y", "grad_x_eval"] {
        let test = format!("shape_{name}");
        refused(&test, &format!("{name}: {expected}"), wrong(name, &[4, 4, 16, 4]));
    }
    for name in ["weight", "running_var", "batch_mean", "grad_bias_eval"] {
        let test = format!("shape_{name}");
        let message = format!("{name}: expected shape [16], got [4, 4]");
        refused(&test, &message, wrong(name, &[4, 4]));
    }
    // x itself decides; the others disagree then.
    refused(
        "shape_x",
        "grad_y: expected shape [4, 4, 16, 4], got [4, 4, 4, 16]",
        wrong("x", &[4, 4, 16, 4]),
    );
}

#[test]
fn a_wrong_dtype_shows_both_sides() {
    // F16 and BF16 are as wide as each other, F32 and I32 too.
    for (name, dtype, message) in [
        ("x", Dtype::BF16, "expected dtype f16, got BF16"),
        ("residual", Dtype::BF16, "expected dtype f16, got BF16"),
        ("weight", Dtype::I32, "expected dtype f32, got I32"),
        ("running_mean", Dtype::I64, "expected dtype f64, got I64"),
        ("y", Dtype::I64, "expected dtype f64, got I64"),
    ] {
        refused(&format!("dtype_{name}"), &format!("{name}: {message}"), |parts| {
            parts.tensors.get_mut(name).unwrap().0 = dtype;
        });
    }
    refused("dtype_case", "x: expected dtype bf16, got F16", |parts| {
        parts.metadata.insert("dtype".into(), "bf16".into());
    });
}

#[test]
fn bad_metadata_is_named() {
    let cases = [
        ("axis", "4", "axis, for the shape of x: axis: expected less than the rank 4, got 4"),
        ("axis", "-1", "axis: expected a whole number from 0, got \"-1\""),
        ("eps", "nan", "eps: expected a finite number above 0, got NaN"),
        ("eps", "0", "eps: expected a finite number above 0, got 0"),
        ("eps", "inf", "eps: expected a finite number above 0, got inf"),
        ("eps", "small", "eps: expected a number, got \"small\""),
        ("momentum", "1.5", "momentum: expected 0 to 1, got 1.5"),
        ("momentum", "nan", "momentum: expected 0 to 1, got NaN"),
        (
            "activation",
            "tanh",
            "activation: expected one of identity, relu, leaky_relu, relu6, silu, hardswish, gelu, \
             got \"tanh\"",
        ),
        ("dtype", "f8", "dtype: expected f64, f32, f16 or bf16, got \"f8\""),
    ];
    for (i, (key, value, message)) in cases.into_iter().enumerate() {
        refused(&format!("metadata_{i}"), &format!("metadata: {message}"), |parts| {
            parts.metadata.insert(key.into(), value.into());
        });
    }
    for key in ["axis", "eps", "momentum", "activation", "dtype"] {
        let message = format!("metadata: {key} is missing");
        refused(&format!("without_{key}"), &message, |parts| {
            parts.metadata.remove(key);
        });
    }
}

#[test]
fn what_is_no_case_at_all_is_an_error() {
    let whole = std::fs::read(checkout("tests/golden/nc_f32.safetensors")).unwrap();
    for len in [0, 7, 8, 100, whole.len() - 1] {
        assert!(Case::parse("cut", &whole[..len]).is_err(), "{len} bytes");
    }
    let missing = Path::new("no/such/case.safetensors");
    assert!(format!("{:#}", Case::read(missing).unwrap_err()).starts_with("no/such/case"));
    assert!(format!("{:#}", files(Path::new("no/such")).unwrap_err()).starts_with("no/such"));
    let empty = scratch("no_cases");
    std::fs::create_dir_all(&empty).unwrap();
    let error = format!("{:#}", files(&empty).unwrap_err());
    std::fs::remove_dir(&empty).unwrap();
    assert_eq!(error, format!("{}: expected *.safetensors files, got none", empty.display()));
}
