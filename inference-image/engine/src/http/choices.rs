//! The growing answers of one request: what each event adds to which of them.

use graftwork_model::tokenizer::{TextTokenizer, TokenizerError};
use graftwork_model::tool_calls::{Called, ToolCall, ToolCallParser, ToolUse};
use rand::RngExt as _;

use super::record::Record;
use crate::device::{Event, TokenLogprobs};
use crate::openai::ApiError;
use crate::openai::answer::FinishReason;
use crate::transcript::{Echo, Piece, TokenText, Transcript};

/// What was asked for, as far as the answers' texts depend on it.
pub(super) struct Shape {
    /// The prompts, where they are given back; `answers` for each.
    pub(super) echoes: Vec<Echo>,
    /// Answers to each prompt.
    pub(super) answers: usize,
    /// Answers in all.
    pub(super) count: usize,
    /// Stop texts.
    pub(super) stops: Vec<String>,
    /// Whether log-probabilities are asked for.
    pub(super) logprobs: bool,
    /// What the answers may call.
    pub(super) tools: Option<ToolUse>,
}

/// Characters of a call's id: Mistral's templates refuse any other length.
const CALL_ID_LENGTH: usize = 9;

/// What one event adds to an answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Step {
    pub(super) text: String,
    pub(super) calls: Vec<ToolCall>,
    /// Calls that the answer had before.
    pub(super) calls_before: usize,
    pub(super) tokens: Vec<TokenText>,
    pub(super) finish: Option<FinishReason>,
}

impl Step {
    /// Whether there is text, or a log-probability, to show.
    pub(super) fn has_text(&self) -> bool {
        !self.text.is_empty() || !self.tokens.is_empty()
    }
}

/// The texts of all answers, in the order of prompts and, for each, of its answers.
pub(super) struct Choices<'a> {
    shape: Shape,
    transcripts: Vec<Transcript<'a>>,
    /// One for each answer that may call tools, with the number of its calls.
    parsers: Vec<(ToolCallParser, usize)>,
}

impl<'a> Choices<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, shape: Shape) -> Self {
        let marks = shape.tools.as_ref().map(|tools| tools.format);
        let marks = marks.map_or_else(Vec::new, |format| tokenizer.tool_marks(format));
        let transcripts = (0..shape.count)
            .map(|_| Transcript::new(tokenizer, shape.stops.clone()).with_marks(marks.clone()))
            .collect();
        let parsers = match &shape.tools {
            None => Vec::new(),
            Some(tools) => vec![(ToolCallParser::new(tools), 0); shape.count],
        };
        Self {
            shape,
            transcripts,
            parsers,
        }
    }

    pub(super) fn count(&self) -> usize {
        self.shape.count
    }

    /// Tokens of all answers.
    pub(super) fn tokens(&self) -> usize {
        self.transcripts.iter().map(Transcript::tokens).sum()
    }

    /// What an answer begins with: its prompt, unless that waits for its log-probabilities.
    pub(super) fn open(&mut self, index: usize) -> Result<Step, ApiError> {
        if self.shape.logprobs {
            return Ok(Step::default());
        }
        self.echo(index, None)
    }

    /// What an event adds.
    pub(super) fn take(
        &mut self,
        index: usize,
        event: &Event,
        record: &mut Record,
    ) -> Result<Step, ApiError> {
        match event {
            Event::Prompt(scores) => self.echo(index, Some(scores)),
            Event::Token(sampled) => {
                record.token();
                let piece = self.transcript(index)?.push(sampled);
                let step = step(piece.map_err(undecodable)?, None);
                Ok(self.with_calls(index, step))
            }
            Event::Finished(finish) => {
                let piece = self.transcript(index)?.finish();
                let step = step(piece.map_err(undecodable)?, Some(*finish));
                Ok(self.with_calls(index, step))
            }
            Event::Failed(message) => Err(ApiError::internal(message.clone())),
            Event::Refused(error) => Err(ApiError::invalid(error.param, error.to_string())),
        }
    }

    fn echo(&mut self, index: usize, scores: Option<&[TokenLogprobs]>) -> Result<Step, ApiError> {
        let prompt = index / self.shape.answers.max(1);
        match (
            self.shape.echoes.get(prompt),
            self.transcripts.get_mut(index),
        ) {
            (Some(echo), Some(transcript)) => {
                let piece = transcript.echo(echo, scores).map_err(undecodable)?;
                Ok(step(piece, None))
            }
            _ => Ok(Step::default()),
        }
    }

    /// Finds the calls in a step's text. An answer that calls something ends for that reason, unless its
    /// limit cut it off.
    fn with_calls(&mut self, index: usize, mut step: Step) -> Step {
        let Some((parser, count)) = self.parsers.get_mut(index) else {
            return step;
        };
        let parsed = parser.push(&step.text);
        step.text = parsed.text;
        step.calls_before = *count;
        step.calls = parsed.calls.into_iter().map(with_id).collect();
        *count += step.calls.len();
        if parsed.done {
            step.finish = Some(FinishReason::Stop);
        }
        if step.finish.is_some() {
            step.text.push_str(&parser.finish());
        }
        if step.finish == Some(FinishReason::Stop) && *count > 0 {
            step.finish = Some(FinishReason::ToolCalls);
        }
        step
    }

    fn transcript(&mut self, index: usize) -> Result<&mut Transcript<'a>, ApiError> {
        self.transcripts
            .get_mut(index)
            .ok_or_else(|| ApiError::internal("an answer came that nobody asked for"))
    }
}

fn step(piece: Piece, finish: Option<FinishReason>) -> Step {
    Step {
        text: piece.text,
        calls: Vec::new(),
        calls_before: 0,
        tokens: piece.tokens,
        finish: if piece.stopped {
            Some(FinishReason::Stop)
        } else {
            finish
        },
    }
}

fn with_id(called: Called) -> ToolCall {
    let mut random = rand::rng();
    let id =
        (0..CALL_ID_LENGTH).map(|_| char::from(random.sample::<u8, _>(rand::distr::Alphanumeric)));
    ToolCall {
        id: id.collect(),
        name: called.name,
        arguments: called.arguments,
    }
}

fn undecodable(error: TokenizerError) -> ApiError {
    ApiError::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use graftwork_model::fixture::{TinyShape, write_tiny_base};
    use graftwork_model::tool_calls::ToolFormat;

    use super::*;
    use crate::device::Sampled;
    use crate::metrics::Metrics;

    /// Steps of an answer that the model writes like this, up to where it ends.
    fn steps(written: &str, only_one: bool, end: FinishReason) -> Vec<Step> {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let tokenizer = TextTokenizer::load(dir.path()).unwrap();
        let mut record = Record::new(Metrics::new(None).unwrap(), "r".to_owned());
        let mut choices = Choices::new(
            &tokenizer,
            Shape {
                echoes: vec![],
                answers: 1,
                count: 1,
                stops: vec![],
                logprobs: false,
                tools: Some(ToolUse {
                    format: ToolFormat::Hermes,
                    names: vec!["f".to_owned()],
                    only_one,
                }),
            },
        );
        let tokens = tokenizer.encode(written, false).unwrap().into_iter();
        let tokens = tokens.map(|token| {
            Event::Token(Sampled {
                token,
                logprobs: None,
            })
        });
        let mut steps = vec![];
        for event in tokens.chain([Event::Finished(end)]) {
            steps.push(choices.take(0, &event, &mut record).unwrap());
            if steps.last().unwrap().finish.is_some() {
                return steps;
            }
        }
        steps
    }

    fn text(steps: &[Step]) -> String {
        steps.iter().map(|step| step.text.as_str()).collect()
    }

    fn calls(steps: &[Step]) -> Vec<&ToolCall> {
        steps.iter().flat_map(|step| &step.calls).collect()
    }

    const TWICE: &str = "So: <tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n\
        <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";

    #[test]
    fn an_answer_with_calls_ends_for_that_reason_and_each_call_has_an_id() {
        let steps = steps(TWICE, false, FinishReason::Stop);
        assert_eq!(text(&steps), "So:");
        let calls = calls(&steps);
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].arguments, "{\"a\": 1}");
        for call in &calls {
            assert!(call.id.len() == 9 && call.id.bytes().all(|b| b.is_ascii_alphanumeric()));
        }
        assert_ne!(calls[0].id, calls[1].id);
        let positions = steps.iter().filter(|step| !step.calls.is_empty());
        assert_eq!(
            positions.map(|step| step.calls_before).collect::<Vec<_>>(),
            [0, 1]
        );
        assert_eq!(steps.last().unwrap().finish, Some(FinishReason::ToolCalls));
    }

    #[test]
    fn the_first_call_ends_an_answer_that_may_have_one() {
        let steps = steps(TWICE, true, FinishReason::Stop);
        assert_eq!(calls(&steps).len(), 1);
        let last = steps.last().unwrap();
        assert_eq!(last.calls.len(), 1, "nothing is computed after it");
        assert_eq!(last.finish, Some(FinishReason::ToolCalls));
    }

    #[test]
    fn an_answer_that_its_limit_cuts_off_says_so_and_half_a_call_is_text() {
        let half = &TWICE[..TWICE.len() - 20];
        let steps = steps(half, false, FinishReason::Length);
        assert_eq!(calls(&steps).len(), 1);
        assert!(text(&steps).ends_with("\n<tool_call>{\"name\": \"f\", \"argumen"));
        assert_eq!(steps.last().unwrap().finish, Some(FinishReason::Length));
    }
}
