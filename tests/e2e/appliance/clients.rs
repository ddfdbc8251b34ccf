//! The clients that people use, with no word of a proxy in their settings: what is allowed works as if there were no
//! gate, and what is not fails at once.

use std::time::{Duration, Instant};

use outgate_tests::lab::{Machine, Ran, site};

use super::guarded;

/// A refusal is one round trip to the gate. The rest is the client's own start.
const AT_ONCE: Duration = Duration::from_secs(8);

/// Runs a client that must fail, and soon.
fn fails_at_once(client: impl FnOnce() -> Ran) -> Ran {
    let start = Instant::now();
    let ran = client().assert_failed();
    assert!(start.elapsed() < AT_ONCE, "{:?} for {ran:?}", start.elapsed());
    ran
}

#[test]
fn training_reaches_the_python_index_and_scoring_does_not() {
    let Some(hub) = guarded() else { return };
    hub.lab.offer_python_project();
    let Some(ran) = hub.lab.training().pip_install("tiny") else { return };
    assert!(ran.assert_done().stdout.contains("Successfully installed tiny-1.0"));

    fails_at_once(|| hub.lab.scoring().pip_install("tiny").unwrap());

    let refused = hub.gate.record("scoring's lookup", |r| r["host"] == "pypi.org" && r["verdict"] == "deny");
    assert_eq!((&refused["kind"], &refused["client"]), (&"dns".into(), &"10.1.2.4".into()));
    // Who knows the address without a lookup gets no further.
    hub.lab.scoring().s_client(site("pypi.org").v4, Some("pypi.org")).assert_failed();
    let refused = hub.gate.record("scoring's flow", |r| r["sni"] == "pypi.org" && r["verdict"] == "deny");
    assert_eq!(refused["reason"], "source-not-in-rule");
    let asked = hub.lab.asked();
    assert!(asked.iter().all(|(client, _)| client == "10.0.0.4"), "{asked:?}");
}

/// Fetches a page with a program; none where there is no such program.
type Fetch = fn(&Machine, &str) -> Option<Ran>;

#[test]
fn what_the_web_clients_ask_for_comes_by_the_gate() {
    let Some(hub) = guarded() else { return };
    let clients: [(&str, Fetch); 6] = [
        ("curl", |machine, url| Some(machine.curl(&["-4", url]))),
        ("curl over IPv6", |machine, url| Some(machine.curl(&["-6", url]))),
        ("wget", |machine, url| Some(machine.wget(url))),
        ("python", |machine, url| Some(machine.python(url))),
        ("node", |machine, url| machine.node(url)),
        ("s_client", |machine, url| {
            let name = url.split('/').nth(2)?;
            let ran = machine.s_client(site(name).v4, Some(name));
            Some(if ran.done { machine.curl(&[url]) } else { ran })
        }),
    ];
    for machine in [hub.lab.training(), hub.lab.scoring()] {
        for (name, client) in &clients {
            for url in ["https://ml.azure.com/whoami", "http://ml.azure.com/whoami"] {
                let Some(ran) = client(&machine, url) else { continue };
                let said = ran.assert_done().stdout;
                assert!(said.starts_with("ml.azure.com at "), "{name}: {said}");
                // The origin sees the gate, by whichever family it was reached.
                assert!(said.contains("for 10.0.0.4") || said.contains("for fd00::4"), "{name}: {said}");
            }
            fails_at_once(|| client(&machine, "https://evil.example/whoami").unwrap());
        }
    }
    let azure = site("ml.azure.com");
    hub.lab.capture().assert_only(&[(azure.v4, 443), (azure.v4, 80), (azure.v6, 443), (azure.v6, 80)]);
}

#[test]
fn a_refused_request_in_plain_http_is_told_why() {
    let Some(hub) = guarded() else { return };
    let machine = hub.lab.training();
    let evil = site("evil.example");
    let resolve = format!("evil.example:80:{}", evil.v4);
    let ran =
        machine.run("curl", &["-sS", "-i", "--max-time", "5", "--resolve", &resolve, "http://evil.example/"]);
    assert!(ran.stdout.starts_with("HTTP/1.1 403 "), "{ran:?}");
    assert!(ran.stdout.contains("no rule allows it"), "{ran:?}");
    hub.lab.capture().assert_only(&[]);
}

#[test]
fn chromium_shows_an_allowed_page_and_an_error_for_another() {
    let Some(hub) = guarded() else { return };
    let Some(shown) = hub.lab.training().chromium("https://ml.azure.com/whoami") else { return };
    assert!(shown.stdout.contains("ml.azure.com at "), "{shown:?}");
    let decision =
        hub.gate.record("Chromium's flow", |r| r["sni"] == "ml.azure.com" && r["verdict"] == "allow");
    assert_eq!(decision["kind"], "tls");

    let shown = hub.lab.training().chromium("https://evil.example/whoami").unwrap();
    assert!(!shown.stdout.contains("evil.example at "), "{shown:?}");
    let azure = site("ml.azure.com");
    hub.lab.capture().assert_only(&[(azure.v4, 443), (azure.v6, 443)]);
}

#[test]
fn apt_gets_a_package_over_plain_http() {
    let Some(hub) = guarded() else { return };
    if hub.lab.offer_debian_package().is_none() {
        return;
    }
    let Some(ran) = hub.lab.scoring().apt_download("tiny") else { return };
    assert!(ran.assert_done().stdout.contains("tiny_1.0_all.deb"));
    assert_eq!(hub.gate.decision("deb.debian.org")["kind"], "dns");
    let _ = hub.gate.record("apt's request", |r| r["kind"] == "http" && r["host"] == "deb.debian.org");
}

#[test]
fn git_clones_a_repository() {
    let Some(hub) = guarded() else { return };
    if hub.lab.offer_git_repository().is_none() {
        return;
    }
    let Some(ran) = hub.lab.training().git_clone("https://github.com/lab/tiny.git") else { return };
    assert_eq!(ran.assert_done().stdout, "welcome\n");
    let _ = hub.gate.record("git's flow", |r| r["sni"] == "github.com" && r["verdict"] == "allow");
}

#[test]
fn skopeo_pulls_an_image() {
    let Some(hub) = guarded() else { return };
    if hub.lab.offer_image().is_none() {
        return;
    }
    let Some(ran) = hub.lab.scoring().pull("mcr.microsoft.com/azureml/tiny:1") else { return };
    assert!(ran.assert_done().stdout.contains("manifest.json"));
    let _ = hub.gate.record("skopeo's flow", |r| r["sni"] == "mcr.microsoft.com" && r["verdict"] == "allow");
    fails_at_once(|| hub.lab.scoring().pull("evil.example/library/tiny:1").unwrap());
    assert_eq!(hub.gate.decision("evil.example")["verdict"], "deny");
}
