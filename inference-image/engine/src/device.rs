//! The device: one OS thread that owns the model and the KV cache, and runs one forward pass after
//! the other.
//!
//! Requests reach it through a bounded channel (as many places as there are permits), and each has a
//! bounded channel of events back with room for its whole answer, so that no reader, however slow,
//! holds up the others.

use std::collections::BTreeMap;
use std::sync::Arc;

use graftwork_listen::clock;
use graftwork_model::kv::KvPool;
use graftwork_model::sampler::{self, Adjustments, SampleKey, SamplerError, SamplingParams};
use graftwork_model::transformer::{Llama, LogitRows, RowLogits, SequenceStep};
use rayon::iter::{IndexedParallelIterator as _, IntoParallelIterator as _, ParallelIterator as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::constraint::{Constraint, StepError};
use crate::metrics::Metrics;
use crate::openai::answer::FinishReason;
use crate::passes::Passes;
use crate::registry::Lease;
use crate::scheduler::{
    Admission, AfterToken, Chunk, Limits, Pass, Scheduler, Sequence, SequenceId,
};
use crate::vllm::AdaptersInUse;

/// A token and, where asked for, its log-probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Where the request asks for them.
    pub logprobs: Option<TokenLogprobs>,
}

/// Natural logarithms of the model's own probabilities: before penalties, biases, temperature and nucleus.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Of the token that stands there.
    pub chosen: f32,
    /// Of the most probable ones.
    pub top: Vec<(u32, f32)>,
}

/// What a request hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Log-probabilities of the prompt's tokens from the second on, before the first token of the answer.
    Prompt(Vec<TokenLogprobs>),
    /// One more token of the answer.
    Token(Sampled),
    /// The answer is complete.
    Finished(FinishReason),
    /// There will be no answer.
    Failed(String),
    /// There will be none, since a schema asks for too much.
    Refused(StepError),
}

/// One answer to one prompt.
#[derive(Debug)]
pub struct Job {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// 0: only the prompt is computed.
    pub maximum_new_tokens: usize,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Penalties and biases.
    pub adjustments: Adjustments,
    /// Of the drawing.
    pub seed: u64,
    /// Which of the answers to this prompt.
    pub choice: u32,
    /// Whether an end of text is a token like any other.
    pub ignore_eos: bool,
    /// How many most probable tokens to report beside the chosen one.
    pub logprobs: Option<usize>,
    /// Whether to report them for the prompt too: [`Event::Prompt`].
    pub prompt_logprobs: bool,
    /// What the answer has to be; none: any text.
    pub constraint: Option<Constraint>,
    /// The adapter; none: the bare base model.
    pub lease: Option<Arc<Lease>>,
    /// Where the answer goes, with room for `maximum_new_tokens` + 2 events. Closed: the client left, or
    /// has enough.
    pub events: mpsc::Sender<Event>,
    /// The request's places, given back when its last job ends.
    pub permit: Arc<OwnedSemaphorePermit>,
}

/// What the device is made with.
#[derive(Debug)]
pub struct DeviceSettings {
    /// Sequences that run together.
    pub sequences: usize,
    /// Tokens of one forward pass.
    pub pass_tokens: usize,
    /// Tokens of prompt and answer together.
    pub context_tokens: usize,
    /// Which waiting sequence is next.
    pub admission: Admission,
    /// Compute threads; 0: as many as the process may use.
    pub threads: usize,
    /// Requests that wait in the channel.
    pub queue: usize,
    /// The tokenizer's end of text, with which training rows end: it stops an answer beside those that the model's
    /// configuration names.
    pub tokenizer_eos: Option<u32>,
}

/// A handle of the device.
#[derive(Debug, Clone)]
pub struct Device {
    jobs: mpsc::Sender<Job>,
    passes: Passes,
}

/// The device has ended.
#[derive(Debug, thiserror::Error)]
#[error("the compute thread has ended")]
pub struct Ended;

/// Tells how the device's thread ended: `Ok` after its last handle was dropped, an error after a panic.
pub type End = oneshot::Receiver<()>;

impl Device {
    /// Starts the thread.
    ///
    /// # Errors
    /// Where threads can't be started.
    pub fn start(
        llama: Llama,
        pool: KvPool,
        settings: &DeviceSettings,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<(Self, End)> {
        let compute = rayon::ThreadPoolBuilder::new()
            .num_threads(settings.threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()?;
        let limits = Limits {
            sequences: settings.sequences,
            pass_tokens: settings.pass_tokens,
            context_tokens: settings.context_tokens,
            admission: settings.admission,
        };
        let passes = Passes::default();
        metrics.kv_blocks_total.set(gauge(pool.total_blocks()));
        let scheduler = Scheduler::new(limits, pool.blocks().clone());
        let mut end_tokens = llama.config().eos_token_ids.clone();
        end_tokens.extend(settings.tokenizer_eos);
        let (jobs, inbox) = mpsc::channel(settings.queue);
        let (ending, end) = oneshot::channel();
        let worker = Worker {
            llama,
            pool,
            compute,
            end_tokens,
            scheduler,
            requests: BTreeMap::new(),
            next_id: 0,
            metrics,
            passes: passes.clone(),
        };
        std::thread::Builder::new()
            .name("device".to_owned())
            .spawn(move || {
                worker.run(inbox);
                // Dropped unsent by a panic, which the other side sees as an error.
                let _ = ending.send(());
            })?;
        Ok((Self { jobs, passes }, end))
    }

    /// Hands a request over.
    ///
    /// # Errors
    /// Where the device has ended.
    pub async fn submit(&self, job: Job) -> Result<(), Ended> {
        self.jobs.send(job).await.map_err(|_| Ended)
    }

    /// Its forward passes.
    pub fn passes(&self) -> Passes {
        self.passes.clone()
    }
}

struct Request {
    job: Job,
    prompt_tokens: usize,
    /// Log-probabilities of the prompt so far; none: nobody wants them, or they were given out.
    prompt_scores: Option<Vec<TokenLogprobs>>,
}

impl Request {
    /// Which logits the chunk is computed for. Row `i` of the sequence says how probable token `i + 1` is.
    fn rows(&self, chunk: &Chunk) -> LogitRows {
        let unscored = self.prompt_scores.as_ref().is_some_and(|scores| {
            scores.len() + 1 < self.prompt_tokens && scores.len() < chunk.start + chunk.count
        });
        match (unscored, chunk.samples) {
            (true, _) => LogitRows::All,
            (false, true) => LogitRows::Last,
            (false, false) => LogitRows::None,
        }
    }

    /// Draws the next token, behind `tokens`.
    fn draw(&mut self, logits: &[f32], tokens: &[u32], key: SampleKey) -> Result<u32, Event> {
        let job = &mut self.job;
        let failed = |error: SamplerError| Event::Failed(error.to_string());
        if job.adjustments.is_neutral() && job.constraint.is_none() {
            return sampler::sample(logits, &job.sampling, key).map_err(failed);
        }
        let mut changed = logits.to_vec();
        if !job.adjustments.is_neutral() {
            let (prompt, generated) = tokens.split_at(self.prompt_tokens.min(tokens.len()));
            job.adjustments.apply(&mut changed, prompt, generated);
        }
        if let Some(constraint) = &mut job.constraint {
            constraint.mask(&mut changed).map_err(Event::Refused)?;
        }
        sampler::sample(&changed, &job.sampling, key).map_err(failed)
    }

    /// Goes on by a token; whether the answer is whole with it.
    fn commit(&mut self, token: u32) -> Result<bool, Event> {
        match &mut self.job.constraint {
            None => Ok(false),
            Some(constraint) => {
                constraint.commit(token).map_err(Event::Refused)?;
                Ok(constraint.is_complete())
            }
        }
    }

    /// What the client is to hear of a chunk. It depends on this request alone.
    fn sampled(&mut self, chunk: &Chunk, tokens: &[u32], logits: &RowLogits) -> Drawn {
        let prompt = self.score_prompt(chunk.start, tokens, logits);
        let wants_more = chunk.samples && self.job.maximum_new_tokens > 0;
        let next = wants_more.then(|| self.next(chunk, tokens, logits.last()));
        Drawn { prompt, next }
    }

    /// The next token, and how probable it is where someone asks.
    fn next(&mut self, chunk: &Chunk, tokens: &[u32], logits: &[f32]) -> Result<Sampled, Event> {
        let key = SampleKey {
            seed: self.job.seed,
            choice: self.job.choice,
            position: u32::try_from(chunk.start + chunk.count).unwrap_or(u32::MAX),
        };
        let token = self.draw(logits, tokens, key)?;
        let logprobs = self.job.logprobs;
        let logprobs = logprobs.map(|count| token_logprobs(logits, token, count));
        Ok(Sampled { token, logprobs })
    }

    /// Takes the prompt's log-probabilities from a chunk's logits; gives them out once they are complete.
    /// A sequence that lost its cache is computed again, but scored once.
    fn score_prompt(
        &mut self,
        start: usize,
        tokens: &[u32],
        logits: &RowLogits,
    ) -> Option<Vec<TokenLogprobs>> {
        let (mut scores, top) = self.prompt_scores.take().zip(self.job.logprobs)?;
        let wanted = self.prompt_tokens.saturating_sub(1);
        while scores.len() < wanted {
            let row = scores.len().checked_sub(start);
            let row = row.filter(|row| *row < logits.rows());
            let (Some(row), Some(token)) = (row, tokens.get(scores.len() + 1)) else {
                self.prompt_scores = Some(scores);
                return None;
            };
            scores.push(token_logprobs(logits.row(row), *token, top));
        }
        Some(scores)
    }
}

/// What a pass gave for one sequence.
struct Drawn {
    /// The prompt's log-probabilities, once they are complete.
    prompt: Option<Vec<TokenLogprobs>>,
    /// The next token; none where none is wanted.
    next: Option<Result<Sampled, Event>>,
}

struct Worker {
    llama: Llama,
    pool: KvPool,
    compute: rayon::ThreadPool,
    end_tokens: Vec<u32>,
    scheduler: Scheduler,
    requests: BTreeMap<SequenceId, Request>,
    next_id: u64,
    metrics: Arc<Metrics>,
    passes: Passes,
}

impl Worker {
    fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        loop {
            if self.scheduler.is_empty() {
                self.show();
                match inbox.blocking_recv() {
                    Some(job) => self.add(job),
                    None => return,
                }
            }
            while let Ok(job) = inbox.try_recv() {
                self.add(job);
            }
            self.drop_departed();
            let pass = self.scheduler.plan();
            self.show();
            self.metrics.preemptions.inc_by(pass.preempted.len() as u64);
            self.metrics.reused_tokens.inc_by(pass.reused_tokens as u64);
            if !pass.chunks.is_empty() {
                self.compute(&pass);
            }
        }
    }

    fn add(&mut self, mut job: Job) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let prompt = std::mem::take(&mut job.prompt);
        let prompt_tokens = prompt.len();
        let prompt_scores = job.prompt_logprobs.then(Vec::new);
        let adapter = job.lease.as_deref().map(|lease| lease.adapter().digest());
        let mut sequence =
            Sequence::new(id, prompt, job.maximum_new_tokens).with_adapter(adapter.cloned());
        // Logits of the prompt's rows are nowhere but in a pass over them.
        if !job.prompt_logprobs {
            sequence = sequence.sharing();
        }
        match self.scheduler.add(sequence) {
            Ok(()) => {
                let request = Request {
                    job,
                    prompt_tokens,
                    prompt_scores,
                };
                self.requests.insert(id, request);
            }
            Err(error) => send(&job.events, Event::Failed(error.to_string())),
        }
    }

    /// Ends the requests whose clients left.
    fn drop_departed(&mut self) {
        let departed: Vec<SequenceId> = self
            .requests
            .iter()
            .filter(|(_, request)| request.job.events.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for id in departed {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.requests.remove(&id);
    }

    /// Tells a client its last event.
    fn end(&mut self, id: SequenceId, last: Event) {
        if let Some(request) = self.requests.get(&id) {
            send(&request.job.events, last);
        }
        self.remove(id);
    }

    /// Runs one pass and hands out what it sampled.
    fn compute(&mut self, pass: &Pass) {
        self.metrics.passes.inc();
        self.metrics.pass_tokens.inc_by(pass.tokens() as u64);
        let chunks: BTreeMap<SequenceId, Chunk> =
            pass.chunks.iter().map(|chunk| (chunk.id, *chunk)).collect();
        let mut order = Vec::with_capacity(chunks.len());
        let mut steps = Vec::with_capacity(chunks.len());
        for (id, tokens, kv) in self.scheduler.running_parts() {
            let (Some(chunk), Some(request)) = (chunks.get(&id), self.requests.get(&id)) else {
                continue;
            };
            let Some(tokens) = tokens.get(chunk.start..chunk.start + chunk.count) else {
                continue;
            };
            order.push(*chunk);
            steps.push(SequenceStep {
                tokens,
                kv,
                adapter: request.job.lease.as_deref().map(Lease::adapter),
                logits: request.rows(chunk),
            });
        }
        let (llama, pool) = (&self.llama, &mut self.pool);
        let begun = clock::now();
        self.passes.begin();
        let rows = self
            .compute
            .install(|| llama.forward_rows(&mut steps, pool));
        self.passes.end();
        let seconds = clock::now().duration_since(begun).as_secs_f64();
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => {
                tracing::error!(%error, sequences = order.len(), "forward pass failed");
                let message = format!("the forward pass failed: {error}");
                for chunk in order {
                    self.end(chunk.id, Event::Failed(message.clone()));
                }
                return;
            }
        };
        self.scheduler.computed(pass);
        self.scheduler.took(pass, seconds);
        for (chunk, drawn) in self.draw(&order, &rows) {
            if let (Some(request), Some(scores)) = (self.requests.get(&chunk.id), drawn.prompt) {
                send(&request.job.events, Event::Prompt(scores));
            }
            if chunk.samples {
                self.advance(&chunk, drawn.next);
            }
        }
    }

    /// Draws from the logits of every chunk, on all compute threads: with a large vocabulary one after the other
    /// would take as long as a part of the pass. In the order of the chunks.
    fn draw(&mut self, order: &[Chunk], rows: &[RowLogits]) -> Vec<(Chunk, Drawn)> {
        let mut requests: BTreeMap<SequenceId, &mut Request> = self
            .requests
            .iter_mut()
            .map(|(id, request)| (*id, request))
            .collect();
        let mut work = Vec::with_capacity(order.len());
        for (chunk, logits) in order.iter().zip(rows) {
            if let (Some(request), Some(tokens)) =
                (requests.remove(&chunk.id), self.scheduler.tokens(chunk.id))
            {
                work.push((*chunk, request, tokens, logits));
            }
        }
        let sampled =
            |(chunk, request, tokens, logits): (Chunk, &mut Request, &[u32], &RowLogits)| {
                (chunk, request.sampled(&chunk, tokens, logits))
            };
        if work.len() < 2 {
            return work.into_iter().map(sampled).collect();
        }
        self.compute.install(|| {
            let work = work.into_par_iter().with_max_len(1);
            work.map(sampled).collect()
        })
    }

    /// Goes on by the next token of a sequence, and tells the client.
    fn advance(&mut self, chunk: &Chunk, next: Option<Result<Sampled, Event>>) {
        let Some(request) = self.requests.get_mut(&chunk.id) else {
            return;
        };
        let sampled = match next {
            // The request wanted the prompt alone.
            None => return self.end(chunk.id, Event::Finished(FinishReason::Length)),
            Some(Err(last)) => return self.end(chunk.id, last),
            Some(Ok(sampled)) => sampled,
        };
        let token = sampled.token;
        if self.end_tokens.contains(&token) && !request.job.ignore_eos {
            return self.end(chunk.id, Event::Finished(FinishReason::Stop));
        }
        let is_whole = match request.commit(token) {
            Ok(is_whole) => is_whole,
            Err(last) => return self.end(chunk.id, last),
        };
        send(&request.job.events, Event::Token(sampled));
        let after = self.scheduler.push_token(chunk.id, token);
        if is_whole {
            self.end(chunk.id, Event::Finished(FinishReason::Stop));
        } else if after == Some(AfterToken::Length) {
            self.end(chunk.id, Event::Finished(FinishReason::Length));
        }
    }

    fn show(&self) {
        self.metrics.running.set(gauge(self.scheduler.running()));
        self.metrics.waiting.set(gauge(self.scheduler.waiting()));
        self.metrics
            .kv_blocks_used
            .set(gauge(self.scheduler.used_blocks()));
        if let Some(vllm) = &self.metrics.vllm {
            vllm.set(self.adapters_in_use());
        }
    }

    fn adapters_in_use(&self) -> AdaptersInUse {
        let name = |id: SequenceId| {
            let lease = self.requests.get(&id)?.job.lease.as_deref()?;
            Some(lease.name().to_owned())
        };
        let running = self.scheduler.running();
        AdaptersInUse {
            running: self
                .scheduler
                .ids()
                .take(running)
                .filter_map(name)
                .collect(),
            waiting: self
                .scheduler
                .ids()
                .skip(running)
                .filter_map(name)
                .collect(),
        }
    }
}

fn token_logprobs(logits: &[f32], token: u32, count: usize) -> TokenLogprobs {
    TokenLogprobs {
        chosen: sampler::log_probs(logits, &[token])
            .first()
            .copied()
            .unwrap_or(f32::NEG_INFINITY),
        top: sampler::top_log_probs(logits, count),
    }
}

/// The channel has room for everything; a closed one means that the client left, which the next pass
/// sees.
fn send(events: &mpsc::Sender<Event>, event: Event) {
    if let Err(mpsc::error::TrySendError::Full(_)) = events.try_send(event) {
        tracing::error!("an event channel is too small: a defect");
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
