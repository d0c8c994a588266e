//! What the software device counts of every kernel, beside the figures that are committed in `counts.txt`: a kernel that
//! moves more, or computes longer, is seen without a GPU. `BATCHNORM_WRITE_TABLE=1` writes them, where a change is meant.
use crate::support::files::checkout;
use softcuda::LaunchReport;
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

const FILE: &str = "tests/cuda/counts.txt";
const HEAD: &str = "\
Of each case its kernels: blocks, bytes of global memory loaded and stored and the 32-byte sectors of both, instructions
of warps (of groups of blocks none, since they poll), bytes of shared memory, barriers. Written by the test `traffic`.

";
/// By which a figure may be another one, so that a changed instruction is no news.
const TOLERANCE: f64 = 0.01;

static COMMITTED: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let text = std::fs::read_to_string(checkout(FILE)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(" | "));
    lines.map(|(case, kernels)| (case.to_owned(), kernels.to_owned())).collect()
});

fn line(launch: &LaunchReport) -> String {
    let LaunchReport { kernel, grid, counts, cooperative, .. } = launch;
    let (loads, stores) = (counts.global_loads, counts.global_stores);
    let sectors = loads.sectors + stores.sectors;
    let instructions = if *cooperative { 0 } else { counts.warp_instructions };
    let shared = counts.shared_loads + counts.shared_stores;
    format!(
        "{kernel} {} {} {} {sectors} {instructions} {shared} {}",
        grid[0], loads.bytes, stores.bytes, counts.barriers
    )
}

fn is_near(line: &str, committed: &str) -> bool {
    let (mut ours, mut theirs) = (line.split(' '), committed.split(' '));
    let near = |a: &str, b: &str| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => (a - b).abs() <= TOLERANCE * b,
        _ => a == b,
    };
    ours.by_ref().zip(theirs.by_ref()).all(|(a, b)| near(a, b)) && ours.count() == theirs.count()
}

/// Compares the launches of a case with those that are committed.
pub fn check(case: &str, launches: &[LaunchReport]) {
    let line = launches.iter().map(line).collect::<Vec<_>>().join("; ");
    if std::env::var_os("BATCHNORM_WRITE_TABLE").is_some_and(|value| value == "1") {
        static MADE: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(case.to_owned(), line);
        let lines: String = made.iter().map(|(case, line)| format!("{case} | {line}\n")).collect();
        return std::fs::write(checkout(FILE), format!("{HEAD}{lines}")).unwrap();
    }
    let committed = COMMITTED.get(case).map_or("", String::as_str);
    assert!(
        is_near(&line, committed),
        "{case}: {line}\ncommitted: {committed}\nBATCHNORM_WRITE_TABLE=1 cargo test --test cuda traffic writes {FILE}"
    );
}

#[test]
fn a_kernel_that_does_more_is_seen() {
    assert!(is_near("stats_f16_v 3 1000 20", "stats_f16_v 3 1009 20"));
    for other in [
        "stats_f16_v 3 1020 20",
        "stats_f16_v 4 1000 20",
        "stats_f32_v 3 1000 20",
        "stats_f16_v 3 1000 20; x 1",
        "stats_f16_v 3 1000",
        "",
    ] {
        assert!(!is_near(other, "stats_f16_v 3 1000 20"), "{other}");
    }
}
