//! `outgate status`: what the admin listener says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::{Exit, say, show};
use crate::config::Config;

/// How long the admin listener may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer.
const MAX_ANSWER: u64 = 1 << 20;

/// Shows what the running gate enforces; exits with 1 if it is not ready.
pub(super) fn status(asked: &super::Status) -> Exit {
    let admin = match (asked.admin, Config::read(asked.config.as_deref())) {
        (Some(admin), _) => admin,
        (None, Ok(config)) => config.admin,
        (None, Err(diagnostics)) => {
            say(&diagnostics);
            return Exit::Bad;
        }
    };
    let status = match ask(admin) {
        Ok(status) => status,
        Err(error) => {
            say(&format_args!("outgate: no gate answers on {admin}: {error}"));
            return Exit::Bad;
        }
    };
    if asked.json {
        show(&status);
    } else {
        show(&told(&status));
    }
    if status.get("ready").and_then(Value::as_bool) == Some(true) { Exit::Yes } else { Exit::No }
}

/// One request to our own admin listener, on an address from the configuration: no session, nothing decided.
#[allow(clippy::disallowed_methods)]
fn ask(admin: SocketAddr) -> std::io::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET /status HTTP/1.0\r\nHost: {admin}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(std::io::Error::other)
}

fn told(status: &Value) -> String {
    let text = |pointer: &str| match status.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(value) => value.to_string(),
    };
    let listeners = status.pointer("/listeners").and_then(Value::as_array);
    let listeners = listeners.into_iter().flatten().map(|listener| {
        let field = |name| listener.get(name).and_then(Value::as_str).unwrap_or("-");
        format!("{} {}", field("name"), field("address"))
    });
    let mut lines = vec![
        format!("version   {}", text("/version")),
        format!("ready     {}", if text("/ready") == "true" { "yes".to_owned() } else { text("/not_ready") }),
        format!("listens   {}", listeners.collect::<Vec<_>>().join(", ")),
        format!("revision  {} since {}", text("/policy/revision"), text("/policy/loaded_at")),
        format!("rules     {}", text("/policy/rules")),
        format!("sessions  {} open, {} flows", text("/sessions_open"), text("/flows_open")),
        format!("audit     {} written, {} dropped", text("/audit/written"), text("/audit/dropped")),
        format!("reload    {} at {}", text("/last_reload/result"), text("/last_reload/time")),
    ];
    let errors = status.pointer("/last_reload/errors").and_then(Value::as_array);
    lines.extend(
        errors.into_iter().flatten().filter_map(Value::as_str).map(|error| format!("          {error}")),
    );
    lines.join("\n")
}
