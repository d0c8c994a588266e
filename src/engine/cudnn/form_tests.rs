use super::*;

fn form(shape: Result<Shape>, op: Op, dtype: DType, activation: Activation) -> Form {
    let request = Request::new(op, dtype).activation(activation);
    Form::new(&shape.unwrap(), request, false).unwrap()
}

#[test]
fn layouts_are_described_as_they_lie() {
    let (train, eval, plain) = (Op::ForwardTrain, Op::ForwardEval, Activation::Identity);
    let spatial = Mode::CUDNN_BATCHNORM_SPATIAL;
    let persistent = Mode::CUDNN_BATCHNORM_SPATIAL_PERSISTENT;
    let nchw = form(Shape::new(&[4, 6, 5, 7], 1), train, DType::F16, plain);
    assert_eq!((nchw.dims, nchw.strides), ([4, 6, 35, 1], [210, 35, 1, 1]));
    assert_eq!((nchw.mode, nchw.trains), (spatial, true));
    for (op, dtype, mode, trains) in [
        (train, DType::F16, persistent, true),
        (train, DType::F32, persistent, true),
        (train, DType::F64, spatial, true),
        (eval, DType::F16, spatial, false),
    ] {
        let nhwc = form(Shape::new(&[4, 5, 7, 6], 3), op, dtype, plain);
        assert_eq!((nhwc.dims, nhwc.strides), ([4, 6, 35, 1], [210, 1, 6, 6]));
        assert_eq!((nhwc.mode, nhwc.trains), (mode, trains), "{op:?} {dtype}");
    }
    let rows = form(Shape::new(&[9, 6], 1), train, DType::F16, plain);
    assert_eq!((rows.dims, rows.strides), ([9, 6, 1, 1], [6, 1, 6, 6]));
    assert_eq!(rows.mode, Mode::CUDNN_BATCHNORM_PER_ACTIVATION);
    let relu = form(Shape::new(&[9, 6], 1), train, DType::F16, Activation::Relu);
    assert_eq!((relu.mode, relu.trains), (persistent, true));
    // A middle axis has its rows first; one channel lies anywhere.
    let middle = form(Shape::new(&[2, 3, 4, 5], 2), train, DType::F32, plain);
    assert_eq!((middle.dims, middle.strides), ([6, 4, 5, 1], [20, 5, 1, 1]));
    let one = form(Shape::new(&[4, 1, 6], 1), train, DType::F16, Activation::Relu);
    assert_eq!((one.dims, one.strides), ([4, 1, 6, 1], [6, 1, 1, 1]));
}

#[test]
fn the_first_limit_that_is_exceeded_is_named() {
    let request = Request::new(Op::ForwardTrain, DType::F32).activation(Activation::Relu);
    let refused = |dims: &[usize], request| {
        let shape = Shape::new(dims, 1).unwrap();
        Form::new(&shape, request, false).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&[4, 6, 5], request),
        "cudnn: a ReLU behind the normalization needs f16, got f32"
    );
    let half = request.dtype(DType::F16).residual(true);
    assert_eq!(refused(&[4, 6], half), "cudnn: a residual needs channels % 4 == 0, got 6");
    let plain = request.activation(Activation::Identity);
    assert_eq!(
        refused(&[1 << 20, 2, 1 << 10], plain),
        "cudnn: expected at most 2147483647 elements, got 2147483648"
    );
}

#[test]
fn what_is_unknown_is_not_refused() {
    let request = Request::new(Op::ForwardTrain, DType::Bf16);
    let shape = Shape::new(&[880_802, 4], 1).unwrap();
    assert!(Form::new(&shape, request, false).is_ok());
    let unknown = limits::unknown(&Ask { shape: &shape, request });
    assert_eq!(unknown, ["bf16", "a batch of more than 880801, here 880802"]);
}
