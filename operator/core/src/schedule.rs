//! What is due when: a cron expression in a time zone, and what becomes of times that nobody was there for.
//!
//! Summer time, as Vixie's cron has it. Where the clock skips an hour, a time of day in that hour comes when
//! the hour would have begun; where an hour comes twice, the first one counts. Expressions with a wildcard, a
//! list or a range for minutes or hours go by the clock: what is skipped does not come, and what comes twice
//! comes twice.
//!
//! Time zones are those of the database in the binary: images hold no files, and the same expression means
//! the same on every machine.

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};

/// A time that is longer over than this was missed.
pub const MISSED_AFTER: SignedDuration = SignedDuration::from_secs(300);
/// Fields of an expression, and what they take beside `*`, lists, ranges and steps.
const FIELDS: [(&str, &str); 5] = [
    ("minute", "0 to 59"),
    ("hour", "0 to 23"),
    ("day of the month", "1 to 31, or L for the last"),
    ("month", "1 to 12, or JAN to DEC"),
    ("day of the week", "0 (Sunday) to 7, or SUN to SAT"),
];

/// Times by an expression in a time zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// What a schedule can't be read from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleProblem {
    /// The expression.
    #[error("{0}")]
    Cron(String),
    /// The name of the time zone.
    #[error("\"{0}\" is not a time zone of the IANA database, such as Europe/Stockholm")]
    TimeZone(String),
}

/// What becomes of a time that is over before anything could begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missed {
    /// The newest one is made up for, once.
    #[default]
    RunOnce,
    /// The next one is waited for.
    Skip,
}

/// What is remembered between two looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// The newest time that was answered.
    pub last: Option<Timestamp>,
    /// The one after it.
    pub next: Option<Timestamp>,
}

/// What a look at the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing is due, and what is remembered stays.
    Waits,
    /// Nothing is due, and other times are to be remembered: the schedule is new, or was changed.
    Set(Times),
    /// A time has come: the new `last`.
    Due(Times),
    /// This time came and went, and nothing is made up for.
    Skipped(Timestamp, Times),
}

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// The part that is none, in words.
    pub fn parse(cron: &str, zone: &str) -> Result<Self, ScheduleProblem> {
        let refused = |why: &str| ScheduleProblem::Cron(format!("\"{cron}\" {why}"));
        let fields = cron.split_whitespace().count();
        if fields != FIELDS.len() {
            return Err(refused(&format!(
                "has {fields} fields, not the five for minute, hour, day of the month, month and day of the week"
            )));
        }
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let parsed = parser
            .parse(cron)
            .map_err(|_| refused(&broken_part(parser, cron)))?;
        let zone = TimeZoneDatabase::bundled()
            .get(zone)
            .map_err(|_| ScheduleProblem::TimeZone(zone.to_owned()))?;
        let schedule = Self { cron: parsed, zone };
        if schedule.after(Timestamp::UNIX_EPOCH).is_none() {
            return Err(refused("never comes"));
        }
        Ok(schedule)
    }

    /// The first time after this one.
    pub fn after(&self, time: Timestamp) -> Option<Timestamp> {
        let start = time.to_zoned(self.zone.clone());
        let found = self.cron.find_next_occurrence(&start, false).ok()?;
        Some(found.timestamp())
    }

    /// The newest time that is not after this one.
    pub fn until(&self, time: Timestamp) -> Option<Timestamp> {
        let start = time.to_zoned(self.zone.clone());
        let found = self.cron.find_previous_occurrence(&start, true).ok()?;
        Some(found.timestamp())
    }

    /// What is to be done now. A schedule that nothing is remembered of has answered its newest time: whoever
    /// has one begins by looking anyway, and looks no second time where what was remembered is lost.
    pub fn turn(&self, known: Times, missed: Missed, now: Timestamp) -> Turn {
        // A clock that is behind does not bring an answered time back.
        let now = known.last.map_or(now, |last| last.max(now));
        let Some(next) = self.after(now) else {
            return Turn::Waits;
        };
        let times = |last| Times {
            last,
            next: Some(next),
        };
        let Some(planned) = known.next else {
            return Turn::Set(times(known.last.or_else(|| self.until(now))));
        };
        if planned > now {
            return if planned == next {
                Turn::Waits
            } else {
                Turn::Set(times(known.last))
            };
        }
        let newest = self.until(now).filter(|newest| *newest >= planned);
        let is_ours = self.until(planned) == Some(planned);
        match newest.filter(|_| is_ours) {
            // It was planned by another expression.
            None => Turn::Set(times(known.last)),
            Some(newest) if missed == Missed::Skip && now.duration_since(newest) > MISSED_AFTER => {
                Turn::Skipped(newest, times(known.last))
            }
            Some(newest) => Turn::Due(times(Some(newest))),
        }
    }
}

/// What is wrong with an expression: the first field that is none by itself.
fn broken_part(parser: CronParser, cron: &str) -> String {
    let parts: Vec<&str> = cron.split_whitespace().collect();
    let is_field = |index: usize| {
        let alone: Vec<&str> = parts
            .iter()
            .enumerate()
            .map(|(at, part)| if at == index { *part } else { "*" })
            .collect();
        parser.parse(&alone.join(" ")).is_ok()
    };
    let mut fields = FIELDS.into_iter().zip(&parts).enumerate();
    match fields.find(|(index, _)| !is_field(*index)) {
        Some((_, ((name, takes), part))) => format!(
            "is no cron expression: \"{part}\" is no {name}, which takes {takes}, `*`, lists, ranges and steps"
        ),
        None => "is no cron expression: its fields do not go together".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn schedule(cron: &str, zone: &str) -> Schedule {
        Schedule::parse(cron, zone).unwrap()
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    /// The next times after one.
    fn following(cron: &str, zone: &str, start: &str, count: usize) -> Vec<String> {
        let schedule = schedule(cron, zone);
        let mut at = time(start);
        let mut next = || {
            at = schedule.after(at)?;
            Some(at.to_string())
        };
        (0..count).filter_map(|_| next()).collect()
    }

    #[test]
    fn an_expression_is_read_in_its_time_zone() {
        for (cron, zone, start, expected) in [
            (
                "0 1 * * *",
                "UTC",
                "2026-11-20T00:59:59Z",
                "2026-11-20T01:00:00Z",
            ),
            (
                "0 1 * * *",
                "UTC",
                "2026-11-20T01:00:00Z",
                "2026-11-21T01:00:00Z",
            ),
            (
                "0 1 * * *",
                "Europe/Stockholm",
                "2026-11-20T00:30:00Z",
                "2026-11-21T00:00:00Z",
            ),
            (
                "0 1 * * *",
                "Europe/Stockholm",
                "2026-07-01T00:00:00Z",
                "2026-07-01T23:00:00Z",
            ),
            (
                "30 2 * * MON-FRI",
                "Asia/Kolkata",
                "2026-11-20T21:00:00Z",
                "2026-11-22T21:00:00Z",
            ),
            (
                "*/20 8-9 1 JAN,JUL *",
                "UTC",
                "2026-01-01T09:40:00Z",
                "2026-07-01T08:00:00Z",
            ),
            (
                "0 0 29 2 *",
                "UTC",
                "2026-11-20T00:00:00Z",
                "2028-02-29T00:00:00Z",
            ),
            (
                "* * * * *",
                "Asia/Kathmandu",
                "2026-11-20T10:00:30Z",
                "2026-11-20T10:01:00Z",
            ),
        ] {
            assert_eq!(following(cron, zone, start, 1), [expected], "{cron} {zone}");
        }
    }

    #[test]
    fn a_time_that_the_clock_skips_comes_when_the_skipped_hour_would_begin() {
        // In Stockholm 02:00 became 03:00 on 29 March 2026, at 01:00 UTC.
        let nightly = following("30 2 * * *", "Europe/Stockholm", "2026-03-28T12:00:00Z", 3);
        assert_eq!(
            nightly,
            [
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:30:00Z",
                "2026-03-31T00:30:00Z"
            ]
        );
        // By the clock nothing is made up for.
        let half_hours = following(
            "*/30 2-3 * * *",
            "Europe/Stockholm",
            "2026-03-29T00:00:00Z",
            3,
        );
        assert_eq!(
            half_hours,
            [
                "2026-03-29T01:00:00Z",
                "2026-03-29T01:30:00Z",
                "2026-03-30T00:00:00Z"
            ]
        );
    }

    #[test]
    fn a_time_that_comes_twice_counts_once_unless_it_goes_by_the_clock() {
        // In Stockholm 03:00 became 02:00 on 25 October 2026, at 01:00 UTC.
        let nightly = following("30 2 * * *", "Europe/Stockholm", "2026-10-24T12:00:00Z", 2);
        assert_eq!(nightly, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
        let half_hours = following(
            "*/30 2 * * *",
            "Europe/Stockholm",
            "2026-10-24T12:00:00Z",
            5,
        );
        assert_eq!(
            half_hours,
            [
                "2026-10-25T00:00:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-26T01:00:00Z",
            ]
        );
    }

    #[test]
    fn what_never_comes_or_is_no_schedule_is_refused_in_words() {
        for (cron, zone, words) in [
            ("0 1 * *", "UTC", "has 4 fields"),
            ("0 0 1 * * *", "UTC", "has 6 fields"),
            ("@daily", "UTC", "has 1 fields"),
            (
                "60 1 * * *",
                "UTC",
                "is no cron expression: \"60\" is no minute, which takes 0 to 59,",
            ),
            ("0 1-25 * * *", "UTC", "\"1-25\" is no hour"),
            ("0 1 0 * *", "UTC", "\"0\" is no day of the month"),
            ("0 1 * JUNE *", "UTC", "\"JUNE\" is no month"),
            ("0 1 * * FOO", "UTC", "\"FOO\" is no day of the week"),
            ("0 0 30 2 *", "UTC", "never comes"),
            ("0 1 * * *", "Europe/Atlantis", "is not a time zone"),
            ("0 1 * * *", "../../etc/passwd", "is not a time zone"),
        ] {
            let problem = Schedule::parse(cron, zone).unwrap_err().to_string();
            assert!(problem.contains(words), "{cron} {zone}: {problem}");
        }
    }

    fn times(last: &str, next: &str) -> Times {
        let read = |text: &str| (!text.is_empty()).then(|| time(text));
        Times {
            last: read(last),
            next: read(next),
        }
    }

    #[test]
    fn each_look_says_what_is_due() {
        let nightly = schedule("0 1 * * *", "UTC");
        let (n20, n21, n22) = (
            "2026-11-20T01:00:00Z",
            "2026-11-21T01:00:00Z",
            "2026-11-22T01:00:00Z",
        );
        let due = |last, next| Turn::Due(times(last, next));
        let set = |last, next| Turn::Set(times(last, next));
        for (name, known, missed, now, expected) in [
            (
                "new",
                times("", ""),
                Missed::RunOnce,
                "2026-11-20T12:00:00Z",
                set(n20, n21),
            ),
            (
                "early",
                times(n20, n21),
                Missed::RunOnce,
                "2026-11-21T00:59:59Z",
                Turn::Waits,
            ),
            ("on time", times(n20, n21), Missed::Skip, n21, due(n21, n22)),
            (
                "a little late",
                times(n20, n21),
                Missed::Skip,
                "2026-11-21T01:05:00Z",
                due(n21, n22),
            ),
            (
                "too late",
                times(n20, n21),
                Missed::Skip,
                "2026-11-21T01:05:01Z",
                Turn::Skipped(time(n21), times(n20, n22)),
            ),
            (
                "made up for",
                times(n20, n21),
                Missed::RunOnce,
                "2026-11-21T23:00:00Z",
                due(n21, n22),
            ),
            (
                "made up for once",
                times("2026-11-01T01:00:00Z", "2026-11-02T01:00:00Z"),
                Missed::RunOnce,
                "2026-11-21T23:00:00Z",
                due(n21, n22),
            ),
            (
                "a clock behind",
                times(n21, n22),
                Missed::RunOnce,
                "2026-11-21T00:59:58Z",
                Turn::Waits,
            ),
            (
                "an earlier time since the change",
                times(n20, "2026-11-21T09:00:00Z"),
                Missed::RunOnce,
                "2026-11-20T12:00:00Z",
                set(n20, n21),
            ),
            (
                "the planned time is no longer one",
                times(n20, "2026-11-21T09:00:00Z"),
                Missed::RunOnce,
                "2026-11-21T10:00:00Z",
                set(n20, n22),
            ),
            (
                "back again",
                times(n20, ""),
                Missed::RunOnce,
                "2026-11-21T12:00:00Z",
                set(n20, n22),
            ),
        ] {
            assert_eq!(nightly.turn(known, missed, time(now)), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_look_that_was_answered_is_followed_by_waiting(
            seconds in 0_i64..2_000_000_000,
            hours in 0_i64..2000,
            cron in prop::sample::select(vec!["* * * * *", "*/7 3 * * *", "0 2 * * 0", "30 2 31 * *"]),
            zone in prop::sample::select(vec!["UTC", "Europe/Stockholm", "America/New_York", "Asia/Kathmandu"]),
            missed in prop::sample::select(vec![Missed::RunOnce, Missed::Skip]),
        ) {
            let schedule = schedule(cron, zone);
            let start = Timestamp::from_second(seconds).unwrap();
            let later = Timestamp::from_second(seconds + hours * 3600).unwrap();
            let mut known = Times::default();
            for now in [start, later, later] {
                if let Turn::Set(times) | Turn::Due(times) | Turn::Skipped(_, times) =
                    schedule.turn(known, missed, now)
                {
                    prop_assert!(times.last <= Some(now) && times.next > Some(now));
                    prop_assert!(times.last >= known.last, "an answered time comes back");
                    known = times;
                }
                prop_assert_eq!(schedule.turn(known, missed, now), Turn::Waits);
            }
        }

        #[test]
        fn the_newest_time_and_the_next_one_lie_around_now(seconds in 0_i64..2_000_000_000) {
            let schedule = schedule("*/13 1,2,3 * * *", "Europe/Stockholm");
            let now = Timestamp::from_second(seconds).unwrap();
            let (last, next) = (schedule.until(now).unwrap(), schedule.after(now).unwrap());
            prop_assert!(last <= now && now < next);
            prop_assert_eq!(schedule.until(next), Some(next));
            prop_assert_eq!(schedule.after(last), Some(next));
        }
    }
}
