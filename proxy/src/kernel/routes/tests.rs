use super::super::namespace::{inside, run};
use super::*;

const ROUTES: Routes =
    Routes { mark: Mark { value: 0x0067_0000, mask: 0x00ff_0000 }, table: 103, priority: 1000 };

fn rules_and_routes() -> String {
    let show = |family, what: &[&str]| run("ip", &[&[family], what].concat());
    let rules = ["-4", "-6"].map(|family| show(family, &["rule", "show"])).concat();
    // A table that nothing was ever in is an error to `ip`.
    let routes = ["-4", "-6"].map(|family| show(family, &["route", "show", "table", "all"])).concat();
    let ours = routes.lines().filter(|line| line.contains("table 103"));
    rules + &ours.collect::<Vec<_>>().join("\n")
}

#[test]
fn routes_may_go_up_twice_and_down_twice() {
    inside(|| {
        let before = rules_and_routes();
        ROUTES.up().expect("up");
        let up = rules_and_routes();
        assert_eq!(up.matches("fwmark 0x670000/0xff0000 lookup 103").count(), 2, "{up}");
        assert_eq!(up.matches("local default dev lo table 103").count(), 2, "{up}");
        ROUTES.up().expect("up again");
        assert_eq!(rules_and_routes(), up);
        ROUTES.down().expect("down");
        assert_eq!(rules_and_routes(), before);
        ROUTES.down().expect("down again");
        assert_eq!(rules_and_routes(), before);
    });
}

#[test]
fn the_text_does_what_up_does() {
    inside(|| {
        ROUTES.up().expect("up");
        let up = rules_and_routes();
        ROUTES.down().expect("down");
        for line in ROUTES.text().lines() {
            let words: Vec<_> = line.split(' ').collect();
            run(words[0], &words[1..]);
        }
        assert_eq!(rules_and_routes(), up);
        ROUTES.down().expect("down takes away what was made by hand, too");
        assert!(!rules_and_routes().contains("103"));
    });
}

#[test]
fn a_marked_packet_to_any_address_is_local() {
    inside(|| {
        ROUTES.up().expect("up");
        for to in ["198.51.100.7", "2001:db8::7"] {
            let found = run("ip", &["route", "get", to, "mark", "0x670001"]);
            assert!(found.starts_with(&format!("local {to} ")) && found.contains("dev lo"), "{found}");
        }
    });
}

#[test]
fn settings_that_do_not_fit_are_told_with_what_they_should_be() {
    inside(|| {
        let names = || unfit_settings().iter().map(|setting| setting.name).collect::<Vec<_>>();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").expect("a setting of the namespace");
        assert!(names().contains(&"net.ipv4.ip_forward"));
        let forward = unfit_settings().into_iter().find(|setting| setting.name == "net.ipv4.ip_forward");
        let forward = forward.expect("it does not fit");
        assert_eq!((forward.wanted, forward.found.as_deref(), forward.needed), ("1", Some("0"), true));
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a setting of the namespace");
        assert!(!names().contains(&"net.ipv4.ip_forward"));
    });
}
