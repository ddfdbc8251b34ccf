//! Ways round the gate, each tried from inside.

use std::os::unix::net::UnixListener;
use std::process::Stdio;

use outgate_tests::lab::site;

use super::{Desk, write};

/// What a Python expression raises in a sandbox; its value where it raises nothing.
fn attempt(desk: &Desk, expression: &str) -> String {
    let program = format!(
        "import socket, os, ctypes, fcntl, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), 'refused')
    return 'done'
try:
    print('did', {expression})
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
"
    );
    let mut command = desk.inside().command("/usr/bin/python3");
    command.args(["-c", &program]).env("LAB_NET", desk.lab.folder().join("net/hub"));
    let output = command.output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn no_system_call_leaves_the_namespace() {
    let Some(desk) = Desk::new() else { return };
    let table = [
        ("a mark", "socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1)", "EPERM"),
        ("a device", "socket.socket().setsockopt(socket.SOL_SOCKET, 25, b'lo')", ""),
        ("a raw socket", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "EPERM"),
        ("a packet socket", "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EAFNOSUPPORT"),
        ("the machine's host", "socket.socket(40, socket.SOCK_STREAM)", "EAFNOSUPPORT"),
        ("the radio", "socket.socket(31, socket.SOCK_RAW, 1)", "EAFNOSUPPORT"),
        ("the terminal's input", "fcntl.ioctl(0, 0x5412, b'x')", "EPERM"),
        (
            "a key, for which the kernel starts a program outside",
            "call(249, b'dns_resolver', b'evil.example', b'', -4)",
            "ENOSYS",
        ),
        (
            "a key by the call's second number",
            "call(0x400000f9, b'dns_resolver', b'evil.example', b'', -4)",
            "ENOSYS",
        ),
        ("the machine's host by the call's second number", "call(0x40000029, 40, 1, 0)", "E"),
        (
            "another network namespace",
            "call(308, os.open(os.environ['LAB_NET'], os.O_RDONLY), 0x40000000)",
            "EPERM",
        ),
        ("a ring", "call(425, 8, ctypes.create_string_buffer(120))", "ENOSYS"),
        ("a user", "os.setuid(0 if os.getuid() else 1)", "E"),
        ("a mount", "call(165, b'none', b'/mnt', b'tmpfs', 0, 0)", "EPERM"),
        ("taking a mount away", "call(166, b'/proc', 2)", "EPERM"),
        ("a tunnel", "fcntl.ioctl(os.open('/dev/net/tun', os.O_RDWR), 0x400454ca, b'x' * 40)", ""),
    ];
    for (way, expression, refusal) in table {
        let came = attempt(&desk, expression);
        assert!(!came.starts_with("did") || refusal.is_empty(), "{way}: {came}");
        assert!(came.contains(refusal), "{way}: {came}");
    }
}

#[test]
fn nothing_can_be_gained_by_running_something() {
    let Some(desk) = Desk::new() else { return };
    let status = desk.sh("cat /proc/self/status").assert_done().stdout;
    for line in [
        "NoNewPrivs:\t1",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "CapAmb:\t0000000000000000",
    ] {
        assert!(status.contains(line), "{line}: {status}");
    }
}

#[test]
fn a_namespace_inside_has_no_way_out_either() {
    let Some(desk) = Desk::new() else { return };
    let azure = site("ml.azure.com").v4;
    let line = format!(
        "unshare --user --map-root-user --net sh -c 'ip link set lo up; ip route add default dev lo; \
         curl -sS --max-time 3 http://{azure}/whoami'"
    );
    desk.sh(&line).assert_failed();
    desk.lab.capture().assert_only(&[]);
}

#[test]
fn the_gate_cannot_be_seen_touched_or_entered() {
    let Some(desk) = Desk::new() else { return };
    let own = desk.sh("echo $$; exec readlink /proc/self").assert_done().stdout;
    let own: Vec<&str> = own.split_whitespace().collect();
    assert!(own.len() == 2 && own[0] == own[1], "numbers of another PID namespace: {own:?}");
    let seen = desk
        .sh("ls -d /proc/[0-9]* | wc -l; readlink /proc/1/ns/net /proc/self/ns/net | uniq | wc -l")
        .assert_done();
    let counts: Vec<u32> = seen.stdout.split_whitespace().map(|count| count.parse().unwrap()).collect();
    assert!(counts[0] < 10 && counts[1] == 1, "its own processes and no others: {counts:?}");
    // A process that is there outside, and well known.
    let outside = std::process::id();
    assert!(desk.sh(&format!("kill -0 {outside}")).assert_failed().stderr.contains("No such process"));
    desk.sh(&format!("nsenter --net=/proc/{outside}/ns/net true")).assert_failed();
    let environment =
        desk.sh("cat /proc/1/environ | tr '\\0' '\\n'; ls -l /proc/1/fd | grep -c socket").stdout;
    assert_eq!(environment.trim(), "0", "the first process can be looked into, or holds a socket");
}

#[test]
fn descriptors_that_the_caller_has_open_stay_the_callers() {
    let Some(desk) = Desk::new() else { return };
    let azure = site("ml.azure.com").v4;
    let words: Vec<String> = desk.words.iter().map(|word| format!("'{word}'")).collect();
    // A connection that was made outside, by the shell that then runs the sandbox.
    let inner = "import os; os.write(9, b\"GET /whoami HTTP/1.0\\r\\n\\r\\n\")";
    let line = format!("exec 9<>/dev/tcp/{azure}/80; {} /usr/bin/python3 -c '{inner}'", words.join(" "));
    let ran = desk.lab.training().run("bash", &["-c", &line]).assert_failed();
    assert!(ran.stderr.contains("Bad file descriptor"), "{ran:?}");
}

#[test]
fn sockets_in_the_file_system_and_abstract_ones_lead_nowhere() {
    let Some(lab) = outgate_tests::lab::Lab::start() else { return };
    drop(lab);
    let Some(desk) = Desk::new() else { return };
    let path = desk.lab.folder().join("agent.sock");
    let serve = format!(
        "import socket, sys
for address in ['{}', '\\0outgate-escape']:
    listener = socket.socket(socket.AF_UNIX); listener.bind(address); listener.listen()
    globals()[f'kept{{len(address)}}'] = listener
print('ready', flush=True); sys.stdin.read()",
        path.display()
    );
    let mut server = desk.lab.training().command("/usr/bin/python3");
    let mut server =
        server.args(["-c", &serve]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "ready\n");

    let connect =
        |address: &str| attempt(&desk, &format!("socket.socket(socket.AF_UNIX).connect('{address}')"));
    assert_eq!(connect(&path.display().to_string()), "ECONNREFUSED");
    assert_eq!(connect("\\0outgate-escape"), "ECONNREFUSED");

    let allowed = path.display().to_string();
    let opened = Desk { words: with_flag(&desk.words, &["--allow-socket", &allowed]), lab: desk.lab };
    let came = attempt(&opened, &format!("socket.socket(socket.AF_UNIX).connect('{allowed}')"));
    assert_eq!(came, "did None");
    let told = opened.sh("true").stderr;
    assert!(
        told.contains(&format!("may use {allowed}")) && told.contains("outside of the sandbox"),
        "{told}"
    );
    drop(server.stdin.take());
    server.wait().unwrap();
}

/// The words of a sandbox with further flags.
fn with_flag(words: &[String], flags: &[&str]) -> Vec<String> {
    let (end, rest) = words.split_last().unwrap();
    rest.iter().cloned().chain(flags.iter().map(|flag| (*flag).to_owned())).chain([end.clone()]).collect()
}

#[test]
fn the_systems_sockets_and_the_variables_that_name_them_are_gone() {
    let Some(desk) = Desk::new() else { return };
    let socket = std::path::Path::new("/run/outgate-test-escape.sock");
    drop(std::fs::remove_file(socket));
    // Without root there is no socket in /run to be hidden; that the folder is another one can be seen all the same.
    let _listener = UnixListener::bind(socket).ok();
    let mut command = desk.inside().command("sh");
    let line =
        "ls -A /run; echo; env | grep -c -E '^(DBUS_SESSION_BUS_ADDRESS|SSH_AUTH_SOCK|DISPLAY|DOCKER_HOST)='";
    command.args(["-c", line]).env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/0/bus");
    command
        .env("SSH_AUTH_SOCK", "/tmp/agent")
        .env("DISPLAY", ":0")
        .env("DOCKER_HOST", "unix:///run/docker.sock");
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!said.contains("outgate-test-escape"), "{said}");
    assert!(said.trim_end().ends_with('0'), "{said}");
    drop(std::fs::remove_file(socket));
    let bus = desk.sh("systemd-run --user true || dbus-send --system --dest=org.freedesktop.DBus / a.b");
    bus.assert_failed();
}

#[test]
fn the_policy_can_be_read_and_neither_written_nor_moved() {
    let Some(desk) = Desk::new() else { return };
    let folder = desk.lab.folder().join("policy");
    let line = format!(
        "cd {}; cat policy.yaml | grep -c outbound_rules; echo x >> policy.yaml; rm policy.yaml; mv policy.yaml other; \
         chmod 777 policy.yaml; cd ..; mv policy elsewhere; rm -r policy",
        folder.display()
    );
    let ran = desk.sh(&line).assert_failed();
    assert_eq!(ran.stdout.trim(), "1");
    assert_eq!(std::fs::read_to_string(folder.join("policy.yaml")).unwrap(), super::POLICY);
}

#[test]
fn the_developers_own_machine_is_out_of_reach_but_for_published_ports() {
    let Some(desk) = Desk::with(&["--publish-host", "8123"]) else { return };
    let page = write(desk.lab.folder(), "host/page.txt", "from the host");
    let serve = format!(
        "cd {}; for port in 8123 8124; do python3 -m http.server $port --bind 0.0.0.0 >/dev/null & done; \
         for port in 8123 8124; do until curl -s http://127.0.0.1:$port/ >/dev/null; do sleep 0.05; done; done; \
         echo ready; cat; kill %1 %2",
        page.parent().unwrap().display()
    );
    let mut server = desk.lab.training().command("bash");
    let mut server = server
        .args(["-c", &serve])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "ready\n");

    let get = |url: &str| desk.inside().curl(&[url]);
    assert_eq!(get("http://127.0.0.1:8123/page.txt").assert_done().stdout, "from the host");
    get("http://127.0.0.1:8124/page.txt").assert_failed();
    for address in ["10.1.0.4", "[fd00:1::4]", "[::ffff:10.1.0.4]"] {
        for port in [8123, 8124] {
            get(&format!("http://{address}:{port}/page.txt")).assert_failed();
        }
    }
    drop(server.stdin.take());
    server.wait().unwrap();
}

#[test]
fn paths_that_begin_in_the_current_folder_lead_past_nothing() {
    let Some(desk) = Desk::new() else { return };
    let folder = desk.lab.folder().join("policy");
    std::fs::create_dir(folder.join("below")).unwrap();
    for (current, path) in
        [("policy", "policy.yaml"), ("policy/below", "../policy.yaml"), (".", "policy/policy.yaml")]
    {
        for through in [String::new(), "/proc/1/cwd/".to_owned(), "/proc/self/cwd/".to_owned()] {
            let line = format!("cd {} && exec \"$@\"", desk.lab.folder().join(current).display());
            let words: Vec<&str> = desk.words.iter().map(String::as_str).collect();
            let inner = format!("echo x >> {through}{path}; rm -f {through}{path}");
            let arguments = [&["-c", &line, "sh"][..], &words, &["sh", "-c", &inner]].concat();
            let _ran = desk.lab.training().run("sh", &arguments);
            assert_eq!(
                std::fs::read_to_string(folder.join("policy.yaml")).unwrap(),
                super::POLICY,
                "{current} {through}"
            );
        }
    }
}

#[test]
fn a_namespace_inside_uncovers_nothing() {
    let Some(desk) = Desk::new() else { return };
    let policy = desk.lab.folder().join("policy/policy.yaml");
    let path = policy.display();
    let line = format!(
        "unshare --user --map-root-user --mount sh -c 'umount {path}; umount -l {path}; mount -o remount,rw,bind {path}; \
         mount --bind {folder} /mnt && echo x >> /mnt/policy.yaml; umount -l /run; echo x >> {path}'",
        folder = policy.parent().unwrap().display()
    );
    let _ran = desk.sh(&line);
    assert_eq!(std::fs::read_to_string(&policy).unwrap(), super::POLICY);
}

#[test]
fn the_first_process_keeps_nothing_of_the_callers() {
    let Some(desk) = Desk::new() else { return };
    let words: Vec<String> = desk.words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!(
        "exec 9<{}; {} sh -c 'cat /proc/1/fd/9/policy.yaml || ls /proc/1/fd/9/ || ls /proc/1/fd'",
        desk.lab.folder().display(),
        words.join(" ")
    );
    let ran = desk.lab.training().run("bash", &["-c", &line]);
    assert!(!ran.stdout.contains('9') && !ran.stdout.contains("policy"), "{ran:?}");
}

#[test]
fn sockets_are_hidden_whatever_name_the_kernel_has_for_them() {
    let Some(desk) = Desk::new() else { return };
    let folder = desk.lab.folder().join("home/.ssh");
    std::fs::create_dir_all(&folder).unwrap();
    let serve = format!(
        "import os, socket, sys
os.chdir('{}')
renamed = socket.socket(socket.AF_UNIX); renamed.bind('{0}/master.temporary'); renamed.listen()
os.rename('master.temporary', 'master')
relative = socket.socket(socket.AF_UNIX); relative.bind('relative'); relative.listen()
print('ready', flush=True); sys.stdin.read()",
        folder.display()
    );
    let mut server = desk.lab.training().command("/usr/bin/python3");
    let mut server =
        server.args(["-c", &serve]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.as_mut().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    for name in ["master", "relative"] {
        let path = folder.join(name).display().to_string();
        let came = attempt(&desk, &format!("socket.socket(socket.AF_UNIX).connect('{path}')"));
        assert_eq!(came, "ECONNREFUSED", "{name}");
    }
    drop(server.stdin.take());
    server.wait().unwrap();
}

#[test]
fn memory_and_queues_are_not_shared_with_what_runs_outside() {
    let Some(desk) = Desk::new() else { return };
    let path = format!("/dev/shm/outgate-test-{}", std::process::id());
    std::fs::write(&path, "from outside").unwrap();
    desk.sh(&format!("cat {path}")).assert_failed();
    desk.sh(&format!("echo inside > {path} && cat {path}")).assert_done();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "from outside");
    std::fs::remove_file(path).unwrap();
    let outside = std::fs::read_link("/proc/self/ns/ipc").unwrap().display().to_string();
    assert_ne!(desk.sh("readlink /proc/self/ns/ipc").assert_done().stdout.trim(), outside);
    let queues = desk.sh("grep mqueue /proc/self/mountinfo | tail -1; ls /dev/mqueue | wc -l").stdout;
    assert!(queues.trim().is_empty() || queues.trim().ends_with('0'), "{queues}");
}

#[test]
fn the_kernels_settings_are_not_for_user_0_to_write() {
    let Some(desk) = Desk::new() else { return };
    // Opened to be written, and nothing is.
    let line = "for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /sys/kernel/uevent_helper; do \
                [ -e $file ] && sh -c \": >> $file\" && echo \"$file can be written\"; done; exit 0";
    let said = desk.sh(line).stdout;
    assert_eq!(said, "");
}

#[test]
fn what_the_gate_writes_is_not_the_commands_to_write() {
    let Some(desk) = Desk::new() else { return };
    let folder = desk.lab.folder();
    let (records, learned) = (folder.join("records.jsonl"), folder.join("learned.yaml"));
    let line = format!(
        "echo '{{}}' >> {records}; rm -f {records} {learned}; ln -sf {policy} {learned}; \
         curl -s https://evil.example/; exit 0",
        policy = folder.join("policy/policy.yaml").display(),
        records = records.display(),
        learned = learned.display()
    );
    let binary = desk.words[0].clone();
    let arguments =
        ["run", "--audit", &records.display().to_string(), "--learn", &learned.display().to_string(), "--"];
    let words: Vec<String> = [binary].into_iter().chain(arguments.map(str::to_owned)).collect();
    desk.lab.training().through(&words).run("sh", &["-c", &line]).assert_done();
    assert!(!std::fs::read_to_string(&records).unwrap().contains("{}\n"));
    assert!(std::fs::symlink_metadata(&learned).unwrap().is_file());
    assert!(std::fs::read_to_string(&learned).unwrap().contains("evil.example"));
    assert_eq!(std::fs::read_to_string(folder.join("policy/policy.yaml")).unwrap(), super::POLICY);
}

#[test]
fn a_policy_of_ones_own_cannot_be_made_by_the_command_where_there_is_none() {
    let Some(desk) = Desk::new() else { return };
    let line = "mkdir -p ~/.config/outgate ~/.local/state/outgate; \
                echo 'isolation_mode: allow_internet_outbound' > ~/.config/outgate/policy.yaml; \
                mv ~/.config ~/.elsewhere; echo x > ~/.local/state/outgate/trusted; exit 0";
    desk.sh(line).assert_done();
    let home = desk.lab.folder().join("home");
    assert!(!home.join(".config/outgate/policy.yaml").exists());
    assert!(home.join(".config").exists() && !home.join(".local/state/outgate/trusted").exists());
}

#[test]
fn a_policy_behind_a_link_that_the_command_could_replace_is_refused() {
    let Some(desk) = Desk::new() else { return };
    let link = desk.lab.folder().join("link");
    std::os::unix::fs::symlink("policy", &link).unwrap();
    let words = [&desk.words[0], "run", "--policy", &link.join("policy.yaml").display().to_string(), "--"];
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let ran = desk.lab.training().through(&words).run("true", &[]).assert_failed();
    assert!(ran.code == Some(125) && ran.stderr.contains("symbolic link"), "{ran:?}");
}
