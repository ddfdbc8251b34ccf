//! Bodies on their way: counted, limited, and ended when their flow ends.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use outgate_rules::Reason;

use crate::flow::Flow;
use crate::record::EndedBy;
use crate::relay::Outcome;

/// A request's body on its way up.
#[derive(Debug)]
pub(super) struct Upload {
    body: Option<Incoming>,
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
    pub(super) fn new(body: Option<Incoming>, flow: Arc<Flow>) -> (Self, Stopped) {
        let stopped = Stopped::default();
        (Self { body, flow, stopped: Arc::clone(&stopped) }, stopped)
    }

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
        if let Some(reason) = self.stopped.get() {
            return Poll::Ready(Some(Err(UploadError::Limit(*reason))));
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let Some(frame) = ready!(Pin::new(body).poll_frame(cx)) else { return Poll::Ready(None) };
        Poll::Ready(Some(match frame {
            Ok(frame) => Ok(match frame.into_data() {
                Ok(data) => Frame::data(self.limit(data)),
                Err(trailers) => trailers,
            }),
            Err(error) => Err(error.into()),
        }))
    }

    fn is_end_stream(&self) -> bool {
        // A body that a limit has cut off is not at its end, though the client's may be.
        self.stopped.get().is_none() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// Frames of a response's body that wait for the client.
const FRAMES: usize = 4;

/// A response's body on its way down, and the end that feeds it.
pub(super) fn download() -> (Sender<Bytes, DownloadError>, Channel<Bytes, DownloadError>) {
    Channel::new(FRAMES)
}

/// A response ended before its end: the client's connection is cut, so that what it got does not look whole.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the response ended early")]
pub(super) struct DownloadError;

/// Passes a response's body on to its end, or to the end of its flow.
pub(super) async fn relay_down(
    mut body: Incoming,
    to: &mut Sender<Bytes, DownloadError>,
    flow: &Flow,
) -> Outcome {
    let frames = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Outcome::failed(Reason::OriginClosed) };
            flow.count_down(frame.data_ref().map_or(0, Bytes::len));
            if to.send(frame).await.is_err() {
                return Outcome::side(EndedBy::Client);
            }
        }
        Outcome::side(EndedBy::Origin)
    };
    tokio::select! {
        outcome = frames => outcome,
        reason = flow.ended() => Outcome::gate(reason),
    }
}
