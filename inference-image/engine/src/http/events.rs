//! The events of one request's sequences, merged in the order in which they come.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::Engine;
use crate::device::Event;
use crate::openai::ApiError;

/// What a request's sequences say. The first event is awaited before the answer's head is written.
pub(super) struct Events {
    engine: Arc<Engine>,
    first: Option<(usize, Event)>,
    sources: Sources,
    /// The request's places: taken until the answer is written, not only until it is computed.
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Events {
    pub(super) fn new(
        engine: Arc<Engine>,
        receivers: Vec<mpsc::Receiver<Event>>,
        permit: Arc<OwnedSemaphorePermit>,
    ) -> Self {
        Self {
            engine,
            first: None,
            sources: Sources::new(receivers),
            _permit: permit,
        }
    }

    /// The next event and whose it is; `None` once all sequences have ended.
    ///
    /// # Errors
    /// Where one of them will have no answer.
    pub(super) async fn next(&mut self) -> Result<Option<(usize, Event)>, ApiError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let next = tokio::select! {
            next = poll_fn(|context| self.sources.poll_next(context)) => next,
            () = self.engine.abort.cancelled() => return Err(ApiError::stopping()),
        };
        match next {
            None => Ok(None),
            Some((_, None)) => Err(ApiError::internal("the compute thread has ended")),
            Some((_, Some(Event::Failed(message)))) => Err(ApiError::internal(message)),
            Some((_, Some(Event::Refused(error)))) => {
                Err(ApiError::invalid(error.param, error.to_string()))
            }
            Some((index, Some(event))) => {
                if matches!(event, Event::Finished(_)) {
                    self.close(index);
                }
                Ok(Some((index, event)))
            }
        }
    }

    /// Waits for the first event, so that what fails before it has a status of its own.
    pub(super) async fn await_first(&mut self) -> Result<(), ApiError> {
        self.first = self.next().await?;
        Ok(())
    }

    /// No more of this sequence is wanted: it is not computed any further.
    pub(super) fn close(&mut self, index: usize) {
        self.sources.close(index);
    }
}

/// One channel for each sequence that goes on.
struct Sources {
    receivers: Vec<Option<mpsc::Receiver<Event>>>,
    /// Who is looked at first: a sequence that is always ready must not hold the others up.
    turn: usize,
}

impl Sources {
    fn new(receivers: Vec<mpsc::Receiver<Event>>) -> Self {
        Self {
            receivers: receivers.into_iter().map(Some).collect(),
            turn: 0,
        }
    }

    fn close(&mut self, index: usize) {
        if let Some(receiver) = self.receivers.get_mut(index) {
            *receiver = None;
        }
    }

    /// `None`: all are closed. A source without an event has lost its sender.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Option<Event>)>> {
        let count = self.receivers.len();
        let mut waits = false;
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Some(Some(receiver)) = self.receivers.get_mut(index) else {
                continue;
            };
            if let Poll::Ready(event) = receiver.poll_recv(context) {
                self.turn = index + 1;
                return Poll::Ready(Some((index, event)));
            }
            waits = true;
        }
        if waits {
            Poll::Pending
        } else {
            Poll::Ready(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::answer::FinishReason;

    /// Three sequences.
    fn three() -> (Vec<mpsc::Sender<Event>>, Sources) {
        let (senders, receivers) = (0..3).map(|_| mpsc::channel(4)).unzip();
        (senders, Sources::new(receivers))
    }

    async fn next(sources: &mut Sources) -> Option<(usize, Option<Event>)> {
        poll_fn(|context| sources.poll_next(context)).await
    }

    fn finished() -> Event {
        Event::Finished(FinishReason::Length)
    }

    #[tokio::test]
    async fn sequences_take_turns_however_much_one_of_them_has_to_say() {
        let (senders, mut sources) = three();
        for sender in [&senders[0], &senders[0], &senders[0], &senders[2]] {
            sender.try_send(finished()).unwrap();
        }
        let mut order = vec![];
        for _ in 0..4 {
            order.push(next(&mut sources).await.unwrap().0);
        }
        assert_eq!(order, [0, 2, 0, 0]);
    }

    #[tokio::test]
    async fn a_closed_sequence_is_told_so_and_the_others_go_on() {
        let (senders, mut sources) = three();
        sources.close(1);
        assert!(senders[1].is_closed() && !senders[0].is_closed());
        senders[2].try_send(finished()).unwrap();
        assert_eq!(next(&mut sources).await, Some((2, Some(finished()))));
        sources.close(0);
        sources.close(2);
        assert_eq!(next(&mut sources).await, None);
    }

    #[tokio::test]
    async fn a_sequence_whose_sender_is_lost_is_not_taken_for_one_that_ended() {
        let (mut senders, mut sources) = three();
        drop(senders.remove(1));
        assert_eq!(next(&mut sources).await, Some((1, None)));
    }
}
