//! Bodies on their way: counted, limited, and ended when their flow ends.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use outgate_rules::Reason;

use super::exchange::Exchanges;
use crate::flow::Flow;

/// A request's body on its way up, if it has one.
#[derive(Debug)]
pub(super) struct Upload(Option<Sent>);

#[derive(Debug)]
struct Sent {
    body: Incoming,
    flow: Arc<Flow>,
    stopped: Stopped,
}

/// Why an upload was stopped, told to whoever waits for the response.
pub(super) type Stopped = Arc<OnceLock<Reason>>;

/// An upload ended before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadError {
    /// By a limit.
    #[error("{}", .0.sentence())]
    Limit(Reason),
    /// By the client.
    #[error(transparent)]
    Client(#[from] hyper::Error),
}

impl Upload {
    /// No body.
    pub(super) fn nothing() -> Self {
        Self(None)
    }

    /// A body, and where it says why it was stopped.
    pub(super) fn new(body: Incoming, flow: &Arc<Flow>) -> (Self, Stopped) {
        let stopped = Stopped::default();
        (Self(Some(Sent { body, flow: Arc::clone(flow), stopped: Arc::clone(&stopped) })), stopped)
    }
}

impl Sent {
    /// Takes what the limits grant of a frame's data.
    fn limit(&self, data: Bytes) -> Bytes {
        let grant = self.flow.take_up(data.len());
        if let Some(reason) = grant.stop {
            // The first reason is the reason.
            let _ = self.stopped.set(reason);
        }
        data.slice(..data.len().min(grant.bytes as usize))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(sent) = &mut self.0 else { return Poll::Ready(None) };
        if let Some(reason) = sent.stopped.get() {
            return Poll::Ready(Some(Err(UploadError::Limit(*reason))));
        }
        let Some(frame) = ready!(Pin::new(&mut sent.body).poll_frame(cx)) else { return Poll::Ready(None) };
        Poll::Ready(Some(match frame {
            Ok(frame) => Ok(match frame.into_data() {
                Ok(data) => Frame::data(sent.limit(data)),
                Err(trailers) => trailers,
            }),
            Err(error) => Err(error.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        // A body that a limit has cut off is not at its end, though the client's may be.
        self.0.as_ref().is_none_or(|sent| sent.stopped.get().is_none() && sent.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or(SizeHint::with_exact(0), |sent| sent.body.size_hint())
    }
}

/// What a client gets as a body.
#[derive(Debug)]
pub(super) enum Download {
    /// What the origin sends, while it is on its way.
    Passing(Arc<Exchanges>),
    /// What the origin has sent, which was nothing, or has been passed on.
    Passed,
    /// An answer of the gate's own.
    Own(Full<Bytes>),
    /// Nothing.
    Nothing,
}

/// A response ended before its end: the client's connection is cut, so that what it got does not look whole.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the response ended early")]
pub(super) struct DownloadError;

/// The next frame of a response, and whether more may come.
pub(super) type Next = (Option<Result<Frame<Bytes>, DownloadError>>, bool);

impl Body for Download {
    type Data = Bytes;
    type Error = DownloadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, DownloadError>>> {
        match &mut *self {
            Self::Passing(exchanges) => {
                let (frame, more) = ready!(exchanges.poll_down(cx));
                if !more {
                    *self = Self::Passed;
                }
                Poll::Ready(frame)
            }
            Self::Own(own) => Pin::new(own).poll_frame(cx).map_err(|never| match never {}),
            Self::Passed | Self::Nothing => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            // What the origin's fields say of the length is passed on, and is not replaced by what is known here.
            Self::Passing(_) | Self::Passed => false,
            Self::Own(own) => own.is_end_stream(),
            Self::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Passing(_) | Self::Passed => SizeHint::default(),
            Self::Own(own) => own.size_hint(),
            Self::Nothing => SizeHint::with_exact(0),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Self::Passing(exchanges) = self {
            exchanges.client_left();
        }
    }
}
