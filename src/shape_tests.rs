use super::*;

fn folded(shape: Result<Shape>) -> (usize, usize, usize, usize) {
    let s = shape.unwrap();
    (s.batch, s.outer, s.channels, s.inner)
}

#[test]
fn every_layout_folds() {
    assert_eq!(folded(Shape::new(&[8, 3], 1)), (8, 8, 3, 1));
    assert_eq!(folded(Shape::new(&[8, 3, 5, 7], 1)), (8, 8, 3, 35));
    assert_eq!(folded(Shape::new(&[8, 5, 7, 3], 3)), (8, 280, 3, 1));
    assert_eq!(folded(Shape::new(&[8, 2, 3, 4, 5], 2)), (8, 16, 3, 20));
    assert_eq!(folded(Shape::new(&[3], 0)), (1, 1, 3, 1));
    assert_eq!(folded(Shape::new(&[3, 9], 0)), (1, 1, 3, 9));
    assert_eq!(folded(Shape::new(&[0, 3, 4], 1)), (0, 0, 3, 4));
    assert_eq!(folded(Shape::from_end(&[8, 2, 3, 4, 5], -3)), (8, 16, 3, 20));
    assert_eq!(folded(Shape::from_end(&[3], -1)), (1, 1, 3, 1));
    assert_eq!(folded(Shape::per_activation(&[8, 3, 5, 7])), (8, 8, 105, 1));
    assert_eq!(folded(Shape::per_activation(&[8])), (8, 8, 1, 1));
}

#[test]
fn several_axes_fold_into_one() {
    let dims = [8, 5, 7, 3];
    for axes in [&[1, 2][..], &[2, 1], &[-3, 2], &[-2, -3]] {
        assert_eq!(folded(Shape::with_axes(&dims, axes)), (8, 8, 35, 3), "{axes:?}");
    }
    for axis in -4..4 {
        assert_eq!(Shape::with_axes(&dims, &[axis]), Shape::from_end(&dims, axis));
    }
    assert_eq!(folded(Shape::with_axes(&dims, &[0, 1])), (1, 1, 40, 21));
    assert_eq!(folded(Shape::with_axes(&dims, &[3, 2, 1])), (8, 8, 105, 1));
    assert_eq!(folded(Shape::with_axes(&dims, &[0, 1, 2, 3])), (1, 1, 840, 1));
    // Axes of size 1 stand anywhere, averaged over or not.
    assert_eq!(folded(Shape::with_axes(&[8, 5, 1, 3], &[1, 3])), (8, 8, 15, 1));
    assert_eq!(folded(Shape::with_axes(&[1, 5, 7, 3], &[0, 3])), (1, 35, 3, 1));
    assert_eq!(folded(Shape::with_axes(&[8, 5, 3, 1], &[1, 3])), (8, 8, 5, 3));
    assert_eq!(folded(Shape::with_axes(&[8, 1, 3, 1], &[1, 3])), (8, 8, 1, 3));
    assert_eq!(folded(Shape::with_axes(&[0, 5, 7], &[1, 2])), (0, 0, 35, 1));
}

#[test]
fn strides_fold_as_memory_lies() {
    let dims = [8, 3, 5, 7];
    assert_eq!(folded(Shape::strided(&dims, &[105, 35, 7, 1], 1)), (8, 8, 3, 35));
    assert_eq!(folded(Shape::strided(&dims, &[105, 1, 21, 3], 1)), (8, 280, 3, 1));
    // N and H swapped in memory: the channels lie between them.
    assert_eq!(folded(Shape::strided(&dims, &[21, 7, 168, 1], 1)), (8, 40, 3, 7));
    // Strides of axes of size 1 are arbitrary.
    assert_eq!(folded(Shape::strided(&[8, 3, 1, 1], &[3, 1, 77, 0], 1)), (8, 8, 3, 1));
    assert_eq!(folded(Shape::strided(&[8, 1, 5], &[5, 99, 1], 1)), (8, 1, 1, 40));
    assert_eq!(folded(Shape::strided(&[0, 3], &[0, 0], 1)), (0, 0, 3, 1));
}

#[test]
fn bad_shapes_say_both_sides() {
    let message = |shape: Result<Shape>| shape.unwrap_err().to_string();
    assert_eq!(message(Shape::new(&[2, 3], 2)), "axis: expected less than the rank 2, got 2");
    for axis in [2, -3, isize::MAX, isize::MIN] {
        let expected = format!("axis: expected from -2 to less than the rank 2, got {axis}");
        assert_eq!(message(Shape::from_end(&[2, 3], axis)), expected);
    }
    assert_eq!(
        message(Shape::from_end(&[], 0)),
        "axis: expected from -0 to less than the rank 0, got 0"
    );
    let axes = |axes: &[isize]| message(Shape::with_axes(&[8, 5, 7, 3], axes));
    assert_eq!(axes(&[]), "axes: expected at least 1, got none");
    assert_eq!(axes(&[4]), "axis: expected from -4 to less than the rank 4, got 4");
    assert_eq!(axes(&[1, -3]), "axes: expected each axis once, got axis 1 twice in [1, -3]");
    assert!(axes(&[0, -1]).starts_with("axes: expected neighbours, got [0, -1] of dims"));
    let none = message(Shape::with_axes(&[8, 0, 7], &[1, 2]));
    assert_eq!(none, "channels: expected at least 1, got 0");
    assert!(message(Shape::with_axes(&[1, usize::MAX, 2], &[1, 2])).starts_with("dims"));
    for interleaving in [false, true] {
        assert_eq!(
            message(Shape::interleaving(&[8], interleaving)),
            "dims: expected a batch axis and at least one behind it, got [8]"
        );
    }
    assert_eq!(message(Shape::new(&[2, 0], 1)), "channels: expected at least 1, got 0");
    assert!(message(Shape::new(&[usize::MAX, 2], 1)).starts_with("dims: the product of ["));
    assert!(message(Shape::new(&[0, 2, usize::MAX], 1)).starts_with("dims: the product of ["));
    assert!(message(Shape::per_activation(&[1, usize::MAX, 2])).starts_with("dims"));
    assert!(message(Shape::per_activation(&[])).starts_with("dims"));
    for strides in [&[3, 0][..], &[4, 1], &[3, 1, 1], &[1, 3], &[3, usize::MAX]] {
        let error = message(Shape::strided(&[2, 3], strides, 1));
        assert!(error.starts_with("strides: expected"), "{error}");
    }
}
