//! State dicts as files: what they carry, and arbitrary bytes.
use crate::support::state::*;
use batchnorm::*;
use proptest::prelude::*;

#[test]
fn tensors_of_all_types_are_carried_along() {
    let metadata = r#""__metadata__":{"by":"hand"}"#.to_string();
    let tensors = [info("mask", "BOOL", "[3]", [0, 3]), info("f8", "F8_E4M3", "[1,5]", [3, 8])];
    let header = [&[metadata][..], &tensors].concat();
    let dict = handmade(&header, &[1, 0, 1, 9, 8, 7, 6, 5]);
    assert_eq!(StateDict::from_bytes(&dict.to_bytes().unwrap()).unwrap(), dict);
    assert_eq!(dict.names().collect::<Vec<_>>(), ["f8", "mask"]);
}

#[test]
fn tensors_that_cannot_be_written_are_refused() {
    let mut dict = StateDict::new();
    let error = dict.insert("a", &[2, 3], &[0f32; 5]).unwrap_err();
    assert_eq!(error, Error::Length { what: "values", expected: 6, got: 5 });
    assert!(dict.insert("a", &[usize::MAX, 2], &[0f32; 5]).is_err());
    assert!(matches!(dict.insert("__metadata__", &[1], &[0f32]), Err(Error::State(_))));
    assert_eq!(dict, StateDict::new());
}

#[test]
fn counters_and_types_are_told() {
    let mut dict = handmade(
        &[info("half", "F16", "[]", [0, 2]), info("mask", "BOOL", "[2]", [2, 4])],
        &[
            0, 0x40, 1, 0, // 2 in f16
        ],
    );
    dict.insert_count("n", 7).unwrap();
    dict.insert("bf16", &[1], &[half::bf16::ONE]).unwrap();
    assert_eq!(
        (dict.count("n"), dict.count("half"), dict.count("none")),
        (Ok(Some(7)), Ok(Some(2)), Ok(None))
    );
    let message = dict.count("mask").unwrap_err().to_string();
    assert_eq!(
        message,
        "state dict: mask: expected one whole number from 0 to i64::MAX, got bool [2]"
    );
    let types = ["half", "bf16", "n", "mask", "none"].map(|name| dict.dtype(name));
    assert_eq!(types, [Some(DType::F16), Some(DType::Bf16), None, None, None]);
    assert!(matches!(dict.insert_count("n", 1 << 63), Err(Error::State(_))));
    assert!(matches!(dict.insert_count("__metadata__", 1), Err(Error::State(_))));
    assert_eq!(dict.count("n"), Ok(Some(7)));
}

#[test]
fn files_that_are_none_are_refused() {
    let good = file("float");
    assert!(StateDict::from_bytes(&good).is_ok());
    let message = |bytes: &[u8]| StateDict::from_bytes(bytes).unwrap_err().to_string();
    assert_eq!(message(&[]), "state dict: expected a safetensors header, got 0 bytes");
    let expected = "state dict: expected a safetensors header, got 20 bytes";
    assert_eq!(message(&good[..20]), expected);
    assert!(message(&good[..good.len() - 1]).starts_with("state dict: expected 88 bytes of data"));
    assert!(message(&[&good[..], &[0]].concat()).ends_with("got 89"));
    let tensor =
        |shape: &str, end: u64| message(&bytes_of(&[info("a", "F32", shape, [0, end])], &[0; 8]));
    for (shape, end) in [("[3]", 8), ("[2]", 12), ("[-2]", 8), ("[4294967296,4294967296]", 8)] {
        assert!(tensor(shape, end).starts_with("state dict: "), "{shape} {end}");
    }
}

#[test]
fn sizes_that_overflow_when_added_up_are_refused() {
    // Eight tensors of 2^61 - 1 bytes each: 8 and the header's length more exceed 64 bits.
    let size = (1u64 << 61) - 1;
    let tensor =
        |i: u64| info(&i.to_string(), "U8", &format!("[{size}]"), [i * size, (i + 1) * size]);
    let header: Vec<_> = (0..8).map(tensor).collect();
    assert!(StateDict::from_bytes(&bytes_of(&header, &[])).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        load_anything(&bytes);
        load_anything(&bytes_of(&[], &bytes));
    }

    #[test]
    fn mutated_files_never_panic(
        name in prop::sample::select(vec!["float", "half", "double", "network", "version1"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        digits in any::<bool>(),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = file(name);
        for (at, value) in changes {
            // Most changes in the header break its syntax; digits change sizes and offsets.
            let places: Vec<usize> = (8..bytes.len())
                .filter(|&i| !digits || bytes[i].is_ascii_digit())
                .collect();
            let at = places[at.index(places.len())];
            bytes[at] = if digits { b'0' + value % 10 } else { value };
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        load_anything(&bytes);
    }
}
