//! The upstreams of one zone: asked in the order they are written, those that are down last.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use tokio::time::timeout_at;

use super::exchange::{ExchangeError, Parent};
use crate::cache::Failure;
use crate::filter::{Step, Unusable};
use crate::question::Question;

/// How long one upstream may take before the next is asked: longer than a recursion commonly takes.
const ATTEMPT: Duration = Duration::from_millis(1500);
/// Times that each upstream is asked: a datagram may be lost.
const ROUNDS: usize = 2;

/// Upstreams that are asked for the same names.
pub(crate) struct Group {
    pub(crate) parents: Vec<Arc<Parent>>,
}

impl Group {
    /// Asks until one upstream gives an answer that `chain` can use, at most until `deadline`.
    pub(crate) async fn ask(
        &self,
        question: &Question,
        deadline: Instant,
        read: &(dyn Fn(&Message) -> Result<Step, Unusable> + Sync),
    ) -> Result<(Step, SocketAddr), Failure> {
        self.probe(question);
        let mut failure = Failure::Timeout;
        // Only silence is worth a second try: who said no will say it again.
        let mut silent = self.in_order();
        for _ in 0..ROUNDS {
            for parent in std::mem::take(&mut silent) {
                let now = Instant::now();
                if now >= deadline {
                    return Err(failure);
                }
                match parent.ask_until(question, deadline.min(now + ATTEMPT)).await {
                    Err(None) => silent.push(parent),
                    Err(Some(_)) => failure = Failure::Unusable,
                    Ok(message) => match read(&message) {
                        Ok(step) => return Ok((step, parent.upstream.socket)),
                        Err(_) => failure = Failure::Unusable,
                    },
                }
            }
        }
        Err(failure)
    }

    fn in_order(&self) -> Vec<Arc<Parent>> {
        let (down, up): (Vec<_>, Vec<_>) = self.parents.iter().cloned().partition(|parent| parent.is_down());
        up.into_iter().chain(down).collect()
    }

    /// Asks upstreams that are down the same question beside, so that nobody waits to learn that they are up.
    fn probe(&self, question: &Question) {
        let now = Instant::now();
        for parent in &self.parents {
            if parent.with_health(|health| health.take_probe(now)) {
                let (parent, question) = (Arc::clone(parent), question.clone());
                tokio::spawn(async move { parent.ask_until(&question, now + ATTEMPT).await.is_ok() });
            }
        }
    }
}

impl Parent {
    /// Asks once, until `deadline`, and remembers how that went. The error is none where time ran out.
    async fn ask_until(
        &self,
        question: &Question,
        deadline: Instant,
    ) -> Result<Message, Option<ExchangeError>> {
        let answer = timeout_at(deadline.into(), self.ask(question)).await;
        self.with_health(|health| match &answer {
            Ok(Ok(_)) => health.answered(),
            Ok(Err(_)) | Err(_) => health.failed(Instant::now()),
        });
        answer.map_err(|_| None)?.map_err(Some)
    }

    pub(crate) fn is_down(&self) -> bool {
        self.with_health(|health| health.is_down())
    }

    fn with_health<T>(&self, act: impl FnOnce(&mut super::health::Health) -> T) -> T {
        act(&mut self.health.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
