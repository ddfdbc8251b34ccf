//! One decision, by the number of rules: as fast with a million as with a hundred?

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main};
use jiff::Timestamp;
use outgate_bench::{Shape, Workload, request};
use outgate_rules::rule::Action;

const SIZES: [usize; 3] = [100, 10_000, 1_000_000];

/// Half of the queries are allowed, the other half match no rule.
fn allow_or_miss(criterion: &mut Criterion) {
    for (name, shape) in [("exact", Shape::Exact), ("below", Shape::Below)] {
        let mut group = criterion.benchmark_group(format!("decide/{name}"));
        SIZES
            .iter()
            .for_each(|rules| decide(&mut group, *rules, &Workload::new(shape, Action::Allow, *rules)));
    }
}

/// Half of the queries are denied by a rule of their own, the other half match no rule.
fn deny_or_miss(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide/deny");
    SIZES
        .iter()
        .for_each(|rules| decide(&mut group, *rules, &Workload::new(Shape::Exact, Action::Deny, *rules)));
}

fn decide(group: &mut BenchmarkGroup<'_, WallTime>, rules: usize, workload: &Workload) {
    let now = Timestamp::UNIX_EPOCH;
    group.bench_function(BenchmarkId::from_parameter(rules), |bencher| {
        let mut queries = workload.queries.iter().cycle();
        bencher.iter(|| {
            let request = queries.next().map(request);
            request.map(|request| black_box(workload.rules.decide(black_box(&request), now)))
        });
    });
}

criterion_group!(benches, allow_or_miss, deny_or_miss);
criterion_main!(benches);
