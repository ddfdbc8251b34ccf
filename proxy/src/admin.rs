//! The admin listener: health, readiness, metrics and status, for reading only.
//!
//! | path | answer |
//! | --- | --- |
//! | `/healthz` | 200 while the process serves requests |
//! | `/readyz` | 200 while the gate lets traffic pass, else 503 with the reason |
//! | `/metrics` | the metrics in the Prometheus text format |
//! | `/status` | what `outgate status` prints, as JSON |
//!
//! One request a connection, within a deadline, and a bounded number of connections: the listener cannot be
//! held open against those who need it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::record::{PolicyRead, ReloadResult};
use crate::recorder::Recorder;

/// Connections served at once: a probe, a scraper, a person, and as many again that hang.
const CONNECTIONS: usize = 64;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may take, its answer included.
const CONNECTION: Duration = Duration::from_secs(30);
/// A request's head, in bytes. Nothing here needs a long one; hyper asks for at least this much.
const HEAD_SIZE: usize = 8192;
/// How long accepting rests when there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the gate tells of itself, kept up to date by those who change it.
#[derive(Debug)]
pub struct GateState {
    started: Instant,
    draining: AtomicBool,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    policy: Option<InForce>,
    last_reload: Option<LastReload>,
    listeners: Vec<Listening>,
}

/// The policy in force.
#[derive(Clone, Debug, Serialize)]
struct InForce {
    revision: String,
    loaded_at: String,
    rules: usize,
    files: Vec<String>,
}

/// The last time that the policy was read.
#[derive(Clone, Debug, Serialize)]
struct LastReload {
    time: String,
    trigger: &'static str,
    result: &'static str,
    errors: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Listening {
    name: &'static str,
    address: SocketAddr,
}

/// Why the gate lets no traffic pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotReady {
    /// It is shutting down.
    #[error("the gate is shutting down")]
    Draining,
    /// It has not read a policy yet.
    #[error("no policy is in force")]
    NoPolicy,
    /// Decisions cannot be recorded, and so they are denied.
    #[error("the audit file cannot be written")]
    AuditUnavailable,
}

impl Default for GateState {
    fn default() -> Self {
        Self::new()
    }
}

impl GateState {
    /// A gate that has just started and has no policy.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), draining: AtomicBool::new(false), told: Mutex::default() }
    }

    /// A listener listens on this address.
    pub fn listening(&self, name: &'static str, address: SocketAddr) {
        self.told().listeners.push(Listening { name, address });
    }

    /// The policy was read from these files, which are told of if it is in force now.
    pub fn policy_read(&self, event: &PolicyRead<'_>, files: &[String]) {
        let mut told = self.told();
        told.last_reload = Some(LastReload {
            time: at(event.time),
            trigger: event.trigger.name(),
            result: event.result.name(),
            errors: event.errors.to_vec(),
        });
        match (event.result, event.revision) {
            (ReloadResult::Applied, Some(revision)) => {
                told.policy = Some(InForce {
                    revision: revision.to_string(),
                    loaded_at: at(event.time),
                    rules: event.rules,
                    files: files.to_vec(),
                });
            }
            (ReloadResult::Applied, None) | (ReloadResult::Unchanged | ReloadResult::Rejected, _) => {}
        }
    }

    /// The gate is shutting down.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Whether traffic can pass.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn ready(&self, recorder: &Recorder) -> Result<(), NotReady> {
        if self.draining.load(Ordering::Relaxed) {
            Err(NotReady::Draining)
        } else if self.told().policy.is_none() {
            Err(NotReady::NoPolicy)
        } else if !recorder.audit().is_writable() && recorder.audit().must_write() {
            Err(NotReady::AuditUnavailable)
        } else {
            Ok(())
        }
    }

    /// All that `outgate status` prints, as JSON on one line.
    #[must_use]
    pub fn status(&self, recorder: &Recorder) -> String {
        let not_ready = self.ready(recorder).err().map(|reason| reason.to_string());
        let (counts, metrics) = (recorder.audit().counts(), recorder.metrics());
        let told = self.told();
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "ready": not_ready.is_none(),
            "not_ready": not_ready,
            "draining": self.draining.load(Ordering::Relaxed),
            "policy": told.policy,
            "last_reload": told.last_reload,
            "listeners": told.listeners,
            "sessions_open": metrics.sessions_open(),
            "flows_open": metrics.flows_open(),
            "audit": {
                "writable": recorder.audit().is_writable(),
                "queued": counts.queued_records,
                "written": counts.written,
                "dropped": counts.dropped,
                "write_errors": counts.write_errors,
            },
        })
        .to_string()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time as the records write it.
fn at(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// Serves the admin listener. Never comes back: the task that runs this is aborted at shutdown.
pub async fn serve(listener: TcpListener, gate: Arc<GateState>, recorder: Arc<Recorder>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed, so there is always a next place.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (gate, recorder) = (Arc::clone(&gate), Arc::clone(&recorder));
        tokio::spawn(async move {
            // A client that breaks off or is too slow is its own loss.
            _ = timeout(CONNECTION, connection(stream, &gate, &recorder)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, gate: &GateState, recorder: &Recorder) -> hyper::Result<()> {
    let service = service_fn(async |request| Ok::<_, Infallible>(answer(&request, gate, recorder)));
    http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_SIZE)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn answer(request: &Request<Incoming>, gate: &GateState, recorder: &Recorder) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refused =
            respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this listener is for reading only\n".into());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => match gate.ready(recorder) {
            Ok(()) => respond(StatusCode::OK, TEXT, "ready\n".into()),
            Err(reason) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
        },
        "/metrics" => {
            respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", recorder.exposition())
        }
        "/status" => respond(StatusCode::OK, "application/json", gate.status(recorder) + "\n"),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "try /healthz, /readyz, /metrics or /status\n".into()),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // a test is a client
mod tests {
    use std::path::Path;

    use outgate_rules::{Reason, Revision};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::AbortHandle;

    use super::*;
    use crate::console::tests::Heard;
    use crate::record::tests::{connect, time};
    use crate::record::{Decided, Trigger};
    use crate::recorder::tests::{LONG, SHORT, recorder};

    #[tokio::test]
    async fn health_is_the_process_and_readiness_is_the_gate() {
        let admin = Admin::start(None).await;
        assert_eq!(admin.get("/healthz").await, (200, "ok\n".into()));
        assert_eq!(admin.get("/readyz").await, (503, "no policy is in force\n".into()));
        admin.apply_policy();
        assert_eq!(admin.get("/readyz").await, (200, "ready\n".into()));
        admin.gate.drain();
        assert_eq!(admin.get("/readyz").await, (503, "the gate is shutting down\n".into()));
        assert_eq!(admin.get("/healthz").await.0, 200);
    }

    #[tokio::test]
    async fn a_gate_that_cannot_record_is_not_ready() {
        let admin = Admin::start(Some(Path::new("/dev/full"))).await;
        admin.apply_policy();
        assert_eq!(admin.get("/readyz").await.0, 200);
        let flow = connect("pypi.org:443");
        let decided = Decided::by_gate(&flow, Reason::NoRule, None, time());
        admin.recorder.decided(&decided).await.unwrap_err();
        assert_eq!(admin.get("/readyz").await, (503, "the audit file cannot be written\n".into()));
    }

    #[tokio::test]
    async fn metrics_are_what_was_recorded() {
        let admin = Admin::start(None).await;
        let flow = connect("pypi.org:443");
        admin.recorder.decided(&Decided::by_gate(&flow, Reason::NoRule, None, time())).await.unwrap();
        let (status, text) = admin.get("/metrics").await;
        assert_eq!(status, 200);
        assert!(
            text.contains("outgate_decisions_total{kind=\"connect\",verdict=\"deny\",reason=\"no-rule\"} 1")
        );
        assert!(text.contains("outgate_audit_records_total 1"), "{text}");
        assert!(!text.contains("pypi.org") && !text.contains("10.1.0.4"), "no host and no client is a label");
    }

    #[tokio::test]
    async fn status_tells_the_policy_in_force_and_why_the_last_one_was_rejected() {
        let admin = Admin::start(None).await;
        admin.gate.listening("proxy", "127.0.0.1:3128".parse().unwrap());
        admin.apply_policy();
        let errors = vec!["policy.yaml:3: \"colour\" is no key\nof a rule".to_owned()];
        let rejected = PolicyRead {
            trigger: Trigger::Signal,
            result: ReloadResult::Rejected,
            errors: &errors,
            ..applied()
        };
        admin.gate.policy_read(&rejected, &["other.yaml".to_owned()]);
        let open = admin.recorder.metrics().listener("proxy").session_opened();
        let (code, text) = admin.get("/status").await;
        drop(open);
        let status: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(code, 200);
        assert_eq!(status["policy"]["revision"], "1a1a1a1a1a1a");
        assert_eq!(status["policy"]["loaded_at"], "2026-11-21T01:02:03.120000Z");
        assert_eq!(status["policy"]["rules"], 12);
        assert_eq!(status["policy"]["files"], serde_json::json!(["policy.yaml"]));
        assert_eq!(status["last_reload"]["trigger"], "signal");
        assert_eq!(status["last_reload"]["result"], "rejected");
        assert_eq!(status["last_reload"]["errors"][0], errors[0]);
        assert_eq!(status["listeners"], serde_json::json!([{"name": "proxy", "address": "127.0.0.1:3128"}]));
        assert_eq!(status["sessions_open"], 1);
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!((&status["ready"], &status["draining"]), (&true.into(), &false.into()));
    }

    #[tokio::test]
    async fn nothing_can_be_changed_and_nothing_else_is_there() {
        let admin = Admin::start(None).await;
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let (status, head, _) = admin.exchange(&request(method, "/status")).await;
            assert_eq!(status, 405, "{method}");
            assert!(head.contains("allow: GET, HEAD"), "{head}");
        }
        for path in ["/", "/healthz/", "/Metrics", "/reload", "//healthz", "/healthz%00"] {
            assert_eq!(admin.get(path).await.0, 404, "{path}");
        }
        assert_eq!(admin.get("/healthz?full").await.0, 200);
    }

    #[tokio::test]
    async fn head_is_get_without_the_body() {
        let admin = Admin::start(None).await;
        let (status, head, body) = admin.exchange(&request("HEAD", "/healthz")).await;
        assert_eq!((status, body.as_str()), (200, ""));
        assert!(head.contains("content-length: 3"), "{head}");
    }

    #[tokio::test]
    async fn a_connection_serves_one_request() {
        let admin = Admin::start(None).await;
        let twice = request("GET", "/healthz").repeat(2);
        let (_, head, body) = admin.exchange(&twice).await;
        assert!(head.contains("connection: close"), "{head}");
        assert_eq!(body, "ok\n");
    }

    #[tokio::test]
    async fn bad_and_endless_heads_are_answered_and_closed() {
        let admin = Admin::start(None).await;
        assert_eq!(admin.exchange("\x16\x03\x01\r\n\r\n").await.0, 400);
        let endless = format!("GET /healthz HTTP/1.1\r\nhost: x\r\nlong: {}", "x".repeat(64 * 1024));
        assert_eq!(admin.exchange(&endless).await.0, 431);
        assert_eq!(admin.get("/healthz").await.0, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_hang_give_way_after_the_heads_deadline() {
        let admin = Admin::start(None).await;
        let mut hanging = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(admin.address).await.unwrap();
            stream.write_all(b"GET /healthz").await.unwrap();
            hanging.push(stream);
        }
        // All places are taken: this one is answered when the first of them has run out of time.
        let asked = tokio::time::Instant::now();
        assert_eq!(admin.get("/healthz").await.0, 200);
        assert!(asked.elapsed() < HEAD + Duration::from_secs(1), "{:?}", asked.elapsed());
    }

    struct Admin {
        address: SocketAddr,
        gate: Arc<GateState>,
        recorder: Arc<Recorder>,
        task: AbortHandle,
        _folder: tempfile::TempDir,
    }

    impl Admin {
        /// An admin listener over a gate whose records go to `audit`, or else to a file that takes them.
        async fn start(audit: Option<&Path>) -> Self {
            let folder = tempfile::TempDir::new().unwrap();
            let file = folder.path().join("audit.jsonl");
            let deadline = if audit.is_some() { SHORT } else { LONG };
            let recorder = Arc::new(recorder(audit.unwrap_or(&file), &Heard::default(), deadline));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (address, gate) = (listener.local_addr().unwrap(), Arc::new(GateState::new()));
            let serving = serve(listener, Arc::clone(&gate), Arc::clone(&recorder));
            let task = tokio::spawn(serving).abort_handle();
            Self { address, gate, recorder, task, _folder: folder }
        }

        fn apply_policy(&self) {
            self.gate.policy_read(&applied(), &["policy.yaml".to_owned()]);
        }

        async fn get(&self, path: &str) -> (u16, String) {
            let (status, _, body) = self.exchange(&request("GET", path)).await;
            (status, body)
        }

        /// Sends bytes and reads to the end: the status, the head and the body.
        async fn exchange(&self, request: &str) -> (u16, String, String) {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            // What the other side no longer reads does not matter; what it answered does.
            _ = stream.write_all(request.as_bytes()).await;
            let (mut read, mut piece) = (Vec::new(), [0; 4096]);
            while let Ok(count) = stream.read(&mut piece).await
                && count > 0
            {
                read.extend_from_slice(&piece[..count]);
            }
            let text = String::from_utf8(read).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
            let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
            (status, head.to_owned(), body.to_owned())
        }
    }

    impl Drop for Admin {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    fn request(method: &str, path: &str) -> String {
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")
    }

    fn applied() -> PolicyRead<'static> {
        PolicyRead {
            time: time(),
            trigger: Trigger::Start,
            result: ReloadResult::Applied,
            revision: Some(Revision::new([0x1a; 6])),
            previous: None,
            rules: 12,
            errors: &[],
            revoked: 0,
            draining: 0,
        }
    }
}
