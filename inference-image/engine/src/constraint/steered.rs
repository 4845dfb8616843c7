//! An answer of the model's own making, in which calls are only of some of the tools that the model was shown.
//!
//! Whether there is a call, and what its arguments are, stays the model's choice: between the tokens that open a call
//! and its arguments alone it goes on as one of these tools.

use std::sync::Arc;

use graftwork_model::tool_calls::CallOpening;

use super::call::following;

/// How far such an answer is. Copies share the tools.
#[derive(Debug, Clone)]
pub(super) struct Steered {
    openings: Arc<[CallOpening]>,
    /// Tokens of the longest mark.
    longest: usize,
    /// The last tokens of the model's own, as many as that.
    recent: Vec<u32>,
    /// Whether these are all tokens of the answer.
    is_first: bool,
    /// Which opening was written, and what behind it.
    opened: Option<(usize, Vec<u32>)>,
}

impl Steered {
    /// Openings with tokens that the model does not have are left out.
    pub(super) fn new(mut openings: Vec<CallOpening>, vocabulary: usize) -> Self {
        let is_known = |token: &u32| (*token as usize) < vocabulary;
        openings.retain(|opening| opening.tools.iter().flatten().all(is_known));
        let longest = openings.iter().map(|opening| opening.mark.len()).max();
        Self {
            openings: Arc::from(openings),
            longest: longest.unwrap_or_default(),
            recent: Vec::new(),
            is_first: true,
            opened: None,
        }
    }

    /// What may come next; none: anything.
    pub(super) fn following(&self) -> Option<Vec<u32>> {
        let (opening, written) = self.opened.as_ref()?;
        let tools = &self.openings.get(*opening)?.tools;
        Some(following(tools.iter().map(Vec::as_slice), written))
    }

    /// Takes a token.
    pub(super) fn commit(&mut self, token: u32) {
        if let Some((opening, mut written)) = self.opened.take() {
            written.push(token);
            let is_whole = |opening: &CallOpening| opening.tools.contains(&written);
            if !self.openings.get(opening).is_some_and(is_whole) {
                self.opened = Some((opening, written));
            }
            return;
        }
        self.recent.push(token);
        let is_written = |opening: &CallOpening| {
            if opening.is_first {
                self.is_first && self.recent == opening.mark
            } else {
                self.recent.ends_with(&opening.mark)
            }
        };
        if let Some(opening) = self.openings.iter().position(is_written) {
            self.opened = Some((opening, Vec::new()));
            self.recent.clear();
            self.is_first = false;
        } else if self.recent.len() > self.longest {
            self.recent.remove(0);
            self.is_first = false;
        }
    }
}
