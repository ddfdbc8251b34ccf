//! The lab without a gate: everything works from everywhere. What fails with a gate fails because of it.

use outgate_tests::lab::{Datagram, Lab, OTHER_RESOLVER, Passed, Place, site};

#[test]
fn web_clients_reach_every_site_by_both_families() {
    let Some(lab) = Lab::start() else { return };
    for (machine, v4, v6) in
        [(lab.training(), "10.1.0.4", "fd00:1::4"), (lab.scoring(), "10.1.2.4", "fd00:2::4")]
    {
        let pypi = site("pypi.org");
        let said = machine.curl(&["-4", "https://pypi.org/whoami"]).assert_done().stdout;
        assert_eq!(said, format!("pypi.org at {} for {v4}\n", pypi.v4));
        let said = machine.curl(&["-6", "http://pypi.org/whoami"]).assert_done().stdout;
        assert_eq!(said, format!("pypi.org at {} for {v6}\n", pypi.v6));
    }
    let machine = lab.training();
    for said in [machine.wget("https://ml.azure.com/whoami"), machine.python("https://ml.azure.com/whoami")] {
        assert!(said.assert_done().stdout.starts_with("ml.azure.com at "));
    }
    if let Some(said) = machine.node("https://ml.azure.com/whoami") {
        assert!(said.assert_done().stdout.starts_with("ml.azure.com at "));
    }
    let shown = machine.s_client(site("evil.example").v4, Some("evil.example")).assert_done().stdout;
    assert!(shown.contains("Verification: OK"), "{shown}");
    assert_eq!(lab.visits()[0].sni, "pypi.org");
}

#[test]
fn chromium_shows_a_page() {
    let Some(lab) = Lab::start() else { return };
    let Some(shown) = lab.training().chromium("https://ml.azure.com/whoami") else { return };
    assert!(shown.stdout.contains("ml.azure.com at 2620:1ec:bdf::40"), "{shown:?}");
}

#[test]
fn packages_images_and_repositories_can_be_fetched() {
    let Some(lab) = Lab::start() else { return };
    lab.offer_python_project();
    if let Some(ran) = lab.training().pip_install("tiny") {
        assert!(ran.assert_done().stdout.contains("Successfully installed tiny-1.0"));
    }
    if lab.offer_debian_package().is_some()
        && let Some(ran) = lab.training().apt_download("tiny")
    {
        assert!(ran.assert_done().stdout.contains("tiny_1.0_all.deb"));
    }
    if lab.offer_git_repository().is_some()
        && let Some(ran) = lab.training().git_clone("https://github.com/lab/tiny.git")
    {
        assert_eq!(ran.assert_done().stdout, "welcome\n");
    }
    if lab.offer_image().is_some()
        && let Some(ran) = lab.training().pull("mcr.microsoft.com/azureml/tiny:1")
    {
        assert!(ran.assert_done().stdout.contains("manifest.json"));
    }
}

#[test]
fn names_datagrams_time_and_echo_work() {
    let Some(lab) = Lab::start() else { return };
    let machine = lab.training();
    for how in [&["+notcp"][..], &["+tcp"], &["+tls"], &["+https"]] {
        let said = machine.dig(&[&["+short", &format!("@{OTHER_RESOLVER}"), "pypi.org"], how].concat());
        assert_eq!(said.assert_done().stdout.trim(), site("pypi.org").v4, "{how:?}");
    }
    let compute = site("compute.azureml.example");
    for address in [compute.v4, compute.v6] {
        assert_eq!(machine.datagram(address, 5831, b"hello"), Datagram::Answer(b"hello".to_vec()));
        assert!(matches!(machine.asks_the_time(address), Datagram::Answer(_)));
        machine.ping(address).assert_done();
        let mut echo = machine.connect(address, 5432);
        echo.wait_for(&format!("{address}\n"));
        assert!(echo.echoes("one") && echo.echoes("two"));
    }
    let closed = machine.connect(compute.v4, 1).heard();
    assert_eq!(closed.failed.as_deref(), Some("ECONNREFUSED"));
    assert_eq!(machine.datagram(compute.v4, 9, b""), Datagram::Icmp(3, 3));
    assert!(lab.asked().contains(&("10.1.0.4".to_owned(), "pypi.org".to_owned())));
}

#[test]
fn a_capture_sees_everything_that_reaches_the_internet() {
    let Some(lab) = Lab::start() else { return };
    let (capture, machine) = (lab.capture(), lab.training());
    let evil = site("evil.example");
    let _ = machine.datagram(evil.v4, 5831, b"hello");
    let _ = machine.datagram(evil.v6, 5831, &[7; 4000]);
    machine.ping(evil.v4).assert_done();
    let _ = machine.connect(evil.v6, 4444);
    let seen = |protocol: &str, port: Option<u16>, address: &str| {
        let passed = capture.passed();
        let wanted = |p: &&Passed| {
            p.protocol == protocol
                && p.port == port
                && p.destination == address.parse::<std::net::IpAddr>().unwrap()
        };
        passed.iter().find(wanted).unwrap_or_else(|| panic!("{protocol} {address} in {passed:#?}")).packets
    };
    assert_eq!(seen("udp", Some(5831), evil.v4), 1);
    assert_eq!(seen("udp", None, evil.v6), 3);
    assert_eq!(seen("icmp", None, evil.v4), 1);
    assert!(seen("tcp", Some(4444), evil.v6) >= 2);
    capture.forget();
    capture.assert_only(&[]);
}

#[test]
fn a_lab_ends_with_its_test() {
    let Some(lab) = Lab::start() else { return };
    let process = lab.machine(Place::Internet).run("readlink", &["/proc/self/ns/net"]).assert_done().stdout;
    drop(lab);
    let networks = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let link = std::fs::read_link(entry.unwrap().path().join("ns/net")).ok()?;
        Some(link.display().to_string())
    });
    assert!(!networks.into_iter().any(|network| network == process.trim()), "{process} is alive");
}
