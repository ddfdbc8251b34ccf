//! The tunnel: bytes both ways until both ends are done, or somebody ends it.

mod splice;

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;
use std::time::Duration;

use outgate_rules::{Denial, Reason};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::flow::Flow;
use crate::record::EndedBy;
use crate::upload::Grant;
use splice::{Pause, Pipe};

/// Bytes moved at a time. The buffer belongs to the thread, not to the tunnel: an idle tunnel holds none.
const CHUNK: usize = 64 * 1024;

/// Bytes that a direction carries by copying before it is spliced. Below that a pipe costs more than it saves.
const SPLICED_BEHIND: usize = 1 << 20;

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

/// Relays both ways. What comes from the client begins with what `opening` gives, and nothing goes up before;
/// what comes from the origin does not wait for it.
///
/// An end that closes its sending side leaves the other direction open; the tunnel is over when both have
/// closed, when one fails, or when [`Flow::ended`] says so.
pub async fn relay(
    client: &TcpStream,
    origin: &TcpStream,
    opening: impl Future<Output = Result<impl AsRef<[u8]>, Denial>>,
    flow: &Flow,
    idle: Duration,
) -> Outcome {
    let up = async {
        let first = opening.await.map_err(Outcome::gate)?;
        up(client, origin, first.as_ref(), flow).await
    };
    tokio::select! {
        outcome = both(up, down(origin, client, flow)) => outcome,
        reason = flow.ended(idle) => Outcome::gate(reason),
    }
}

/// Waits for both directions; the side that closed first ended the tunnel, and a failure ends it at once.
async fn both(
    up: impl Future<Output = Result<(), Outcome>>,
    down: impl Future<Output = Result<(), Outcome>>,
) -> Outcome {
    tokio::pin!(up, down);
    tokio::select! {
        result = &mut up => match result {
            Ok(()) => down.await.err().unwrap_or(Outcome::side(EndedBy::Client)),
            Err(outcome) => outcome,
        },
        result = &mut down => match result {
            Ok(()) => up.await.err().unwrap_or(Outcome::side(EndedBy::Origin)),
            Err(outcome) => outcome,
        },
    }
}

async fn up(from: &TcpStream, to: &TcpStream, first: &[u8], flow: &Flow) -> Result<(), Outcome> {
    if !first.is_empty() {
        let Grant { bytes, stop } = flow.take_up(first.len());
        let granted = first.get(..bytes as usize).unwrap_or(first);
        write_all(to, granted).await.map_err(|_| Outcome::side(EndedBy::Origin))?;
        stop.map_or(Ok(()), |reason| Err(Outcome::gate(reason)))?;
    }
    pass(from, to, |bytes| flow.take_up(bytes), (EndedBy::Client, EndedBy::Origin)).await
}

async fn down(from: &TcpStream, to: &TcpStream, flow: &Flow) -> Result<(), Outcome> {
    let count = |bytes| {
        flow.count_down(bytes);
        Grant { bytes: bytes as u64, stop: None }
    };
    pass(from, to, count, (EndedBy::Origin, EndedBy::Client)).await
}

/// Passes on what comes from one side until it closes; then the other side is told. `grant` says how many of the bytes
/// that were read may pass.
async fn pass(
    from: &TcpStream,
    to: &TcpStream,
    grant: impl Fn(usize) -> Grant,
    (reader, writer): (EndedBy, EndedBy),
) -> Result<(), Outcome> {
    let mut copied = 0;
    loop {
        from.readable().await.map_err(|_| Outcome::side(reader))?;
        if copied >= SPLICED_BEHIND
            && let Some(pipe) = Pipe::take()
        {
            match splice::drain(from, to, pipe, &grant, (reader, writer)).await? {
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
            }
        }
    }
    close_write(to).map_err(|_| Outcome::side(writer))
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
        let read = match from.try_read(buffer) {
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
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
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
