//! Streams of progress from running trainers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use graftwork_contract::proto::trainer::v1::trainer_client::TrainerClient;
use graftwork_contract::proto::trainer::v1::{Progress, WatchRequest};
use graftwork_operator_core::run::Report;
use jiff::{SignedDuration, Timestamp};

use crate::cache::{Touch, Touches};
use crate::calls::{Calls, Peer};
use crate::clock;

/// Between two looks at a run because of its progress: status is at most five seconds behind.
const TOUCH_EVERY: Duration = Duration::from_secs(2);
/// Time before a broken stream is opened again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How old a report may say that it is: beyond that, the clocks of two nodes differ.
const OLDEST: SignedDuration = SignedDuration::from_secs(60);

#[derive(Default)]
struct Stream {
    open: bool,
    report: Option<Report>,
}

/// What running trainers last said, by UID of their pod.
#[derive(Clone, Default)]
pub struct ProgressStreams(Arc<Mutex<HashMap<String, Stream>>>);

impl ProgressStreams {
    /// The newest report of a pod; opens a stream to it where there is none.
    pub fn follow(
        &self,
        peer: &Peer,
        calls: &Arc<Calls>,
        touches: &Touches,
        run: Touch,
    ) -> Option<Report> {
        let mut streams = self.0.lock().ok()?;
        let stream = streams.entry(peer.target.uid.clone()).or_default();
        if !stream.open {
            stream.open = true;
            let listener = Listener {
                streams: self.clone(),
                uid: peer.target.uid.clone(),
                touches: touches.clone(),
                run,
            };
            let calls = Arc::clone(calls);
            let peer = peer.clone();
            tokio::spawn(async move { listener.listen(&calls, &peer).await });
        }
        stream.report.clone()
    }

    /// Forgets pods that are gone.
    pub fn keep_only(&self, exists: impl Fn(&str) -> bool) {
        if let Ok(mut streams) = self.0.lock() {
            streams.retain(|uid, stream| stream.open || exists(uid));
        }
    }

    fn update(&self, uid: &str, change: impl FnOnce(&mut Stream)) {
        if let Ok(mut streams) = self.0.lock()
            && let Some(stream) = streams.get_mut(uid)
        {
            change(stream);
        }
    }
}

struct Listener {
    streams: ProgressStreams,
    uid: String,
    touches: Touches,
    run: Touch,
}

impl Listener {
    /// Listens until the stream ends; the next look at the run opens it again.
    async fn listen(self, calls: &Calls, peer: &Peer) {
        if let Err(why) = self.stream(calls, peer).await {
            tracing::debug!(pod = peer.target.pod, why, "no progress from the trainer");
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.streams.update(&self.uid, |stream| stream.open = false);
        self.touches.send(self.run);
    }

    async fn stream(&self, calls: &Calls, peer: &Peer) -> Result<(), String> {
        let channel = calls
            .connect(peer)
            .await
            .map_err(|error| error.to_string())?;
        let mut client = TrainerClient::new(channel);
        let mut messages = client
            .watch(WatchRequest {})
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        let mut touched: Option<(Instant, String)> = None;
        while let Some(message) = messages.next().await {
            let progress = message.map_err(|status| status.to_string())?;
            if progress.pod_uid != self.uid {
                return Err("another pod answered".to_owned());
            }
            let stage = progress.stage.clone();
            let at = time_of(&progress, clock::now());
            let report = Report { progress, at };
            self.streams
                .update(&self.uid, |stream| stream.report = Some(report));
            let due = touched
                .as_ref()
                .is_none_or(|(at, known)| at.elapsed() >= TOUCH_EVERY || *known != stage);
            if due {
                touched = Some((clock::monotonic(), stage));
                self.touches.send(self.run.clone());
            }
        }
        Ok(())
    }
}

/// When what a report says became so: as the trainer says, so that people see how old a report is that was
/// long on its way; or now, where it does not say, or its clock is ahead of ours or far behind.
fn time_of(progress: &Progress, now: Timestamp) -> Timestamp {
    let said = i64::try_from(progress.at_unix_milliseconds)
        .ok()
        .filter(|milliseconds| *milliseconds > 0)
        .and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok());
    said.filter(|said| *said <= now && now.duration_since(*said) <= OLDEST)
        .unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_as_old_as_the_trainer_says_unless_its_clock_is_wrong() {
        let now = Timestamp::from_millisecond(1_760_000_000_500).unwrap();
        for (said, expected) in [
            (1_760_000_000_500, 1_760_000_000_500),
            (1_759_999_997_250, 1_759_999_997_250),
            (1_759_999_940_500, 1_759_999_940_500),
            (1_759_999_940_499, 1_760_000_000_500),
            (1_760_000_000_501, 1_760_000_000_500),
            (u64::MAX, 1_760_000_000_500),
            (0, 1_760_000_000_500),
        ] {
            let progress = Progress {
                at_unix_milliseconds: said,
                ..Progress::default()
            };
            let at = time_of(&progress, now).as_millisecond();
            assert_eq!(at, expected, "{said}");
        }
    }
}
