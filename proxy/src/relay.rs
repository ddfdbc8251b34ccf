//! The tunnel: bytes both ways until both ends are done, or somebody ends it.

mod splice;
pub mod turn;
mod unsent;

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use outgate_rules::{Denial, Reason};
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::flow::Flow;
use crate::readiness::{read, with_buffer, writable};
use crate::record::EndedBy;
use crate::upload::Grant;
use splice::Pipe;
use turn::Turn;

pub use splice::Pause;

/// Bytes that a direction carries by copying before it is spliced. Below that a pipe costs more than it saves.
const SPLICED_BEHIND: usize = 1 << 20;

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

/// What has to be done before a direction goes on: it is over soon, and its memory goes with it.
pub type Interlude<'t> = Pin<Box<dyn Future<Output = Result<Pause, Outcome>> + Send + 't>>;

/// Relays both ways. Nothing of what comes from the client passes before `beginning` is over; what comes from the
/// origin does not wait for it.
///
/// An end that closes its sending side leaves the other direction open; the tunnel is over when both have
/// closed, when one fails, or when [`Flow::ended`] says so. The side that closed first ended it.
pub fn relay<'t>(
    client: &'t TcpStream,
    origin: &'t TcpStream,
    beginning: Option<Interlude<'t>>,
    flow: &'t Flow,
) -> impl Future<Output = Outcome> {
    let up = Direction { copied: 0, interlude: beginning };
    let down = Direction { copied: 0, interlude: None };
    let mut relay = Relay { client, origin, flow, up, down, closed: None };
    poll_fn(move |cx| relay.poll(cx))
}

/// A tunnel that relays. It is a state and not an `async fn`, which took five times the memory: a tunnel that stands
/// still has this, and nothing behind it.
struct Relay<'t> {
    client: &'t TcpStream,
    origin: &'t TcpStream,
    flow: &'t Flow,
    up: Direction<'t>,
    down: Direction<'t>,
    /// Who has closed first.
    closed: Option<EndedBy>,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Self { client, origin, flow, .. } = *self;
        if self.closed != Some(EndedBy::Client)
            && let lane = (Lane { from: client, to: origin, way: Way::Up, flow })
            && let Poll::Ready(result) = self.up.poll_pass(lane, cx)
            && let Some(outcome) = self.settle(result, EndedBy::Client, origin)
        {
            return Poll::Ready(outcome);
        }
        if self.closed != Some(EndedBy::Origin)
            && let lane = (Lane { from: origin, to: client, way: Way::Down, flow })
            && let Poll::Ready(result) = self.down.poll_pass(lane, cx)
            && let Some(outcome) = self.settle(result, EndedBy::Origin, client)
        {
            return Poll::Ready(outcome);
        }
        flow.poll_ended(cx).map(Outcome::gate)
    }

    /// One direction is done: the other side is told, or, where both are, the tunnel is over and closing tells it.
    fn settle(&mut self, result: Result<(), Outcome>, by: EndedBy, to: &TcpStream) -> Option<Outcome> {
        match (result, self.closed) {
            (Err(outcome), _) => Some(outcome),
            (Ok(()), Some(first)) => Some(Outcome::side(first)),
            (Ok(()), None) => {
                self.closed = Some(by);
                let other = if by == EndedBy::Client { EndedBy::Origin } else { EndedBy::Client };
                close_write(to).err().map(|_| Outcome::side(other))
            }
        }
    }
}

/// Sends the client's first bytes, and gives what is left to be done before others may follow. Nearly always that is
/// nothing.
pub fn send_first<'t>(to: &'t TcpStream, first: &[u8], flow: &Flow) -> Option<Interlude<'t>> {
    if first.is_empty() {
        return None;
    }
    let Grant { bytes, stop } = flow.take_up(first.len());
    let granted = first.get(..bytes as usize).unwrap_or(first);
    // A failure comes again with the next attempt.
    let written = to.try_write(granted).unwrap_or(0);
    let rest = Rest { bytes: granted.get(written..).unwrap_or_default().to_vec(), stop };
    let finishing = |rest| Box::pin(finish(to, rest, EndedBy::Origin)) as Interlude<'t>;
    (!rest.is_none()).then(|| finishing(rest))
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// From the client to the origin, within the limits of the flow's rule.
    Up,
    /// From the origin to the client.
    Down,
}

impl Way {
    /// How many of the bytes that were read may pass.
    fn grant(self, flow: &Flow, bytes: usize) -> Grant {
        match self {
            Self::Up => flow.take_up(bytes),
            Self::Down => {
                flow.count_down(bytes);
                Grant { bytes: bytes as u64, stop: None }
            }
        }
    }

    /// Who is read from, and who is written to.
    fn sides(self) -> (EndedBy, EndedBy) {
        match self {
            Self::Up => (EndedBy::Client, EndedBy::Origin),
            Self::Down => (EndedBy::Origin, EndedBy::Client),
        }
    }

    fn reader(self) -> EndedBy {
        self.sides().0
    }

    fn writer(self) -> EndedBy {
        self.sides().1
    }
}

/// Where a direction leads.
#[derive(Clone, Copy)]
struct Lane<'t> {
    from: &'t TcpStream,
    to: &'t TcpStream,
    way: Way,
    flow: &'t Flow,
}

/// How far a direction has come.
struct Direction<'t> {
    /// Bytes that were copied.
    copied: usize,
    /// What has to be over before more is read.
    interlude: Option<Interlude<'t>>,
}

impl<'t> Direction<'t> {
    /// Passes on what comes until the reader's side closes.
    fn poll_pass(&mut self, lane: Lane<'t>, cx: &mut Context<'_>) -> Poll<Result<(), Outcome>> {
        let Lane { from, to, way, .. } = lane;
        loop {
            if let Some(interlude) = &mut self.interlude {
                let pause = ready!(interlude.as_mut().poll(cx))?;
                self.interlude = None;
                if pause == Pause::Closed {
                    return Poll::Ready(Ok(()));
                }
            }
            ready!(from.poll_read_ready(cx)).map_err(|_| Outcome::side(way.reader()))?;
            if self.copied >= SPLICED_BEHIND {
                self.interlude = Some(lane.carry());
                continue;
            }
            turn::light_work();
            match lane.copy()? {
                Copied::Nothing => {}
                Copied::Closed => return Poll::Ready(Ok(())),
                Copied::Bytes(bytes, rest) => {
                    self.copied += bytes;
                    if !rest.is_none() {
                        self.interlude = Some(Box::pin(finish(to, rest, way.writer())));
                    }
                }
            }
        }
    }
}

impl<'t> Lane<'t> {
    /// Moves many bytes, in turn with others that do, until there are none to be read.
    fn carry(self) -> Interlude<'t> {
        let Self { from, to, way, flow } = self;
        match Pipe::take() {
            Some(pipe) => {
                let grant = move |bytes| way.grant(flow, bytes);
                Box::pin(splice::drain(from, to, pipe, grant, way.sides()))
            }
            None => Box::pin(self.copy_all()),
        }
    }

    /// The same where there is no pipe to be had.
    async fn copy_all(self) -> Result<Pause, Outcome> {
        let mut turn = Turn::default();
        loop {
            turn.begin().await;
            match self.copy()? {
                Copied::Nothing => return Ok(Pause::Empty),
                Copied::Closed => return Ok(Pause::Closed),
                Copied::Bytes(bytes, rest) => {
                    if !rest.is_none() {
                        turn.give_up();
                        unsent::bound(self.to);
                        finish(self.to, rest, self.way.writer()).await?;
                    }
                    turn.moved(bytes).await;
                }
            }
        }
    }

    /// Moves what is there to be read, through the thread's buffer.
    fn copy(&self) -> Result<Copied, Outcome> {
        with_buffer(|buffer| {
            let read = match read(self.from, buffer) {
                Ok(0) => return Ok(Copied::Closed),
                Ok(read) => buffer.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Copied::Nothing),
                Err(_) => return Err(Outcome::side(self.way.reader())),
            };
            let Grant { bytes, stop } = self.way.grant(self.flow, read.len());
            let granted = read.get(..bytes as usize).unwrap_or(read);
            let written = match self.to.try_write(granted) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => return Err(Outcome::side(self.way.writer())),
            };
            let bytes = granted.get(written..).unwrap_or_default().to_vec();
            Ok(Copied::Bytes(read.len(), Rest { bytes, stop }))
        })
    }
}

/// Writes what could not be written at once.
async fn finish(to: &TcpStream, rest: Rest, writer: EndedBy) -> Result<Pause, Outcome> {
    write_all(to, &rest.bytes).await.map_err(|_| Outcome::side(writer))?;
    rest.stop.map_or(Ok(Pause::Empty), |reason| Err(Outcome::gate(reason)))
}

/// What one read came to.
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

impl Rest {
    fn is_none(&self) -> bool {
        self.bytes.is_empty() && self.stop.is_none()
    }
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
