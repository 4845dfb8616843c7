//! What stands before the arguments of a call: the tokens among which the model chooses a tool.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use graftwork_model::tool_calls::CallFrame;
use serde_json::Value;

use super::{Guided, Place};

/// A tool that an answer may be a call of.
#[derive(Debug, Clone, PartialEq)]
pub struct CallForm {
    /// The tokens around its arguments.
    pub frame: CallFrame,
    /// The schema of its arguments: of objects alone.
    pub arguments: Value,
}

/// A tool with the grammar of its arguments.
#[derive(Debug)]
pub(super) struct Form {
    frame: CallFrame,
    /// At its beginning. Locked for as long as it is copied, by one of a request's answers.
    arguments: Mutex<Guided>,
}

impl Form {
    pub(super) fn new(frame: CallFrame, arguments: Guided) -> Self {
        Self {
            frame,
            arguments: Mutex::new(arguments),
        }
    }

    /// Where an answer is that wrote this tool's beginning.
    fn place(&self) -> Place {
        let arguments = self
            .arguments
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Place::Json {
            guided: Box::new(arguments.copy()),
            behind: Some(VecDeque::from(self.frame.behind.clone())),
        }
    }
}

/// What one of the beginnings that begin with `written` goes on with.
pub(super) fn following<'a>(
    beginnings: impl Iterator<Item = &'a [u32]>,
    written: &[u32],
) -> Vec<u32> {
    let possible =
        beginnings.filter_map(|beginning| beginning.strip_prefix(written)?.first().copied());
    let mut following: Vec<u32> = possible.collect();
    following.sort_unstable();
    following.dedup();
    following
}

/// The beginning of a call, as far as it is written. Copies share the tools.
#[derive(Debug, Clone)]
pub(super) struct Before {
    forms: Arc<[Form]>,
    written: Vec<u32>,
}

impl Before {
    pub(super) fn new(forms: Vec<Form>) -> Self {
        Self {
            forms: Arc::from(forms),
            written: Vec::new(),
        }
    }

    /// What one of the tools goes on with.
    pub(super) fn following(&self) -> Vec<u32> {
        let beginnings = self.forms.iter().map(|form| form.frame.before.as_slice());
        following(beginnings, &self.written)
    }

    /// Takes a token; where the beginning is whole with it, what follows. No tool's beginning is that of another's: a
    /// quotation mark or a mark of its own ends the name.
    pub(super) fn commit(&mut self, token: u32) -> Option<Place> {
        self.written.push(token);
        let chosen = self
            .forms
            .iter()
            .find(|form| form.frame.before == self.written)?;
        Some(chosen.place())
    }
}
