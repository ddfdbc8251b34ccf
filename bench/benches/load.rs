//! A policy from the bytes of its files to what decides.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use outgate_bench::{load, name_file};

fn names(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("load");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for names in [100_000, 1_000_000] {
        let file = name_file(names);
        group.throughput(Throughput::Elements(names as u64));
        group.bench_with_input(BenchmarkId::from_parameter(names), &file, |bencher, file| {
            bencher.iter_with_large_drop(|| load(file));
        });
    }
}

criterion_group!(benches, names);
criterion_main!(benches);
