//! The tunnel: bytes both ways until both ends are done, or somebody ends it.

mod splice;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use outgate_rules::{Denial, Reason};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::task::yield_now;

use crate::flow::Flow;
use crate::readiness::{read, readable, writable};
use crate::record::EndedBy;
use crate::upload::Grant;
use splice::{Pause, Pipe};

/// Bytes moved at a time. The buffer belongs to the thread, not to the tunnel: an idle tunnel holds none.
const CHUNK: usize = 64 * 1024;

/// Bytes that a direction carries by copying before it is spliced. Below that a pipe costs more than it saves.
const SPLICED_BEHIND: usize = 1 << 20;

/// Bytes that a direction moves before others have their turn: a millisecond or two. Without turns, one pull made the
/// others wait for 80 to 600 ms; with turns of one pipe's content, eight pulls cost twice as much (bench/README.md).
const TURN: usize = 4 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// How a tunnel ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// By whom.
    pub ended_by: EndedBy,
    /// Why, where it was the gate.
    pub denial: Option<Denial>,
}

impl Outcome {
    /// The gate ended it.
    #[must_use]
    pub fn gate(denial: impl Into<Denial>) -> Self {
        Self { ended_by: EndedBy::Gate, denial: Some(denial.into()) }
    }

    /// It failed for this reason, which tells by whom.
    #[must_use]
    pub fn failed(denial: impl Into<Denial>) -> Self {
        let denial = denial.into();
        let by_origin = matches!(
            denial.reason,
            Reason::OriginRefused
                | Reason::OriginUnreachable
                | Reason::OriginTimeout
                | Reason::OriginClosed
                | Reason::OriginResponse
                | Reason::OriginSwitched
        );
        Self { ended_by: if by_origin { EndedBy::Origin } else { EndedBy::Gate }, denial: Some(denial) }
    }

    /// One of the two others ended it.
    #[must_use]
    pub fn side(ended_by: EndedBy) -> Self {
        Self { ended_by, denial: None }
    }

    /// Why the gate ended it.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        self.denial.as_ref().map(|denial| denial.reason)
    }
}

/// What has to be done before anything else goes up. It is over soon, and its memory goes with it.
pub type Beginning<'t> = Pin<Box<dyn Future<Output = Result<(), Outcome>> + Send + 't>>;

/// Relays both ways. Nothing of what comes from the client passes before `beginning` is over; what comes from the
/// origin does not wait for it.
///
/// An end that closes its sending side leaves the other direction open; the tunnel is over when both have
/// closed, when one fails, or when [`Flow::ended`] says so. The side that closed first ended it.
pub async fn relay(
    client: &TcpStream,
    origin: &TcpStream,
    beginning: Beginning<'_>,
    flow: &Flow,
    idle: Duration,
) -> Outcome {
    let mut up = pin!(async {
        beginning.await?;
        let grant = |bytes| flow.take_up(bytes);
        pass(client, origin, grant, (EndedBy::Client, EndedBy::Origin)).await
    });
    let mut down = pin!(async {
        let count = |bytes| {
            flow.count_down(bytes);
            Grant { bytes: bytes as u64, stop: None }
        };
        pass(origin, client, count, (EndedBy::Origin, EndedBy::Client)).await
    });
    let mut ended = pin!(flow.ended(idle));
    let mut closed = None;
    poll_fn(|cx| {
        if closed != Some(EndedBy::Client)
            && let Poll::Ready(result) = up.as_mut().poll(cx)
            && let Some(outcome) = settle(&mut closed, result, EndedBy::Client, origin)
        {
            return Poll::Ready(outcome);
        }
        if closed != Some(EndedBy::Origin)
            && let Poll::Ready(result) = down.as_mut().poll(cx)
            && let Some(outcome) = settle(&mut closed, result, EndedBy::Origin, client)
        {
            return Poll::Ready(outcome);
        }
        ended.as_mut().poll(cx).map(Outcome::gate)
    })
    .await
}

/// One direction is done: the other side is told, or, where both are, the tunnel is over and closing tells it.
fn settle(
    closed: &mut Option<EndedBy>,
    result: Result<(), Outcome>,
    by: EndedBy,
    to: &TcpStream,
) -> Option<Outcome> {
    match (result, *closed) {
        (Err(outcome), _) => Some(outcome),
        (Ok(()), Some(first)) => Some(Outcome::side(first)),
        (Ok(()), None) => {
            *closed = Some(by);
            let other = if by == EndedBy::Client { EndedBy::Origin } else { EndedBy::Client };
            close_write(to).err().map(|_| Outcome::side(other))
        }
    }
}

/// Sends the client's first bytes.
///
/// # Errors
/// How that ended the tunnel: the origin has gone, or an upload limit is reached.
pub async fn send(to: &TcpStream, first: &[u8], flow: &Flow) -> Result<(), Outcome> {
    if first.is_empty() {
        return Ok(());
    }
    let Grant { bytes, stop } = flow.take_up(first.len());
    let granted = first.get(..bytes as usize).unwrap_or(first);
    write_all(to, granted).await.map_err(|_| Outcome::side(EndedBy::Origin))?;
    stop.map_or(Ok(()), |reason| Err(Outcome::gate(reason)))
}

/// Passes on what comes from one side until it closes. `grant` says how many of the bytes
/// that were read may pass.
async fn pass(
    from: &TcpStream,
    to: &TcpStream,
    grant: impl Fn(usize) -> Grant,
    (reader, writer): (EndedBy, EndedBy),
) -> Result<(), Outcome> {
    let mut copied = 0;
    loop {
        readable(from).await.map_err(|_| Outcome::side(reader))?;
        if copied >= SPLICED_BEHIND
            && let Some(pipe) = Pipe::take()
        {
            match Box::pin(splice::drain(from, to, pipe, &grant, (reader, writer))).await? {
                Pause::Empty => continue,
                Pause::Closed => break,
            }
        }
        match copy(from, to, &grant, (reader, writer))? {
            Copied::Nothing => {}
            Copied::Closed => break,
            Copied::Bytes(bytes, rest) => {
                copied += bytes;
                write_all(to, &rest.bytes).await.map_err(|_| Outcome::side(writer))?;
                rest.stop.map_or(Ok(()), |reason| Err(Outcome::gate(reason)))?;
                if copied % TURN < bytes {
                    yield_now().await;
                }
            }
        }
    }
    Ok(())
}

/// What one turn came to.
enum Copied {
    /// There was nothing to be read.
    Nothing,
    /// The reader's side has closed.
    Closed,
    /// So many bytes were read, of which some are still to be written.
    Bytes(usize, Rest),
}

/// Bytes that were read, granted and not yet written. Nearly always empty, and then without an allocation.
struct Rest {
    bytes: Vec<u8>,
    /// The limit that ends the tunnel behind these bytes.
    stop: Option<Reason>,
}

/// Moves what is there to be read, through the thread's buffer.
fn copy(
    from: &TcpStream,
    to: &TcpStream,
    grant: impl Fn(usize) -> Grant,
    (reader, writer): (EndedBy, EndedBy),
) -> Result<Copied, Outcome> {
    BUFFER.with_borrow_mut(|buffer| {
        let read = match read(from, buffer) {
            Ok(0) => return Ok(Copied::Closed),
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Copied::Nothing),
            Err(_) => return Err(Outcome::side(reader)),
        };
        let Grant { bytes, stop } = grant(read.len());
        let granted = read.get(..bytes as usize).unwrap_or(read);
        let written = match to.try_write(granted) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return Err(Outcome::side(writer)),
        };
        let bytes = granted.get(written..).unwrap_or_default().to_vec();
        Ok(Copied::Bytes(read.len(), Rest { bytes, stop }))
    })
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => writable(to).await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Closes the sending side. The peer may have gone already; that is for the other direction to find out.
fn close_write(to: &TcpStream) -> io::Result<()> {
    match SockRef::from(to).shutdown(Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}
