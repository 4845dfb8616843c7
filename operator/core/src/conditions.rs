//! Conditions as status carries them: a transition time moves only when the status does.

use graftwork_api::conditions::condition;
use graftwork_api::{Condition, Time};
use jiff::Timestamp;

use crate::plan::Event;

/// Longest message that is written, in bytes.
const LONGEST_MESSAGE: usize = 1024;

/// Of many things, those that a message names.
pub const NAMED: usize = 5;

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It is undecided.
    Unknown,
}

impl Truth {
    /// As conditions write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// What becomes of an object that is as its top condition says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moving {
    /// It stays so until something else changes.
    Rests,
    /// It is being worked on.
    Reconciling,
    /// It stays so until somebody does something.
    Stalled,
}

/// The conditions of one object while its next status is made.
#[derive(Debug, Clone)]
pub struct Conditions {
    list: Vec<Condition>,
    generation: Option<i64>,
    now: Timestamp,
}

impl Conditions {
    /// Starts from the conditions in status; `generation` is `metadata.generation`.
    pub fn new(old: &[Condition], generation: Option<i64>, now: Timestamp) -> Self {
        Self {
            list: old.to_vec(),
            generation,
            now,
        }
    }

    /// States `kind`. The transition time stays where the status does.
    pub fn set(&mut self, kind: &str, truth: Truth, reason: &str, message: impl AsRef<str>) {
        let message = shorten(message.as_ref());
        let index = self.list.iter().position(|known| known.type_ == kind);
        let last_transition_time = index
            .and_then(|index| self.list.get(index))
            .filter(|known| known.status == truth.as_str())
            .map_or(Time(self.now), |known| known.last_transition_time.clone());
        let next = Condition {
            type_: kind.to_owned(),
            status: truth.as_str().to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time,
            observed_generation: self.generation,
        };
        match index.and_then(|index| self.list.get_mut(index)) {
            Some(known) => *known = next,
            None => self.list.push(next),
        }
    }

    /// States `kind` as True where `holds`, and takes it away where not: kstatus conditions exist
    /// only while they are true.
    pub fn set_while(&mut self, kind: &str, holds: bool, reason: &str, message: impl AsRef<str>) {
        if holds {
            self.set(kind, Truth::True, reason, message);
        } else {
            self.list.retain(|known| known.type_ != kind);
        }
    }

    /// `Reconciling` and `Stalled`, of which at most one is there.
    pub fn set_moving(&mut self, moving: Moving, reason: &str, message: impl AsRef<str>) {
        let message = message.as_ref();
        let is = |other| moving == other;
        self.set_while(
            condition::RECONCILING,
            is(Moving::Reconciling),
            reason,
            message,
        );
        self.set_while(condition::STALLED, is(Moving::Stalled), reason, message);
    }

    /// The list, in the order in which types first came.
    pub fn into_list(self) -> Vec<Condition> {
        self.list
    }
}

/// The condition of that type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether the condition of that type is True.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Whether status or reason of a type differ between two lists: worth an event.
pub fn has_turned(old: &[Condition], new: &[Condition], kind: &str) -> bool {
    let key = |list| find(list, kind).map(|known: &Condition| (&known.status, &known.reason));
    key(old) != key(new)
}

/// The event of a condition that turned, in its words. It is a warning where the condition is False, but not where what
/// never was True is only being made. None where it did not turn.
pub fn turned(old: &[Condition], new: &[Condition], kind: &str, moving: Moving) -> Option<Event> {
    let now = find(new, kind).filter(|_| has_turned(old, new, kind))?;
    let is_being_made = moving == Moving::Reconciling && !is_true(old, kind);
    let note = shorten(&now.message);
    Some(if now.status == Truth::False.as_str() && !is_being_made {
        Event::warning(&now.reason, note)
    } else {
        Event::normal(&now.reason, note)
    })
}

/// `1 engine`, `2 engines`.
pub fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// The text, cut at a character so that a condition or an event takes it.
pub fn shorten(text: &str) -> String {
    cut(text, LONGEST_MESSAGE)
}

/// The first few names, and how many there are beside them.
pub fn named(names: &[&str]) -> String {
    let first: Vec<&str> = names.iter().take(NAMED).copied().collect();
    let words = first.join(", ");
    match names.len().saturating_sub(first.len()) {
        0 => words,
        more => format!("{words} and {more} more"),
    }
}

/// The text, cut at a character so that it has at most so many bytes.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub('…'.len_utf8());
    let end = (0..=room)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::EventKind;

    #[test]
    fn one_thing_is_no_more_than_one() {
        let said = [0, 1, 2].map(|count| counted(count, "engine"));
        assert_eq!(said, ["0 engines", "1 engine", "2 engines"]);
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let mut first = Conditions::new(&[], Some(1), at(10));
        first.set("Ready", Truth::Unknown, "Building", "wait");
        let first = first.into_list();
        let mut second = Conditions::new(&first, Some(2), at(20));
        second.set("Ready", Truth::Unknown, "StorageUnavailable", "other words");
        let second = second.into_list();
        assert_eq!(second[0].last_transition_time, Time(at(10)));
        assert_eq!(second[0].observed_generation, Some(2));
        assert!(has_turned(&first, &second, "Ready"));
        let mut third = Conditions::new(&second, Some(2), at(30));
        third.set("Ready", Truth::True, "Ready", "");
        assert_eq!(third.into_list()[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn what_is_only_being_made_is_no_warning() {
        let list = |truth, reason| {
            let mut list = Conditions::new(&[], None, at(0));
            list.set("Ready", truth, reason, "words");
            list.into_list()
        };
        let warns = |old: &[Condition], moving| {
            let new = list(Truth::False, "EnginesNotReady");
            let event = turned(old, &new, "Ready", moving).unwrap();
            assert_eq!(
                (event.reason.as_str(), event.note.as_str()),
                ("EnginesNotReady", "words")
            );
            event.kind == EventKind::Warning
        };
        let before = [vec![], list(Truth::Unknown, "x"), list(Truth::True, "x")];
        let warned = before.clone().map(|old| warns(&old, Moving::Reconciling));
        assert_eq!(warned, [false, false, true], "what was well warns");
        let warned = before.map(|old| warns(&old, Moving::Rests));
        assert_eq!(warned, [true; 3]);
        let same = list(Truth::True, "x");
        assert_eq!(turned(&same, &same, "Ready", Moving::Rests), None);
    }

    #[test]
    fn kstatus_conditions_go_when_they_do_not_hold() {
        let mut conditions = Conditions::new(&[], None, at(0));
        conditions.set_while("Stalled", true, "InvalidSpec", "x");
        conditions.set("Ready", Truth::False, "InvalidSpec", "x");
        conditions.set_while("Stalled", false, "InvalidSpec", "x");
        let list = conditions.into_list();
        assert_eq!(list.len(), 1);
        assert!(!is_true(&list, "Stalled"));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let text = "é".repeat(2000);
        let short = shorten(&text);
        assert!(short.len() <= LONGEST_MESSAGE && short.ends_with('…'));
        assert_eq!(shorten("short"), "short");
        assert_eq!(cut("aé€", 6), "aé€");
        assert_eq!(cut("aé€x", 6), "aé…");
    }

    #[test]
    fn of_many_the_first_few_are_named_and_the_rest_counted() {
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        for (many, words) in [
            (0, ""),
            (1, "a"),
            (5, "a, b, c, d, e"),
            (6, "a, b, c, d, e and 1 more"),
            (7, "a, b, c, d, e and 2 more"),
        ] {
            assert_eq!(named(&names[..many]), words);
        }
    }
}
