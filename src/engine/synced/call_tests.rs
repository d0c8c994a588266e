use super::*;
use crate::Host;

fn call() -> Call {
    Call::new(Op::ForwardTrain, DType::F32, 7, Activation::Relu).eps(1e-5)
}

#[test]
fn values_are_counted_where_calls_agree() {
    let all = [call().words(Some(3)), call().words(Some(0)), call().words(Some(1 << 40))];
    assert_eq!(agreed(1, &all).unwrap(), [3, 0, 1 << 40]);
}

#[test]
fn a_refusal_is_named_to_others_alone() {
    let all = [call().words(Some(3)), call().words(None)];
    let error = agreed(0, &all).unwrap_err();
    assert_eq!(error.to_string(), "rank 1: it has refused its part of the call");
    // Whose own error comes first.
    assert!(agreed(1, &all).is_ok());
}

#[test]
fn every_difference_is_shown_from_both_sides() {
    let leaky = |negative_slope| Activation::LeakyRelu { negative_slope };
    let with = |activation| Call { activation, ..call() };
    let masked =
        |all_masked, count_eps| call().mask(Some(MaskRules { last: None, count_eps, all_masked }));
    let (mut mean, mut var) = ([0f32], [1f32]);
    let mut moving = |factor, var_factor| {
        let running = Running::<Host, f32>::new(&mut mean, &mut var, factor);
        call().moves(Some(&running.var_factor(var_factor)), OneValue::Refuse)
    };
    let cases = [
        (call(), Call { op: Op::Backward, ..call() }, "the operation ForwardTrain", "Backward"),
        (call(), Call { dtype: DType::F64, ..call() }, "f32", "f64"),
        (call(), Call { channels: 8, ..call() }, "7 channels", "8 channels"),
        (call(), call().eps(1e-3), "an eps of 1e-5", "an eps of 1e-3"),
        (call(), with(Activation::Gelu), "relu", "gelu"),
        (with(leaky(0.1)), with(leaky(0.2)), "negative_slope of 0.1", "negative_slope of 0.2"),
        (call(), call().flags(&[true]), "none of residual", "a residual"),
        (call().flags(&[true, true]), call().flags(&[true]), "a weight", "none of weight"),
        (call(), masked(AllMasked::Keep, 0.0), "none of mask", "a mask"),
        (call(), call().renorm(), "none of renormalization", "renormalization"),
        (call(), call().ghost(8), "none of ghost batches", "ghost batches"),
        (call().ghost(4), call().ghost(8), "ghost batches of 4 rows", "of 8 rows"),
        (
            masked(AllMasked::Keep, 0.0),
            masked(AllMasked::Nan, 0.0),
            "all_masked=keep",
            "all_masked=nan",
        ),
        (
            masked(AllMasked::Nan, 0.0).ghost(4),
            masked(AllMasked::Nan, 0.0).ghost(8),
            "ghost batches of 4 rows",
            "of 8 rows",
        ),
        (
            masked(AllMasked::Keep, 0.0).ghost(4),
            call().ghost(4).mask(Some(MaskRules {
                last: None,
                count_eps: 0.0,
                all_masked: AllMasked::Zero,
            })),
            "all_masked=keep",
            "all_masked=zero",
        ),
        (
            masked(AllMasked::Keep, 0.0),
            masked(AllMasked::Keep, 1e-7),
            "count_eps of 0",
            "count_eps of 0.0000001",
        ),
        (moving(0.1, 0.1), moving(0.2, 0.1), "0.1 in the running mean", "0.2 in the running mean"),
        (moving(0.1, 0.1), moving(0.1, 0.2), "0.1 in the running var", "0.2 in the running var"),
        (call(), call().moves::<Host, f32>(None, OneValue::ZeroVariance), "rules 0b0", "0b1"),
    ];
    for (first, second, expected, got) in cases {
        let error = agreed(0, &[first.words(Some(4)), second.words(Some(4))]).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::Collective { rank: Some(1), .. }), "{text}");
        let (before, after) = text.split_once(", as rank 0 has it, got ").unwrap();
        assert!(before.contains(expected) && after.contains(got), "{text}");
    }
}
