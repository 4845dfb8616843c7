//! A text that grows, and the calls in it.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ARGUMENTS_MARK, ToolFormat, ToolUse};

/// Mistral's mark before a call's own id, which nobody needs.
const CALL_ID: &str = "[CALL_ID]";
/// Bytes before [`ARGUMENTS_MARK`]: a name has at most 64.
const MAXIMUM_NAME_BYTES: usize = 256;

/// A call that a model wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// The tool.
    pub name: String,
    /// A JSON object, as the model wrote it.
    pub arguments: String,
}

/// What one more piece of text led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Text that is certainly no call.
    pub text: String,
    /// Calls that are complete.
    pub calls: Vec<Called>,
    /// Whether the one call that is allowed came; nothing after it counts.
    pub done: bool,
}

/// Where the parser stands in the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// In text, at its beginning, before anything but white space.
    Beginning,
    /// In text.
    Text,
    /// Behind a mark or a call.
    Between,
    /// In a call's JSON; the name where that stands before it.
    Object(Nesting, Option<String>),
    /// No call comes any more.
    End,
}

/// Watches a growing text for calls and holds back what may turn out to be one.
#[derive(Debug, Clone)]
pub struct ToolCallParser {
    format: ToolFormat,
    names: Vec<String>,
    only_one: bool,
    place: Place,
    /// What is not decided yet: white space, a part of a mark, or a call from its mark on.
    held: String,
    /// Bytes of it that were looked at.
    seen: usize,
    /// Whether a call came since the last mark.
    has_call: bool,
}

impl ToolCallParser {
    /// Watches for calls of these tools.
    pub fn new(tools: &ToolUse) -> Self {
        Self {
            format: tools.format,
            names: tools.names.clone(),
            only_one: tools.only_one,
            place: Place::Beginning,
            held: String::new(),
            seen: 0,
            has_call: false,
        }
    }

    /// Takes the next piece.
    pub fn push(&mut self, piece: &str) -> Parsed {
        self.held.push_str(piece);
        let mut parsed = Parsed::default();
        // Each round either ends or goes on to another place with less left to look at.
        while self.round(&mut parsed) {}
        parsed
    }

    /// What was held back, when no text comes any more.
    pub fn finish(&mut self) -> String {
        let is_remainder = match self.place {
            // Separators, or the beginning of a closing mark.
            Place::Between => self.has_call && self.is_part_of_a_mark(self.behind_separators()),
            Place::Text => self.has_call && self.held.trim().is_empty(),
            _ => false,
        };
        let held = std::mem::take(&mut self.held);
        if is_remainder { String::new() } else { held }
    }

    /// Whether to go on.
    fn round(&mut self, parsed: &mut Parsed) -> bool {
        match std::mem::replace(&mut self.place, Place::End) {
            Place::Beginning => self.at_beginning(),
            Place::Text => self.in_text(parsed),
            Place::Between => self.between(parsed),
            Place::Object(nesting, name) => self.in_object(nesting, name, parsed),
            Place::End => {
                parsed.text.push_str(&std::mem::take(&mut self.held));
                false
            }
        }
    }

    fn at_beginning(&mut self) -> bool {
        let text = self.held.trim_start();
        if text.is_empty() {
            self.place = Place::Beginning;
            return false;
        }
        if self.format == ToolFormat::Llama3 && text.starts_with('{') {
            self.seen = self.held.len() - text.len();
            self.place = Place::Between;
        } else {
            self.place = Place::Text;
        }
        true
    }

    fn in_text(&mut self, parsed: &mut Parsed) -> bool {
        let opening = self.format.opening();
        let found = self.held.find(opening);
        let end = found.unwrap_or_else(|| beginning_of(opening, &self.held));
        // White space between text and a call is neither's.
        let text = self.held.get(..end).unwrap_or_default().trim_end();
        let given = text.len();
        parsed.text.push_str(text);
        self.held.drain(..given);
        if found.is_some() {
            self.seen = end - given + opening.len();
            self.has_call = false;
            self.place = Place::Between;
        } else {
            self.place = Place::Text;
        }
        found.is_some()
    }

    fn between(&mut self, parsed: &mut Parsed) -> bool {
        let rest = self.behind_separators();
        let (length, is_object) = (rest.len(), rest.starts_with('{'));
        let mark = self.marks().find(|mark| rest.starts_with(*mark));
        let waits = self.is_part_of_a_mark(rest);
        let named = (self.format == ToolFormat::Mistral)
            .then(|| rest.split_once(ARGUMENTS_MARK))
            .flatten()
            .filter(|(head, _)| head.len() <= MAXIMUM_NAME_BYTES)
            .map(|(head, arguments)| {
                let name = head.split_once(CALL_ID).map_or(head, |(name, _)| name);
                (name.trim().to_owned(), arguments.len())
            });
        self.seen = self.held.len() - length;
        self.place = Place::Between;
        if is_object {
            self.place = Place::Object(Nesting::default(), None);
            return true;
        }
        if let Some(mark) = mark {
            self.seen += mark.len();
            if Some(mark) == self.format.closing() {
                self.held.drain(..self.seen);
                self.place = Place::Text;
            }
            return true;
        }
        if waits {
            return false;
        }
        if let Some((name, arguments)) = named {
            self.seen = self.held.len() - arguments;
            self.place = Place::Object(Nesting::default(), Some(name));
            return true;
        }
        if self.format == ToolFormat::Mistral && length < MAXIMUM_NAME_BYTES + ARGUMENTS_MARK.len()
        {
            return false;
        }
        self.give_up(parsed)
    }

    /// What was not looked at, without what may stand before a call.
    fn behind_separators(&self) -> &str {
        let mut rest = self.held.get(self.seen..).unwrap_or_default();
        let opening = self.format.opening();
        // A mark may begin with what else separates.
        while !rest.starts_with(opening)
            && !opening.starts_with(rest)
            && let Some(next) = rest.strip_prefix(|first: char| self.format.separates(first))
        {
            rest = next;
        }
        rest
    }

    /// Marks that may follow.
    fn marks(&self) -> impl Iterator<Item = &'static str> + use<> {
        let closing = self.format.closing().filter(|_| self.has_call);
        std::iter::once(self.format.opening()).chain(closing)
    }

    fn is_part_of_a_mark(&self, rest: &str) -> bool {
        self.marks().any(|mark| mark.starts_with(rest))
    }

    fn in_object(
        &mut self,
        mut nesting: Nesting,
        name: Option<String>,
        parsed: &mut Parsed,
    ) -> bool {
        let rest = self.held.as_bytes().get(self.seen..).unwrap_or_default();
        let Some(last) = rest.iter().position(|byte| nesting.closes(*byte)) else {
            self.seen = self.held.len();
            self.place = Place::Object(nesting, name);
            return false;
        };
        let end = self.seen + last + 1;
        let text = self.held.get(..end).unwrap_or_default();
        let text = text
            .get(end.saturating_sub(nesting.bytes)..)
            .unwrap_or_default();
        let called = match name {
            Some(name) => named(name, text),
            None => read(text),
        };
        match called.filter(|called| self.names.contains(&called.name)) {
            Some(called) => {
                parsed.calls.push(called);
                self.held.drain(..end);
                self.seen = 0;
                self.has_call = true;
                if self.only_one {
                    parsed.done = true;
                    self.held.clear();
                    self.place = Place::End;
                    return false;
                }
                self.place = Place::Between;
                true
            }
            None => self.give_up(parsed),
        }
    }

    /// What is held is no call: text, in which another may begin where the format closes calls.
    fn give_up(&mut self, parsed: &mut Parsed) -> bool {
        let opening = self.format.opening();
        if let Some(at) = self.held.find(opening)
            && !self.has_call
        {
            // The mark that led here.
            parsed.text.extend(self.held.drain(..at + opening.len()));
        }
        self.seen = 0;
        self.place = match self.format.closing() {
            Some(_) => Place::Text,
            None => Place::End,
        };
        true
    }
}

/// Where the longest end of `text` that is the beginning of `mark` begins.
fn beginning_of(mark: &str, text: &str) -> usize {
    text.char_indices()
        .map(|(at, _)| at)
        .find(|at| text.get(*at..).is_some_and(|end| mark.starts_with(end)))
        .unwrap_or(text.len())
}

/// How deep in a JSON value the text is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Nesting {
    depth: usize,
    in_text: bool,
    is_escaped: bool,
    /// Bytes of the value so far.
    bytes: usize,
}

impl Nesting {
    /// Takes a byte; whether it is the value's last.
    fn closes(&mut self, byte: u8) -> bool {
        if self.bytes == 0 && byte.is_ascii_whitespace() {
            return false;
        }
        self.bytes += 1;
        if self.in_text {
            let was_escaped = std::mem::replace(&mut self.is_escaped, false);
            match byte {
                b'\\' if !was_escaped => self.is_escaped = true,
                b'"' if !was_escaped => self.in_text = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0
    }
}

/// A call as a model writes it: Llama says `parameters`.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

fn read(text: &str) -> Option<Called> {
    let written: Written = serde_json::from_str(text).ok()?;
    named(written.name, written.arguments.map_or("{}", RawValue::get))
}

fn named(name: String, arguments: &str) -> Option<Called> {
    // Read whole: what clients get must be an object.
    let object: &RawValue = serde_json::from_str(arguments).ok()?;
    object.get().starts_with('{').then(|| Called {
        name,
        arguments: object.get().to_owned(),
    })
}

#[cfg(test)]
mod tests;
