//! The command at a terminal: job control, the window's size, and who reads what is typed.

use std::process::Stdio;

use super::{Desk, write};

/// Types and reads at a terminal whose shell runs a command in a sandbox. `python3` plays the terminal.
const TERMINAL: &str = r#"
import fcntl, os, pty, re, select, struct, sys, termios, time
words = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.environ['PS1'] = ''
    os.execvp('bash', ['bash', '--norc', '--noprofile', '-i'])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 33, 77, 0, 0))
heard = ''
def wait(pattern):
    global heard
    deadline = time.monotonic() + 30
    while not re.search(pattern, heard):
        left = deadline - time.monotonic()
        if left < 0 or not select.select([terminal], [], [], left)[0]:
            sys.exit(f'no {pattern!r} in {heard!r}')
        heard += os.read(terminal, 4096).decode(errors='replace')
    heard = heard[re.search(pattern, heard).end():]
def type(text): os.write(terminal, text.encode())
run = ' '.join("'" + word + "'" for word in words)
type('stty -echo; echo rea""dy\n'); wait('ready')
type(run + " sh -c 'test -t 0 && test -t 1 && test -t 2 && stty size && tty'; echo code $?\n")
wait(r'33 77\r\n/dev/pts/\d+\r\ncode 0')
type(run + " sh -c 'trap \"echo window; stty size\" WINCH; echo waiting; while :; do sleep 0.05; done'; echo code $?\n")
wait('waiting')
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 44, 88, 0, 0))
wait(r'window\r\n44 88')
type('\x03'); wait(r'code 130')
type(run + " /usr/bin/python3 -c 'import time; print(\"go\", flush=True); [time.sleep(.01) for _ in range(6000)]'; echo code $?\n")
wait('go'); type('\x03'); wait(r'KeyboardInterrupt[\s\S]*code 130')
type(run + " sh -c 'echo go; read line; echo \"got $line\"'; echo code $?\n")
wait('go')
type('\x1a'); wait('Stopped'); wait('code 147')
type('jobs; echo still\n'); wait('Stopped.*still'.replace('.*', r'[\s\S]*'))
type('fg\n'); wait(r"'[\r\n]")
type('typed\n'); wait('got typed')
python = run + " /usr/bin/python3 -c 'import os, signal, time\n"
# Python runs a handler between two steps of its own, and not while it reads.
waits = """print("go", flush=True)
while not seen: time.sleep(.01)
"""
type(python + """seen = []
def stop(*_): time.sleep(.3); print("put away", flush=True); os.kill(os.getpid(), signal.SIGSTOP); seen.append(1)
signal.signal(signal.SIGTSTP, stop)
""" + waits + """print("got", input())'; echo code $?\n""")
wait('go')
type('\x1a'); wait(r'put away[\s\S]*Stopped[\s\S]*code 147')
type('fg\n'); wait(r"'[\r\n]")
type('again\n'); wait('got again')
type(python + """seen = []
signal.signal(signal.SIGTSTP, lambda *_: seen.append(1))
""" + waits + """print("caught", flush=True); print("got", input())'; echo code $?\n""")
wait('go')
type('\x1a'); wait('caught')
type('more\n'); wait(r'got more[\s\S]*code 0')
type(run + " /usr/bin/python3 -c 'import fcntl, errno\ntry: fcntl.ioctl(0, 0x5412, b\"x\"); print(\"put\")\nexcept OSError as error: print(errno.errorcode[error.errno])'\n")
wait('EPERM')
type('exit\n')
os.waitpid(pid, 0)
print('done')
"#;

#[test]
fn job_control_the_windows_size_and_what_is_typed_are_the_commands() {
    let Some(desk) = Desk::with(&["--quiet"]) else { return };
    let script = write(desk.lab.folder(), "terminal.py", TERMINAL);
    let mut command = desk.lab.training().command("/usr/bin/python3");
    command.arg(script).args(&desk.words).stdin(Stdio::null());
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && output.stdout == b"done\n", "{told}");
}

#[test]
fn what_the_caller_ignores_the_command_ignores() {
    let Some(desk) = Desk::with(&["--quiet"]) else { return };
    let words: Vec<String> = desk.words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("trap '' HUP; {} grep SigIgn /proc/self/status", words.join(" "));
    let said = desk.lab.training().run("bash", &["-c", &line]).assert_done().stdout;
    let mask = u64::from_str_radix(said.trim_start_matches("SigIgn:").trim(), 16).unwrap();
    assert_eq!(mask & 1, 1, "{said}");
}
