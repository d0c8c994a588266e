//! NumPy: types, orders of bytes, and headers.
use batchnorm::DType;
use batchnorm_formats::{Array, npy};

/// As `np.save` writes it.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let len = (header.len() as u16).to_le_bytes();
    [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), data].concat()
}

#[test]
fn types_and_orders_of_bytes() {
    let read = |descr: &str, data: &[u8]| {
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (2,), }}");
        npy::read(&file(&header, data))
    };
    let want = |dtype| Array::vector(dtype, vec![1.0, -2.0]);
    let double = [1f64, -2.0];
    assert_eq!(read("<f8", &double.map(f64::to_le_bytes).concat()), Ok(want(DType::F64)));
    assert_eq!(read(">f8", &double.map(f64::to_be_bytes).concat()), Ok(want(DType::F64)));
    assert_eq!(read(">f4", &[0x3f, 0x80, 0, 0, 0xc0, 0, 0, 0]), Ok(want(DType::F32)));
    assert_eq!(read("<f2", &[0, 0x3c, 0, 0xc0]), Ok(want(DType::F16)));
    let message = |descr: &str, data: &[u8]| read(descr, data).unwrap_err().to_string();
    assert_eq!(message("<i8", &[0; 16]), "npy: expected type f2, f4 or f8, got <i8");
    assert_eq!(message("|O", &[]), "npy: expected type f2, f4 or f8, got |O");
    let expected = "array: expected the bytes of f32 [2], got 7 bytes";
    assert_eq!(message("<f4", &[0; 7]), expected);
}

#[test]
fn shapes_and_versions() {
    let read = |shape: &str, fortran: &str, len: usize| {
        let header = format!("{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': {shape}, }}");
        npy::read(&file(&header, &vec![0; 4 * len])).map(|array| array.shape)
    };
    assert_eq!(read("()", "False", 1), Ok(vec![]));
    assert_eq!(read("(1, 1, 3)", "False", 3), Ok(vec![1, 1, 3]));
    assert_eq!(read("(1, 3)", "True", 3), Ok(vec![1, 3]));
    assert!(read("(2, 3)", "True", 6).is_err());
    assert!(read("(18446744073709551615, 2)", "False", 0).is_err());
    assert!(read("(-1,)", "False", 0).is_err());
    let mut later = npy::write(&Array::vector(DType::F32, vec![1.0]));
    later[6] = 4;
    assert_eq!(npy::read(&later).unwrap_err().to_string(), "npy: version 4");
}

#[test]
fn what_is_written_is_read() {
    let shaped = |dtype, shape: &[usize], values| Array { dtype, shape: shape.to_vec(), values };
    for array in [
        shaped(DType::F64, &[2], vec![0.1, f64::INFINITY]),
        shaped(DType::F16, &[1, 2], vec![1.5, -2.0]),
        shaped(DType::F32, &[], vec![3.0]),
        shaped(DType::F32, &[0], vec![]),
    ] {
        assert_eq!(npy::read(&npy::write(&array)), Ok(array.clone()));
        assert_eq!(npy::write(&array).len() % 64, array.values.len() * array.dtype.size() % 64);
    }
    // NumPy has no bf16.
    let bf16 = npy::read(&npy::write(&shaped(DType::Bf16, &[1], vec![1.5]))).unwrap();
    assert_eq!((bf16.dtype, bf16.values), (DType::F32, vec![1.5]));
}
