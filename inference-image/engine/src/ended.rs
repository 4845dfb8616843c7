//! How fast answers end lately, and when a client that found no place may come back.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What ended longer ago says nothing about now.
const WINDOW: Duration = Duration::from_secs(30);
/// Answers that end within this time are counted together.
const TOGETHER: Duration = Duration::from_secs(1);
/// Seconds that a client is told to wait at least.
const LEAST_SECONDS: u32 = 1;
/// Seconds that a client is told to wait at most: OpenAI's clients wait for no longer ones.
const MOST_SECONDS: u32 = 60;
/// Seconds that it is told where no answer ended in the window, so that nothing is known.
const UNKNOWN_SECONDS: u32 = 5;

/// Places that answers gave back in the last half minute. Clocks are the caller's.
#[derive(Debug, Default)]
pub struct Ended {
    /// Since when, and how many; the oldest first, at most one for each second.
    places: Mutex<VecDeque<(Instant, usize)>>,
}

impl Ended {
    /// So many places were given back.
    pub fn add(&self, now: Instant, count: usize) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        match places.back_mut() {
            Some((since, sum)) if now.saturating_duration_since(*since) < TOGETHER => *sum += count,
            _ => places.push_back((now, count)),
        }
        while let Some((since, _)) = places.front()
            && now.saturating_duration_since(*since) >= WINDOW
        {
            places.pop_front();
        }
    }

    /// Places that are given back in a second, since the first one of the window was. `None`: none was.
    pub fn per_second(&self, now: Instant) -> Option<f64> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let mut recent = places
            .iter()
            .filter(|(since, _)| now.saturating_duration_since(*since) < WINDOW)
            .peekable();
        let (first, _) = recent.peek()?;
        let span = now.saturating_duration_since(*first).max(TOGETHER);
        let count: usize = recent.map(|(_, count)| count).sum();
        Some(count as f64 / span.as_secs_f64())
    }
}

/// Seconds until a client that lacks so many places may come back: until they are there and the queue is half as long,
/// so that the others who were refused meanwhile find places too, and the engine has not run dry.
pub fn retry_after(missing: usize, waiting: usize, per_second: Option<f64>) -> u32 {
    let Some(rate) = per_second.filter(|rate| *rate > 0.0) else {
        return UNKNOWN_SECONDS;
    };
    let places = missing.max(1) + waiting / 2;
    let seconds = (places as f64 / rate).ceil();
    seconds.clamp(f64::from(LEAST_SECONDS), f64::from(MOST_SECONDS)) as u32
}

#[cfg(test)]
mod tests {
    use graftwork_listen::clock;

    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_half_minute() {
        let (ended, begun) = (Ended::default(), clock::now());
        let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        assert_eq!(ended.per_second(at(0.0)), None);
        for tenth in 0..100 {
            ended.add(at(f64::from(tenth) / 10.0), 2);
        }
        // 200 places, the first of them ten seconds ago.
        assert_eq!(ended.per_second(at(10.0)), Some(20.0));
        assert_eq!(ended.places.lock().unwrap().len(), 10);
        // An engine that ends nothing any more is slower and slower, and then nothing is known.
        assert_eq!(ended.per_second(at(20.0)), Some(10.0));
        assert_eq!(ended.per_second(at(40.0)), None);
        ended.add(at(50.0), 3);
        assert_eq!(ended.places.lock().unwrap().len(), 1, "old ones are gone");
        assert_eq!(ended.per_second(at(50.0)), Some(3.0));
    }

    #[test]
    fn whoever_is_refused_comes_back_when_half_the_queue_is_through() {
        assert_eq!(retry_after(1, 0, Some(20.0)), 1, "never at once");
        assert_eq!(retry_after(1, 200, Some(20.0)), 6);
        assert_eq!(
            retry_after(40, 200, Some(20.0)),
            7,
            "who wants more waits longer"
        );
        assert_eq!(retry_after(1, 256, Some(0.5)), 60, "and never for ever");
        assert_eq!(retry_after(1, 256, None), 5);
        assert_eq!(retry_after(0, 0, Some(0.0)), 5);
    }
}
