//! Arithmetic that is exact: the same bits as in Rust.
use crate::support::exact;
use crate::{on, under_seeds};

fn agrees(profile: &str) {
    let checks = under_seeds(profile, |device, _| {
        let checks = exact::run(device).unwrap();
        let wrong: Vec<_> = checks.iter().flat_map(|check| check.differences()).collect();
        let shown = &wrong[..wrong.len().min(40)];
        assert!(wrong.is_empty(), "{} values differ, these among them: {shown:#?}", wrong.len());
        checks.len()
    });
    assert!(checks > 100, "only {checks} operations were compared");
}

#[test]
fn of_sm_90() {
    agrees("sm_90");
}
#[test]
fn of_sm_80() {
    agrees("sm_80");
}
#[test]
fn of_sm_75() {
    agrees("sm_75");
}

#[test]
fn approximations_stay_inside_their_bound_and_are_not_exact() {
    let worst = on("sm_90", |device, _| exact::floats::approximate(device).unwrap().1);
    assert!(worst <= exact::floats::RSQRT_BOUND, "{worst:e}");
    // Half an ulp is what an exact one is off by; a kernel that relies on that is found out.
    assert!(worst > 0.6 * f64::from(f32::EPSILON), "{worst:e}");
}
