//! Tests of the kernel run in a user and network namespace of their own: the test's binary runs again there, for that
//! one test. So they need no root, and leave nothing behind.

use std::any::type_name;
use std::env;
use std::process::{Command, Output};

const INSIDE: &str = "OUTGATE_TEST_NAMESPACE";

/// Runs `test` in a namespace of its own whose loopback interface is up. The closure stands in the test's function
/// and is all that it does: its type's name tells which test to run again.
pub(crate) fn inside<F: FnOnce()>(test: F) {
    inside_of(
        &["unshare", "--user", "--map-root-user", "--net"],
        || {
            run("ip", &["link", "set", "lo", "up"]);
            test();
        },
        type_name::<F>(),
    );
}

/// Likewise where `command` leads, for the test whose closure has this type's name.
pub(super) fn inside_of(command: &[&str], test: impl FnOnce(), closure: &str) {
    if env::var_os(INSIDE).is_some() {
        return test();
    }
    let name = closure.split_once("::").expect("a path").1.trim_end_matches("::{{closure}}");
    let output = Command::new(command[0])
        .args(&command[1..])
        .arg(env::current_exe().expect("this binary"))
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare of util-linux");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    println!("{said}");
}

/// What the program prints.
pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let errors = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(stdout).expect("UTF-8")
}

/// Gives `nft` this text to load.
pub(super) fn load(text: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("writing");
    run("nft", &["-f", file.path().to_str().expect("a path")]);
}
