//! Calls that may take long: each is made once, in the background, whoever asks, and its answer is
//! kept for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cache::{Touch, Touches};
use crate::clock;

/// How long a call may run before those who ask go on without its answer.
const PATIENCE: Duration = Duration::from_secs(3);

type Answer<A> = Result<A, String>;

struct Entry<A> {
    running: Option<Running<A>>,
    answer: Option<(Answer<A>, Instant)>,
}

/// A call under way.
struct Running<A> {
    since: Instant,
    answer: watch::Receiver<Option<Answer<A>>>,
    /// Objects that went on without the answer: they are looked at again when it is there.
    waiting: Vec<Touch>,
}

impl<A> Running<A> {
    /// Whether the call ended without an answer: it panicked.
    fn is_dead(&self) -> bool {
        self.answer.has_changed().is_err()
    }
}

/// Calls of one kind and their answers, by key.
pub struct Background<A> {
    entries: Arc<Mutex<HashMap<String, Entry<A>>>>,
    good_for: Duration,
    bad_for: Duration,
}

impl<A: Clone + Send + Sync + 'static> Background<A> {
    /// Keeps answers for `good_for`, problems and failures for `bad_for`.
    pub fn new(good_for: Duration, bad_for: Duration) -> Self {
        Self {
            entries: Arc::default(),
            good_for,
            bad_for,
        }
    }

    /// The answer to the call of that key, where it is there and still good.
    pub fn known(&self, key: &str, is_problem: impl Fn(&A) -> bool) -> Option<Answer<A>> {
        let entries = self.entries.lock().ok()?;
        let (answer, at) = entries.get(key)?.answer.as_ref()?;
        let good = answer.as_ref().is_ok_and(|answer| !is_problem(answer));
        let age = if good { self.good_for } else { self.bad_for };
        (at.elapsed() < age).then(|| answer.clone())
    }

    /// The last answer to the call of that key, however old.
    pub fn last(&self, key: &str) -> Option<Answer<A>> {
        let entries = self.entries.lock().ok()?;
        let (answer, _) = entries.get(key)?.answer.as_ref()?;
        Some(answer.clone())
    }

    /// Whether the call of that key is under way.
    pub fn is_running(&self, key: &str) -> bool {
        self.entries.lock().is_ok_and(|entries| {
            let running = entries.get(key).and_then(|entry| entry.running.as_ref());
            running.is_some_and(|running| !running.is_dead())
        })
    }

    /// Makes the call, or joins the one that is under way.
    ///
    /// Returns the answer where it comes within a few seconds of the call's start. Where it does
    /// not, `touch` is looked at when it is there, and the last answer stands until then: an answer
    /// that has become old does not become unknown while it is asked for again.
    pub async fn ask(
        &self,
        key: String,
        touches: &Touches,
        touch: Touch,
        call: impl Future<Output = Answer<A>> + Send + 'static,
    ) -> Option<Answer<A>> {
        let (since, mut answer) = self.join(&key, touches, call)?;
        let patience = PATIENCE.saturating_sub(since.elapsed());
        let heard = tokio::time::timeout(patience, answer.wait_for(Option::is_some)).await;
        if let Ok(Ok(answer)) = heard {
            return answer.clone();
        }
        let mut entries = self.entries.lock().ok()?;
        let entry = entries.get_mut(&key)?;
        if let Some(running) = &mut entry.running
            && !running.waiting.contains(&touch)
        {
            running.waiting.push(touch);
        }
        // What failed before says nothing about now.
        let last = entry.answer.as_ref().map(|(answer, _)| answer.clone());
        last.filter(Result::is_ok)
    }

    /// The call of that key: since when it runs, and where its answer will be.
    fn join(
        &self,
        key: &str,
        touches: &Touches,
        call: impl Future<Output = Answer<A>> + Send + 'static,
    ) -> Option<(Instant, watch::Receiver<Option<Answer<A>>>)> {
        let mut entries = self.entries.lock().ok()?;
        let limit = 2 * self.good_for.max(self.bad_for);
        entries.retain(|_, entry| {
            let answered = entry.answer.as_ref();
            entry.running.is_some() || answered.is_some_and(|(_, at)| at.elapsed() < limit)
        });
        let entry = entries.entry(key.to_owned()).or_insert(Entry {
            running: None,
            answer: None,
        });
        if let Some(running) = entry.running.as_ref().filter(|running| !running.is_dead()) {
            return Some((running.since, running.answer.clone()));
        }
        let (sender, answer) = watch::channel(None);
        let since = clock::monotonic();
        entry.running = Some(Running {
            since,
            answer: answer.clone(),
            waiting: Vec::new(),
        });
        let entries = Arc::clone(&self.entries);
        let touches = touches.clone();
        let key = key.to_owned();
        tokio::spawn(async move {
            let answer = call.await;
            let ended = entries.lock().ok().and_then(|mut entries| {
                let entry = entries.get_mut(&key)?;
                entry.answer = Some((answer.clone(), clock::monotonic()));
                entry.running.take()
            });
            // Nobody may wait any more: then there is nobody to tell.
            let _ = sender.send(Some(answer));
            for touch in ended.into_iter().flat_map(|running| running.waiting) {
                touches.send(touch);
            }
        });
        Some((since, answer))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::future::join_all;
    use tokio::sync::Notify;

    use super::*;
    use crate::cache::Kind;

    fn touch(name: &str) -> Touch {
        Touch {
            kind: Kind::Adapter,
            namespace: "team".to_owned(),
            name: name.to_owned(),
        }
    }

    fn background(good_for: Duration) -> Background<u32> {
        Background::new(good_for, Duration::from_millis(10))
    }

    #[tokio::test]
    async fn everyone_who_asks_while_a_call_runs_gets_its_answer() {
        let calls = Arc::new(AtomicUsize::new(0));
        let go_on = Arc::new(Notify::new());
        let bases = background(Duration::from_mins(1));
        let (touches, _receivers) = Touches::new();
        let asked = (0..5).map(|number| {
            let calls = Arc::clone(&calls);
            let go_on = Arc::clone(&go_on);
            let call = async move {
                calls.fetch_add(1, Ordering::SeqCst);
                go_on.notified().await;
                Ok(7)
            };
            bases.ask("k".to_owned(), &touches, touch(&number.to_string()), call)
        });
        let answer = async {
            tokio::task::yield_now().await;
            go_on.notify_one();
        };
        let (answers, ()) = tokio::join!(join_all(asked), answer);
        assert_eq!(answers, vec![Some(Ok(7)); 5]);
        assert_eq!(calls.load(Ordering::SeqCst), 1);
        assert!(!bases.is_running("k"));
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_went_on_without_the_answer_are_looked_at_when_it_is_there() {
        let go_on = Arc::new(Notify::new());
        let bases = background(Duration::from_mins(1));
        let (touches, mut receivers) = Touches::new();
        touches.activate();
        for name in ["one", "two"] {
            let go_on = Arc::clone(&go_on);
            let call = async move {
                go_on.notified().await;
                Ok(7)
            };
            let answer = bases.ask("k".to_owned(), &touches, touch(name), call).await;
            assert_eq!(answer, None, "{name}");
            assert!(bases.is_running("k"));
        }
        go_on.notify_one();
        let index = Kind::ALL.iter().position(|kind| *kind == Kind::Adapter);
        let receiver = &mut receivers[index.unwrap()];
        assert_eq!(receiver.recv().await, Some(touch("one")));
        assert_eq!(receiver.recv().await, Some(touch("two")));
        assert_eq!(bases.known("k", |_| false), Some(Ok(7)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_has_become_old_stands_until_there_is_a_new_one() {
        let bases = Background::new(Duration::ZERO, Duration::from_mins(1));
        let (touches, _receivers) = Touches::new();
        let ask = |call: futures::future::BoxFuture<'static, Answer<u32>>| {
            bases.ask("k".to_owned(), &touches, touch("x"), call)
        };
        assert_eq!(ask(Box::pin(async { Ok(1) })).await, Some(Ok(1)));
        assert_eq!(bases.known("k", |_| false), None, "it is old");
        let silent = ask(Box::pin(std::future::pending())).await;
        assert_eq!(silent, Some(Ok(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_does_not_stand_for_what_is_asked_anew() {
        let bases = background(Duration::from_mins(1));
        let (touches, _receivers) = Touches::new();
        let ask = |call: futures::future::BoxFuture<'static, Answer<u32>>| {
            bases.ask("k".to_owned(), &touches, touch("x"), call)
        };
        let failed = Err("no connection".to_owned());
        let answer = failed.clone();
        assert_eq!(ask(Box::pin(async { answer })).await, Some(failed));
        assert_eq!(ask(Box::pin(std::future::pending())).await, None);
    }

    #[expect(clippy::unused_async, reason = "what is shared is a future")]
    async fn panics() -> Answer<u32> {
        panic!("on purpose")
    }

    #[tokio::test]
    async fn a_call_that_panics_is_made_again() {
        let bases = background(Duration::from_mins(1));
        let (touches, _receivers) = Touches::new();
        let ask = |call: futures::future::BoxFuture<'static, Answer<u32>>| {
            bases.ask("k".to_owned(), &touches, touch("x"), call)
        };
        assert_eq!(ask(Box::pin(panics())).await, None);
        assert_eq!(ask(Box::pin(async { Ok(1) })).await, Some(Ok(1)));
    }
}
