//! What outgate is to cost at most, as multiples of the floor or of a peer in the same run; and what it did.

use std::fmt::Write as _;

use crate::report::Report;

/// A bound, and the two figures that it is about.
struct Goal {
    what: &'static str,
    /// The workload, the subject and the figure.
    figure: [&'static str; 3],
    /// What it is divided by, if by anything.
    by: Option<[&'static str; 3]>,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

use Bound::{AtLeast, AtMost};

const CPU: &str = "CPU µs each";
const CONNECT: &str = "CONNECT: tunnels opened and closed";
const SNI: &str = "SNI: tunnels opened and closed";
const HTTP: &str = "HTTP: requests on kept connections";
const EIGHT: &str = "Bulk down, 8 tunnels";
const ONE: &str = "Bulk down, 1 tunnel";
const PING: &str = "Ping-pong, 16 tunnels";
const RULES: &str = "Rules: tunnels with a longer list";
const RELOAD: &str = "Reload";
const GB: &str = "CPU s a GB";
const MIB: &str = "MiB after the start";

#[rustfmt::skip]
const GOALS: [Goal; 27] = [
    Goal { what: "CONNECT, CPU a tunnel / floor", figure: [CONNECT, "outgate", CPU], by: Some([CONNECT, "floor", CPU]), bound: AtMost(1.3) },
    Goal { what: "SNI, CPU a tunnel / floor", figure: [SNI, "outgate", CPU], by: Some([SNI, "floor", CPU]), bound: AtMost(1.25) },
    Goal { what: "SNI, CPU a tunnel / nginx", figure: [SNI, "outgate", CPU], by: Some([SNI, "nginx", CPU]), bound: AtMost(1.0) },
    Goal { what: "SNI, CPU a tunnel / haproxy", figure: [SNI, "outgate", CPU], by: Some([SNI, "haproxy", CPU]), bound: AtMost(1.0) },
    Goal { what: "denied CONNECT, CPU / floor's tunnel", figure: ["CONNECT, denied", "outgate", CPU], by: Some([CONNECT, "floor", CPU]), bound: AtMost(0.45) },
    Goal { what: "denied SNI, CPU / floor's tunnel", figure: ["SNI, denied", "outgate", CPU], by: Some([SNI, "floor", CPU]), bound: AtMost(0.3) },
    Goal { what: "HTTP, CPU a request / haproxy", figure: [HTTP, "outgate", CPU], by: Some([HTTP, "haproxy", CPU]), bound: AtMost(1.5) },
    Goal { what: "HTTP, CPU a request / envoy", figure: [HTTP, "outgate", CPU], by: Some([HTTP, "envoy", CPU]), bound: AtMost(1.0) },
    Goal { what: "HTTP, CPU a request / squid", figure: [HTTP, "outgate", CPU], by: Some([HTTP, "squid", CPU]), bound: AtMost(1.0) },
    Goal { what: "bulk, 8 tunnels, CPU / splicing relay", figure: [EIGHT, "outgate", GB], by: Some([EIGHT, "splice", GB]), bound: AtMost(1.15) },
    Goal { what: "bulk, 1 tunnel, CPU / splicing relay", figure: [ONE, "outgate", GB], by: Some([ONE, "splice", GB]), bound: AtMost(1.3) },
    Goal { what: "ping-pong, CPU a round trip / floor", figure: [PING, "outgate", "CPU µs a round trip"], by: Some([PING, "floor", "CPU µs a round trip"]), bound: AtMost(1.15) },
    Goal { what: "ping-pong, p50 / haproxy", figure: [PING, "outgate", "p50 µs"], by: Some([PING, "haproxy", "p50 µs"]), bound: AtMost(1.0) },
    Goal { what: "idle tunnel, user KiB", figure: ["Idle, 3000 tunnels", "outgate", "user KiB each"], by: None, bound: AtMost(2.0) },
    Goal { what: "100,000 rules, CPU a tunnel / 100 rules", figure: [RULES, "outgate 100000", CPU], by: Some([RULES, "outgate 100", CPU]), bound: AtMost(1.05) },
    Goal { what: "1,000,000 rules, CPU a tunnel / 100 rules", figure: [RULES, "outgate 1000000", CPU], by: Some([RULES, "outgate 100", CPU]), bound: AtMost(1.05) },
    Goal { what: "100,000 names, MiB", figure: [RULES, "outgate 100000", MIB], by: None, bound: AtMost(20.0) },
    Goal { what: "1,000,000 names, MiB", figure: [RULES, "outgate 1000000", MIB], by: None, bound: AtMost(100.0) },
    Goal { what: "100,000 names, SIGHUP to enforced, ms", figure: [RELOAD, "outgate 100000", "SIGHUP to enforced ms"], by: None, bound: AtMost(150.0) },
    Goal { what: "100,000 names, rename to enforced, ms", figure: [RELOAD, "outgate 100000", "rename to enforced ms"], by: None, bound: AtMost(400.0) },
    Goal { what: "reload, failed requests of others", figure: [RELOAD, "outgate 100000", "failures of others"], by: None, bound: AtMost(0.0) },
    Goal { what: "reload, longest wait of others, ms more than in a quiet time", figure: [RELOAD, "outgate 100000", "longest wait of others, ms more"], by: None, bound: AtMost(5.0) },
    Goal { what: "CONNECT, tunnels with two cores / one, by CPU", figure: ["Cores: tunnels by CONNECT", "outgate 2", "times as much, by CPU"], by: None, bound: AtLeast(1.8) },
    Goal { what: "SNI, tunnels with two cores / one, by CPU", figure: ["Cores: tunnels by SNI", "outgate 2", "times as much, by CPU"], by: None, bound: AtLeast(1.8) },
    Goal { what: "goodput at twice the peak / peak, CONNECT", figure: ["Overload by CONNECT", "outgate", "goodput / peak at twice the peak offered"], by: None, bound: AtLeast(0.9) },
    Goal { what: "p99 of tunnels beside a bulk pull / without", figure: ["Fairness: tunnels beside one bulk pull", "outgate", "p99 µs with"], by: Some(["Fairness: tunnels beside one bulk pull", "outgate", "p99 µs without"]), bound: AtMost(2.0) },
    Goal { what: "memory under churn, the end / half of the time", figure: ["Churn: tunnels come and go, a tenth denied", "outgate", "MiB at the end"], by: Some(["Churn: tunnels come and go, a tenth denied", "outgate", "MiB after half"]), bound: AtMost(1.05) },
];

/// A table of the goals whose figures were measured.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut text = "| goal | bound | measured | met |\n| --- | ---: | ---: | --- |\n".to_owned();
    for Goal { what, figure, by, bound } in GOALS {
        let median = |[workload, subject, figure]: [&str; 3]| report.median(workload, subject, figure);
        let Some(value) = median(figure) else { continue };
        let value = match by.map(median) {
            None => value,
            Some(Some(by)) => value / by,
            Some(None) => continue,
        };
        let (sign, bound, met) = match bound {
            AtMost(bound) => ("≤", bound, value <= bound),
            AtLeast(bound) => ("≥", bound, value >= bound),
        };
        let met = if met { "yes" } else { "**no**" };
        let _ = writeln!(text, "| {what} | {sign} {bound} | {value:.2} | {met} |");
    }
    text
}
