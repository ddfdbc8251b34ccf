//! The control socket: `outgate reload` asks here, and hears what came of it.
//!
//! One line in, text out. Who may connect is the file system's word: the socket's folder is the gate's own.

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use crate::record::Trigger;
use crate::reload::Reloader;

/// Longest command.
const MAX_COMMAND: u64 = 64;
/// Longest answer that `outgate reload` reads.
const MAX_ANSWER: u64 = 1 << 20;
/// How long a command may take to come, and an answer to be read.
const TALK: Duration = Duration::from_secs(10);
/// How long a reload may take: a policy of many millions of names.
const RELOAD: Duration = Duration::from_secs(120);

/// The socket, bound; its file goes when this is dropped.
#[derive(Debug)]
pub struct Control {
    socket: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Binds the socket at `path`. A socket that nobody listens on is left over from a gate that died, and is
    /// replaced.
    ///
    /// # Errors
    /// When another gate listens there, or the system says no.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another gate listens there"));
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { socket, path: path.to_owned() })
    }

    /// Answers commands, one at a time.
    pub async fn serve(self, reloader: Arc<Reloader>) {
        loop {
            match self.socket.accept().await {
                // Who asked and does not wait for the answer has none.
                Ok((stream, _)) => _ = answer(stream, &reloader).await,
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // A file that is gone already is what was wanted.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn answer(mut stream: UnixStream, reloader: &Reloader) -> io::Result<()> {
    let mut command = String::new();
    let (read, mut write) = stream.split();
    timeout(TALK, BufReader::new(read.take(MAX_COMMAND)).read_line(&mut command)).await??;
    let answer = match command.as_str() {
        "reload\n" => {
            let report = reloader.reload(Trigger::Command).await;
            format!("{}\n{}\n", if report.in_force { "ok" } else { "rejected" }, report.text.trim())
        }
        _ => "rejected\nthe only command is reload\n".to_owned(),
    };
    timeout(TALK, write.write_all(answer.as_bytes())).await??;
    timeout(TALK, write.shutdown()).await?
}

/// Asks the gate behind the socket at `path` to reload, and gives whether it did, and its words.
///
/// # Errors
/// When no gate listens there, or it does not answer.
pub async fn reload(path: &Path) -> io::Result<(bool, String)> {
    let mut stream = UnixStream::connect(path).await?;
    timeout(TALK, stream.write_all(b"reload\n")).await??;
    let mut answer = String::new();
    timeout(RELOAD, stream.take(MAX_ANSWER).read_to_string(&mut answer)).await??;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok((true, text.to_owned())),
        Some(("rejected", text)) => Ok((false, text.to_owned())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the gate closed without an answer")),
    }
}
