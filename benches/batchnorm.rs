//! Every operation over the quick part of the table; the whole of it with `BATCHNORM_BENCH=all`.
//!
//! ```text
//! cargo bench -p examples                              # some minutes
//! cargo bench -p examples -- 'bwd/nhwc'                # what matches
//! ```
//!
//! Criterion watches for changes between two commits. For comparison with the memory's floor and
//! with other libraries there is the `speed` example.
use anyhow::{Context, Result};
use batchnorm::Cpu;
use criterion::{Criterion, Throughput};
use std::time::Duration;

mod table;

fn main() -> Result<()> {
    let all = std::env::var_os("BATCHNORM_BENCH").is_some_and(|value| value == "all");
    let criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    let mut criterion = criterion.configure_from_args();
    let engine = Cpu::default();
    for case in table::cases(!all)? {
        let (op, layout, dims) = (case.op.name(), case.layout_name(), case.dims_name());
        let mut group = criterion.benchmark_group(format!("{op}/{layout}"));
        group.throughput(Throughput::Bytes(case.least_traffic() as u64));
        group.bench_function(format!("{dims}/{}", case.dtype), |bencher| {
            // Made here, so that what a filter leaves out costs nothing.
            let ready = table::job::prepare(&engine, &case).with_context(|| case.to_string());
            let mut job = ready.unwrap_or_else(|error| panic!("{error:#}")).job;
            bencher.iter_custom(|iterations| {
                let times = (0..iterations).map(|_| job.time());
                let seconds = times.sum::<Result<f64>>();
                Duration::from_secs_f64(seconds.unwrap_or_else(|error| panic!("{error:#}")))
            });
        });
        group.finish();
    }
    criterion.final_summary();
    Ok(())
}
