use super::*;
use crate::engine::pointers::assert_layout;

#[test]
fn arguments_lie_as_the_kernels_declare_them() {
    assert_layout! {
        include_str!("../../../../kernels/double_backward.cu");
        "Cut": Cut { elements, inner, row, width, all, chunk, vectors, step, rest, next_at, next_number, channels, chunks, tiles, runs, lanes, aligned, ragged, groups, together }
        "Channels<float>": Channels<f32> { mean, mean_rest, invstd, weight, bias }
        "Reads<float>": Reads<f32> { x, grad_y, residual, v_x, v_residual, mask, counting }
        "Writes<float>": Writes<f32> { gg_grad_y, gg_x, gg_residual }
        "Follows<float>": Follows<f32> { activation, source, slope }
        "Follows<double>": Follows<f64> { activation, source, slope }
        "Parameters<float>": Parameters<f32> { v_weight, v_bias, gg_weight, gg_bias, nonfinite, accumulate, batch, sums, total, values, counts, count_eps }
    }
}

#[test]
fn parts_cover_the_tensor_and_are_few() {
    for dims in [
        [1, 1, 1],
        [256, 64, 3136],
        [1 << 20, 3, 1],
        [5, 3, 31],
        [5, 3, 32],
        [0, 4, 7],
        [32, 2048, 49],
        [1 << 16, 1, 1],
        [1, 100_000, 2],
    ] {
        let shape = Shape::new(&dims, 1).unwrap();
        for dtype in [DType::F16, DType::F32, DType::F64] {
            let cut = Cut::new(&shape, dtype);
            let lanes = 16 / dtype.size() as u64;
            let (all, parts) = match cut.runs {
                1 => (cut.elements / cut.row * cut.vectors, dims[1] as u64),
                _ => (cut.elements.div_ceil(cut.width), cut.width.div_ceil(COLUMNS)),
            };
            assert!(cut.chunk * u64::from(cut.chunks) >= all, "{cut:?}");
            assert!(cut.blocks() < ENOUGH + 2 * parts + 1, "{cut:?}");
            assert_eq!(cut.width % cut.row, 0);
            // Rows of columns are whole vectors, and every run has as many as it touches.
            assert!(cut.runs == 1 || cut.width.is_multiple_of(lanes), "{cut:?}");
            let starts = (0..lanes).map(|k| k * cut.inner % lanes);
            let most = starts.map(|start| (start + cut.inner).div_ceil(lanes)).max();
            assert!(cut.runs == 0 || Some(cut.vectors) == most, "{cut:?}");
        }
    }
}

/// Channels last and between other axes, of rows of whole vectors and of others.
#[test]
fn columns_of_groups_are_neighbouring_rows() {
    for (dims, axis, groups, width) in [
        (&[32, 256, 64][..], 2, 4, 64),
        (&[64, 7, 7, 256], 3, 16, 256),
        (&[8, 2, 2, 3], 3, 2, 12),
        (&[12, 10, 6], 2, 3, 60),
        (&[6, 5, 5], 2, 3, 25),
        (&[6, 3, 16, 7], 2, 2, 112),
    ] {
        let shape = Shape::new(dims, axis).unwrap().of_strided_groups(groups).unwrap();
        let cut = Cut::new(&shape, DType::F32);
        assert_eq!((cut.runs, cut.width, cut.groups as usize), (0, width, groups), "{cut:?}");
        // What the groups have of a row of all of them follows one another.
        assert_eq!(cut.vectors * cut.width * groups as u64, cut.step, "{cut:?}");
        assert_eq!(cut.step, (dims[1..].iter().product::<usize>() * groups) as u64);
        let rows = cut.elements / groups as u64 / cut.width;
        assert!(cut.chunk * u64::from(cut.chunks) >= rows, "{cut:?}");
        // Vectors across two rows are taken element by element.
        let whole = cut.at([Ptr::<f32>::at(64)]).aligned == 1;
        assert_eq!(whole, width % 4 == 0, "{cut:?}");
    }
}
