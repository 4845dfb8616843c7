//! What requests wait and streams feel, in the time of a machine that reads all weights once a pass, and then pays for
//! each token and each adapter. Nothing here looks at a clock: the same code gives the same times everywhere.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// Costs in microseconds.
#[derive(Debug, Clone, Copy)]
struct Machine {
    /// Reading all weights.
    pass: u64,
    /// Arithmetic.
    token: u64,
    adapter: u64,
    /// Attention: nanoseconds for each token that a token attends to.
    position: u64,
    /// Whether it computes while it reads (the roofline of Williams et al. 2009), or one after the other.
    overlaps: bool,
}

impl Machine {
    /// One on which adapters and positions cost nothing.
    fn plain((pass, token, overlaps): (u64, u64, bool)) -> Self {
        Self {
            pass,
            token,
            adapter: 0,
            position: 0,
            overlaps,
        }
    }

    /// Of a pass over so many tokens that attend to `positions` tokens, all together.
    fn microseconds(self, tokens: usize, positions: usize, adapters: usize) -> u64 {
        let arithmetic = self.token * tokens as u64 + self.position * positions as u64 / 1000;
        let base = if self.overlaps {
            self.pass.max(arithmetic)
        } else {
            self.pass + arithmetic
        };
        base + self.adapter * adapters as u64
    }
}

/// A sequence as its client sees it.
struct Heard {
    adapter: u64,
    arrived: u64,
    /// When each token came.
    tokens: Vec<u64>,
}

/// A scheduler on a machine, and its clients.
struct Served {
    scheduler: Scheduler,
    machine: Machine,
    now: u64,
    heard: BTreeMap<u64, Heard>,
    /// Of each pass: how many times as long it took as its decode rows would have alone, each for another adapter.
    stretched: Vec<f64>,
}

/// Tokens that the chunks' tokens attend to, all together.
fn positions(chunks: &[Chunk]) -> usize {
    let each = |chunk: &Chunk| chunk.count * (chunk.start + chunk.count / 2);
    chunks.iter().map(each).sum()
}

impl Served {
    fn new(sequences: usize, machine: Machine) -> Self {
        Self::admitting(Admission::Fair, sequences, machine)
    }

    fn admitting(admission: Admission, sequences: usize, machine: Machine) -> Self {
        let bounds = Bounds {
            sequences,
            pass_tokens: 256,
            blocks: 4096,
            block_tokens: 16,
            context_tokens: 8192,
            admission,
        };
        Self {
            scheduler: bounds.machine(),
            machine,
            now: 0,
            heard: BTreeMap::new(),
            stretched: vec![],
        }
    }

    fn add(&mut self, adapter: u64, (prompt, answer): (usize, usize)) -> u64 {
        let id = self.heard.len() as u64;
        let sequence = sequence(id, prompt, answer).with_adapter(Some(adapter.to_string().into()));
        self.scheduler.add(sequence).unwrap();
        let heard = Heard {
            adapter,
            arrived: self.now,
            tokens: vec![],
        };
        self.heard.insert(id, heard);
        id
    }

    /// One pass; the adapters whose sequences ended.
    fn step(&mut self) -> Vec<u64> {
        let pass = self.scheduler.plan();
        let ids = pass.chunks.iter().map(|chunk| chunk.id.0);
        let adapters: BTreeSet<u64> = ids.map(|id| self.heard[&id].adapter).collect();
        let took =
            self.machine
                .microseconds(pass.tokens(), positions(&pass.chunks), adapters.len());
        let rows = pass
            .chunks
            .iter()
            .copied()
            .filter(|chunk| chunk.count == 1 && chunk.samples);
        let rows: Vec<Chunk> = rows.collect();
        let alone = self
            .machine
            .microseconds(rows.len(), positions(&rows), rows.len());
        self.stretched.push(took as f64 / alone as f64);
        self.now += took;
        self.scheduler.computed(&pass);
        self.scheduler.took(&pass, took as f64 / 1e6);
        let mut ended = vec![];
        for chunk in pass.chunks.iter().filter(|chunk| chunk.samples) {
            let heard = self.heard.get_mut(&chunk.id.0).unwrap();
            heard.tokens.push(self.now);
            if self.scheduler.push_token(chunk.id, 9) == Some(AfterToken::Length) {
                ended.push(heard.adapter);
            }
        }
        ended
    }

    /// Times between the tokens of the streams, of those that came after `since`.
    fn gaps(&self, streams: u64, since: u64) -> Vec<u64> {
        let streams = self.heard.iter().filter(|(id, _)| **id < streams);
        streams
            .flat_map(|(_, heard)| heard.tokens.windows(2))
            .filter(|pair| pair[0] >= since)
            .map(|pair| pair[1] - pair[0])
            .collect()
    }
}

/// The value that so many percent are at most.
fn percentile(mut values: Vec<u64>, percent: usize) -> u64 {
    values.sort_unstable();
    values[values.len() * percent / 100]
}

/// What the callers of 64 adapters met.
struct Met {
    /// Times to first token, of all.
    waits: Vec<u64>,
    /// Of those who did not ask for the first adapter.
    others: Vec<u64>,
    /// Tokens a second.
    rate: u64,
}

/// 8 places and 64 adapters, each of which asks again once it was answered; the first one has so many callers.
fn sixty_four_adapters(admission: Admission, callers_of_the_first: usize) -> Met {
    const ANSWERS: usize = 3000;
    let mut served = Served::admitting(
        admission,
        8,
        Machine {
            pass: 20_000,
            token: 300,
            adapter: 1_000,
            position: 0,
            overlaps: false,
        },
    );
    let mut asked = [0_usize; 64];
    let mut ask = |served: &mut Served, adapter: u64| {
        let n = &mut asked[adapter as usize];
        let at = adapter as usize;
        let size = (
            16 + (at * 37 + *n * 53) % 113,
            16 + (at * 29 + *n * 31) % 49,
        );
        *n += 1;
        served.add(adapter, size);
    };
    for adapter in 0..64 {
        let callers = if adapter == 0 {
            callers_of_the_first
        } else {
            1
        };
        for _ in 0..callers {
            ask(&mut served, adapter);
        }
    }
    let mut answered = 0;
    while answered < ANSWERS {
        for adapter in served.step() {
            answered += 1;
            ask(&mut served, adapter);
        }
    }
    // Those that were there at the begin had nobody before them.
    let later = served.heard.values().filter(|heard| heard.arrived > 0);
    let waits: Vec<(u64, u64)> = later
        .filter_map(|heard| Some((heard.adapter, heard.tokens.first()? - heard.arrived)))
        .collect();
    let of_others = waits.iter().filter(|(adapter, _)| *adapter > 0);
    let tokens: usize = served.heard.values().map(|heard| heard.tokens.len()).sum();
    Met {
        others: of_others.map(|(_, wait)| *wait).collect(),
        waits: waits.into_iter().map(|(_, wait)| wait).collect(),
        rate: tokens as u64 * 1_000_000 / served.now,
    }
}

#[test]
fn of_eight_times_more_adapters_than_places_none_waits_long_and_no_throughput_is_lost() {
    let among_equals = percentile(sixty_four_adapters(Admission::Fair, 1).others, 99);
    for callers in [1, 8, 32, 64, 128] {
        let met = sixty_four_adapters(Admission::Fair, callers);
        let first_come = sixty_four_adapters(Admission::Arrival, callers).rate;
        let longest = met.waits.iter().copied().max().unwrap();
        let median = percentile(met.waits.clone(), 50);
        let p99 = percentile(met.waits, 99);
        assert!(
            p99 <= 5 * median,
            "{callers} callers: p99 {p99} us, median {median} us"
        );
        // The callers of one adapter may be fewer than one in a hundred.
        assert!(
            longest <= 8 * median,
            "{callers} callers: {longest} us, median {median} us"
        );
        assert!(
            met.rate * 10 >= first_come * 9,
            "{callers} callers: {} tokens/s, {first_come} by arrival",
            met.rate
        );
        let others = percentile(met.others, 99);
        assert!(
            others <= 2 * among_equals,
            "{callers} callers: others wait {others} us, among equals {among_equals} us"
        );
    }
}

#[test]
fn streams_beside_a_prompt_of_4000_tokens_wait_at_most_twice_as_long_for_a_token() {
    // From machines with much arithmetic to those on which a pass costs as much as five tokens.
    let machines = [
        (20_000, 300, false),
        (2_000, 50, false),
        (10_000, 1_500, false),
        (20_000, 300, true),
        (30_000, 3_300, true),
        (15_000, 3_300, true),
    ];
    for machine in machines.map(Machine::plain) {
        for streams in [1, 4, 8, 31] {
            let mut served = Served::new(32, machine);
            for adapter in 0..streams {
                served.add(adapter, (32, 2000));
            }
            // All of them are in their answers.
            for _ in 0..300 {
                served.step();
            }
            let quiet = served.now;
            for _ in 0..100 {
                served.step();
            }
            let without = percentile(served.gaps(streams, quiet), 99);
            let begun = served.now;
            let prompt = served.add(streams, (4000, 1));
            let mut passes = 0;
            while served.heard[&prompt].tokens.is_empty() {
                served.step();
                passes += 1;
                assert!(passes < 4000, "the prompt does not get on");
            }
            let beside = percentile(served.gaps(streams, begun), 99);
            assert!(
                beside <= 2 * without,
                "{streams} streams, {machine:?}: {beside} us beside the prompt, {without} us without"
            );
        }
    }
}

#[test]
fn streams_hardly_feel_a_long_prompt_whose_tokens_become_dearer_as_it_goes_on() {
    // At its end a token costs three times what it cost at the begin.
    let machines = [
        (20_000, 300, false),
        (2_000, 50, false),
        (10_000, 1_500, false),
        (20_000, 300, true),
        (30_000, 3_300, true),
    ];
    for machine in machines.map(Machine::plain) {
        for streams in [1, 4, 8, 31] {
            let machine = Machine {
                position: machine.token / 2,
                ..machine
            };
            let mut served = Served::new(32, machine);
            for adapter in 0..streams {
                served.add(adapter, (32, 4000));
            }
            for _ in 0..400 {
                served.step();
            }
            served.stretched.clear();
            let prompt = served.add(streams, (4000, 1));
            while served.heard[&prompt].tokens.is_empty() {
                served.step();
                assert!(served.stretched.len() < 3000, "the prompt does not get on");
            }
            served.stretched.sort_by(f64::total_cmp);
            let p99 = served.stretched[served.stretched.len() * 99 / 100];
            assert!(p99 <= 2.0, "{streams} streams, {machine:?}: {p99} times");
        }
    }
}

#[test]
fn bursts_that_follow_each_other_fill_the_batch_as_soon_as_the_first() {
    const STREAMS: usize = 32;
    const ANSWER: usize = 64;
    let machines = [
        (20_000, 1_500, false),
        (20_000, 300, false),
        (20_000, 1_500, true),
        (5_000, 20, true),
    ];
    for machine in machines.map(Machine::plain) {
        let prompts = (0..STREAMS).map(|index| 16 + 112 * index / (STREAMS - 1));
        let prompts: Vec<usize> = prompts.collect();
        // All prompts before any answer: nobody could be quicker, and streams would stand still.
        let tokens: usize = prompts.iter().sum();
        let quickest = machine.microseconds(256, 0, 0) * tokens.div_ceil(256) as u64
            + machine.microseconds(STREAMS, 0, 0) * ANSWER as u64;
        let mut served = Served::new(STREAMS, machine);
        // Of the last burst's streams few are left at its end, and what they take says little of a full batch.
        for burst in 0..4 {
            let begun = served.now;
            for prompt in &prompts {
                served.add(0, (*prompt, ANSWER));
            }
            let mut ended = 0;
            while ended < STREAMS {
                ended += served.step().len();
            }
            let took = served.now - begun;
            assert!(
                took * 100 <= quickest * 108,
                "burst {burst}, {machine:?}: {took} us, all prompts first {quickest} us"
            );
        }
    }
}
