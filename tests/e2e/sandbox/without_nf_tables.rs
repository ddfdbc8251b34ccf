//! A kernel without nf_tables: every address is the sandbox's own there, and each port of the policy has a listener.

use outgate_tests::lab::{Lab, site};

use super::{Desk, write};

/// Runs a program that finds no netfilter: its sockets are refused as a kernel does that was built without.
const WITHOUT: &str = "
import ctypes, os, platform, struct, sys
number = {'x86_64': 41, 'aarch64': 198}[platform.machine()]
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
program = [
    (LOAD, 0, 0, 0), (EQUAL, 0, 5, number),
    (LOAD, 0, 0, 16), (EQUAL, 0, 3, 16),
    (LOAD, 0, 0, 32), (EQUAL, 0, 1, 12),
    (RETURN, 0, 0, 0x00050000 | 93), (RETURN, 0, 0, 0x7fff0000),
]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in program))
class Program(ctypes.Structure): _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
filter = Program(len(program), ctypes.cast(code, ctypes.c_void_p).value)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(filter)): sys.exit(os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
";

fn desk() -> Option<Desk> {
    let Desk { lab, words } = Desk::new()?;
    let script = write(lab.folder(), "without.py", WITHOUT).display().to_string();
    let words = ["/usr/bin/python3".to_owned(), script].into_iter().chain(words).collect();
    Some(Desk { lab, words })
}

#[test]
fn the_policy_holds_there_as_well() {
    let Some(desk) = desk() else { return };
    let rules = desk.sh("cat /proc/net/fib_trie").assert_done().stdout;
    assert!(rules.contains("/0 host LOCAL"), "it has netfilter after all: {rules}");
    let machine = desk.inside();
    for url in ["https://ml.azure.com/whoami", "http://ml.azure.com/whoami"] {
        for family in ["-4", "-6"] {
            assert!(machine.curl(&[family, url]).assert_done().stdout.contains("ml.azure.com at "));
        }
    }
    let database = site("db.partner.example");
    let talk =
        format!("getent ahosts {}; exec 3<>/dev/tcp/{}/5432; head -1 <&3", database.name, database.name);
    let said = machine.run("bash", &["-c", &talk]).assert_done().stdout;
    assert!(said.contains(database.v4), "{said}");
    desk.lab.capture().forget();
    machine.curl(&["https://evil.example/whoami"]).assert_failed();
    machine.curl(&[&format!("http://{}/whoami", site("evil.example").v4)]).assert_failed();
    machine.curl(&[&format!("http://{}:4444/", site("ml.azure.com").v4)]).assert_failed();
    machine.dig(&["@8.8.8.8", "evil.example"]).assert_done();
    let reached: Vec<String> = desk.lab.visits().into_iter().map(|visit| visit.site).collect();
    assert!(reached.iter().all(|site| site == "ml.azure.com"), "{reached:?}");
}

#[test]
fn the_filter_of_this_test_takes_netfilter_away_and_nothing_else() {
    let Some(lab) = Lab::start() else { return };
    let script = write(lab.folder(), "without.py", WITHOUT).display().to_string();
    let probe = "import socket
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
try: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
except OSError as error: print(error.errno)";
    let ran = lab.training().run("/usr/bin/python3", &[&script, "/usr/bin/python3", "-c", probe]);
    assert_eq!(ran.assert_done().stdout.trim(), "93");
}
