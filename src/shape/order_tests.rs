use super::*;

fn axes(dims: &[usize], strides: &[usize]) -> Vec<usize> {
    MemoryOrder::new(dims, strides).unwrap().axes
}

#[test]
fn axes_of_size_1_stay_behind_the_one_before() {
    assert_eq!(axes(&[8, 3, 1, 1], &[3, 1, 77, 0]), [0, 1, 2, 3]);
    assert_eq!(axes(&[1, 3, 5], &[0, 1, 3]), [0, 2, 1]);
    assert_eq!(axes(&[2, 1, 3], &[3, 9, 1]), [0, 1, 2]);
    assert_eq!(axes(&[2, 1, 1, 3], &[1, 9, 9, 2]), [3, 0, 1, 2]);
    assert_eq!(axes(&[2, 3, 1, 5], &[15, 1, 1, 3]), [0, 3, 1, 2]);
    assert_eq!(axes(&[5, 1, 3], &[1, 1, 5]), [2, 0, 1]);
    assert_eq!(axes(&[1, 1], &[9, 9]), [0, 1]);
    assert_eq!(axes(&[], &[]), [0; 0]);
    assert_eq!(axes(&[3, 0, 2], &[0, 1, 9]), [0, 1, 2]);
}

#[test]
fn what_is_not_dense_has_no_order() {
    let message = |dims: &[usize], strides: &[usize]| {
        MemoryOrder::new(dims, strides).unwrap_err().to_string()
    };
    // Broadcast, a part of a tensor, windows that overlap, one element twice.
    for strides in [[0, 1], [3, 0], [4, 1], [3, 2], [1, 1], [2, 1], [usize::MAX, 1]] {
        let error = message(&[2, 3], &strides);
        assert!(error.starts_with("strides: expected dense memory, stride "), "{error}");
    }
    assert_eq!(message(&[2, 3], &[1]), "strides: expected 2 for dims [2, 3], got [1]");
    assert!(message(&[usize::MAX, 2], &[2, 1]).starts_with("dims: the product of ["));
    assert!(MemoryOrder::row_major(&[usize::MAX, 2]).is_err());
}

#[test]
fn tensors_beside_x_lie_as_it_does() {
    let order = MemoryOrder::new(&[2, 3, 1, 5], &[15, 1, 99, 3]).unwrap();
    assert!(order.check("y", &[2, 3, 1, 5], &[15, 1, 0, 3]).is_ok());
    for (dims, strides) in [
        (&[2, 3, 1, 5][..], &[15, 5, 5, 1][..]),
        (&[2, 3, 1, 5], &[15, 1, 3]),
        (&[2, 3, 5], &[15, 1, 3]),
        (&[2, 3, 5, 1], &[15, 1, 3, 3]),
    ] {
        assert!(order.check("y", dims, strides).is_err(), "{dims:?} {strides:?}");
    }
    let empty = MemoryOrder::row_major(&[0, 3]).unwrap();
    assert_eq!(empty.strides(), [3, 1]);
    assert!(
        empty.check("y", &[0, 3], &[7, 7]).is_ok() && empty.check("y", &[3, 0], &[3, 1]).is_err()
    );
}
