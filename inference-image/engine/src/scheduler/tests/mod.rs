mod fairness;
mod sharing;
mod virtual_time;

use proptest::prelude::*;

use super::*;

/// Limits of a machine and the blocks that it is over.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    sequences: usize,
    pass_tokens: usize,
    blocks: usize,
    block_tokens: usize,
    context_tokens: usize,
    admission: Admission,
}

impl Bounds {
    fn machine(self) -> Scheduler {
        let limits = Limits {
            sequences: self.sequences,
            pass_tokens: self.pass_tokens,
            context_tokens: self.context_tokens,
            admission: self.admission,
        };
        Scheduler::new(limits, KvBlocks::new(self.blocks, self.block_tokens))
    }
}

fn limits() -> Bounds {
    Bounds {
        sequences: 4,
        pass_tokens: 8,
        blocks: 16,
        block_tokens: 4,
        context_tokens: 32,
        admission: Admission::Fair,
    }
}

fn sequence(id: u64, prompt: usize, answer: usize) -> Sequence {
    Sequence::new(SequenceId(id), vec![7; prompt], answer)
}

fn scheduler(bounds: Bounds, sequences: &[(usize, usize)]) -> Scheduler {
    let mut scheduler = bounds.machine();
    for (id, (prompt, answer)) in sequences.iter().enumerate() {
        scheduler
            .add(sequence(id as u64, *prompt, *answer))
            .unwrap();
    }
    scheduler
}

/// Computes one pass with token 9 for every sample; the ids that ended.
fn step(scheduler: &mut Scheduler) -> (Pass, Vec<u64>) {
    let pass = scheduler.plan();
    scheduler.computed(&pass);
    let mut ended = vec![];
    for chunk in pass.chunks.iter().filter(|chunk| chunk.samples) {
        if scheduler.push_token(chunk.id, 9) == Some(AfterToken::Length) {
            ended.push(chunk.id.0);
        }
    }
    (pass, ended)
}

fn counts(pass: &Pass) -> Vec<(u64, usize)> {
    pass.chunks.iter().map(|c| (c.id.0, c.count)).collect()
}

#[test]
fn prompts_that_fit_the_budget_share_a_pass() {
    let mut scheduler = scheduler(limits(), &[(3, 2), (5, 2)]);
    let (pass, _) = step(&mut scheduler);
    assert_eq!(counts(&pass), [(0, 3), (1, 5)]);
    assert!(pass.chunks.iter().all(|chunk| chunk.samples));
}

#[test]
fn a_long_prompt_is_cut_into_chunks_and_samples_only_at_its_end() {
    let mut scheduler = scheduler(limits(), &[(19, 1)]);
    let samples: Vec<_> = (0..3)
        .map(|_| {
            let (pass, _) = step(&mut scheduler);
            (
                pass.chunks[0].start,
                pass.chunks[0].count,
                pass.chunks[0].samples,
            )
        })
        .collect();
    assert_eq!(samples, [(0, 8, false), (8, 8, false), (16, 3, true)]);
    assert!(scheduler.is_empty());
}

#[test]
fn decode_rows_go_before_prefill_chunks() {
    let mut scheduler = scheduler(limits(), &[(2, 9), (2, 9)]);
    step(&mut scheduler);
    scheduler.add(sequence(2, 20, 1)).unwrap();
    let (pass, _) = step(&mut scheduler);
    assert_eq!(counts(&pass), [(0, 1), (1, 1), (2, 6)]);
    let (pass, _) = step(&mut scheduler);
    assert_eq!(counts(&pass), [(0, 1), (1, 1), (2, 6)]);
}

#[test]
fn no_more_sequences_run_than_the_limit_and_the_next_starts_when_one_ends() {
    let mut scheduler = scheduler(limits(), &[(1, 1), (1, 3), (1, 3), (1, 3), (1, 3)]);
    let (pass, ended) = step(&mut scheduler);
    assert_eq!(pass.chunks.len(), 4);
    assert_eq!((ended, scheduler.waiting()), (vec![0], 1));
    let (pass, _) = step(&mut scheduler);
    assert_eq!(counts(&pass), [(1, 1), (2, 1), (3, 1), (4, 1)]);
}

#[test]
fn a_sequence_ends_with_its_last_token_and_gives_its_blocks_back() {
    let mut scheduler = scheduler(limits(), &[(4, 2)]);
    assert_eq!(step(&mut scheduler).1, Vec::<u64>::new());
    assert_eq!(scheduler.used_blocks(), 1);
    assert_eq!(step(&mut scheduler).1, [0]);
    assert_eq!(scheduler.used_blocks(), 0);
    assert_eq!(scheduler.plan(), Pass::default());
}

#[test]
fn a_sequence_that_generates_nothing_may_fill_the_whole_cache() {
    let tight = Bounds {
        blocks: 2,
        context_tokens: 8,
        ..limits()
    };
    let mut scheduler = scheduler(tight, &[(8, 0), (1, 1)]);
    let pass = scheduler.plan();
    assert_eq!(counts(&pass), [(0, 8)]);
    assert!(pass.chunks[0].samples, "its last logits are there");
    scheduler.computed(&pass);
    assert!(scheduler.remove(SequenceId(0)));
    assert_eq!(step(&mut scheduler).1, [1]);
}

#[test]
fn when_blocks_run_out_the_youngest_gives_way_and_is_computed_again_later() {
    let tight = Bounds {
        blocks: 4,
        ..limits()
    };
    let mut scheduler = scheduler(tight, &[(4, 10), (4, 8)]);
    let mut preempted = vec![];
    let mut ended = vec![];
    let mut again = None;
    for _ in 0..100 {
        let (pass, done) = step(&mut scheduler);
        preempted.extend(pass.preempted.iter().map(|id| id.0));
        if !preempted.is_empty() && again.is_none() {
            again = pass.chunks.iter().find(|chunk| chunk.id.0 == 1).copied();
        }
        ended.extend(done);
        assert!(scheduler.used_blocks() <= 4);
        if scheduler.is_empty() {
            break;
        }
    }
    assert_eq!(preempted, [1], "only the younger one is preempted");
    assert_eq!(ended, [0, 1]);
    let again = again.unwrap();
    assert_eq!(again.start, 0, "it starts from its first token");
    assert!(
        again.count > 4,
        "what it had generated is part of its prompt now"
    );
}

#[test]
fn a_waiting_sequence_is_not_admitted_into_blocks_that_a_prefill_still_needs() {
    let tight = Bounds {
        blocks: 6,
        ..limits()
    };
    let mut scheduler = scheduler(tight, &[(20, 1), (4, 1)]);
    let (pass, _) = step(&mut scheduler);
    assert_eq!(counts(&pass), [(0, 8)]);
    let (pass, _) = step(&mut scheduler);
    assert_eq!(counts(&pass), [(0, 8)]);
    let (pass, _) = step(&mut scheduler);
    assert_eq!(
        counts(&pass),
        [(0, 4)],
        "5 blocks are taken, and the next one needs 2"
    );
}

#[test]
fn a_removed_sequence_frees_its_place_whether_it_runs_or_waits() {
    let mut scheduler = scheduler(limits(), &[(4, 5), (4, 5), (4, 5), (4, 5), (4, 5)]);
    step(&mut scheduler);
    step(&mut scheduler);
    assert!(scheduler.remove(SequenceId(0)) && scheduler.remove(SequenceId(4)));
    assert!(!scheduler.remove(SequenceId(0)));
    assert_eq!((scheduler.running(), scheduler.waiting()), (3, 0));
    assert_eq!(scheduler.push_token(SequenceId(0), 1), None);
}

#[test]
fn a_sequence_that_could_never_run_is_refused_with_its_numbers() {
    let mut scheduler = Bounds {
        blocks: 2,
        ..limits()
    }
    .machine();
    assert_eq!(scheduler.add(sequence(0, 0, 1)), Err(AddError::Empty));
    assert_eq!(
        scheduler.add(sequence(0, 30, 3)).unwrap_err().to_string(),
        "prompt (30 tokens) and answer (3 tokens) exceed the context of 32 tokens"
    );
    assert_eq!(
        scheduler.add(sequence(0, 8, 1)),
        Err(AddError::Blocks {
            needed: 3,
            limit: 2
        })
    );
}

proptest! {
    /// Whatever comes and goes: every sequence gets exactly its tokens, chunks are contiguous, and
    /// no bound is ever exceeded.
    #[test]
    fn every_sequence_ends_and_no_limit_is_exceeded(
        arrivals in prop::collection::vec((1_usize..20, 1_usize..12, 0_usize..4), 1..20),
        blocks in 8_usize..20,
        pass_tokens in 1_usize..12,
        gone in prop::collection::vec(any::<bool>(), 20),
    ) {
        let limits = Bounds { pass_tokens, blocks, ..limits() };
        let mut scheduler = limits.machine();
        let mut computed = std::collections::BTreeMap::<u64, usize>::new();
        let mut produced = std::collections::BTreeMap::<u64, usize>::new();
        let mut arrivals: VecDeque<_> = arrivals.into_iter().enumerate().collect();
        let mut wanted = std::collections::BTreeMap::new();
        for round in 0..2_000 {
            if let Some((id, (prompt, answer, delay))) = arrivals.front().copied()
                && delay <= round % 4
            {
                arrivals.pop_front();
                scheduler.add(sequence(id as u64, prompt, answer)).unwrap();
                wanted.insert(id as u64, answer);
            }
            if round % 7 == 3 && let Some(id) = scheduler.ids().last() && gone[id.0 as usize] {
                scheduler.remove(id);
                wanted.remove(&id.0);
                produced.remove(&id.0);
            }
            let pass = scheduler.plan();
            prop_assert!(!pass.chunks.is_empty() || scheduler.is_empty(), "no progress");
            prop_assert!(pass.tokens() <= pass_tokens.max(limits.sequences));
            prop_assert!(scheduler.running() <= limits.sequences);
            for id in &pass.preempted {
                computed.insert(id.0, 0);
            }
            let mut held = 0;
            for chunk in &pass.chunks {
                let at = computed.entry(chunk.id.0).or_default();
                prop_assert_eq!(*at, chunk.start);
                *at += chunk.count;
                let length = scheduler.tokens(chunk.id).unwrap().len();
                prop_assert!(*at <= length);
                prop_assert_eq!(chunk.samples, *at == length);
                held += at.div_ceil(limits.block_tokens);
            }
            prop_assert!(held <= scheduler.used_blocks() && scheduler.used_blocks() <= blocks);
            scheduler.computed(&pass);
            for chunk in pass.chunks.iter().filter(|chunk| chunk.samples) {
                *produced.entry(chunk.id.0).or_insert(0) += 1;
                scheduler.push_token(chunk.id, 9);
            }
            if arrivals.is_empty() && scheduler.is_empty() {
                break;
            }
        }
        prop_assert!(scheduler.is_empty());
        prop_assert_eq!(scheduler.used_blocks(), 0);
        prop_assert_eq!(produced, wanted);
    }

    /// Whatever else is in the pass: who is being read gets a token each time, and the oldest never
    /// gives way, so that everything ends.
    #[test]
    fn every_stream_gets_a_token_in_every_pass_unless_it_gave_way_and_the_oldest_never_does(
        sequences in prop::collection::vec((1_usize..20, 1_usize..12), 1..12),
        blocks in 8_usize..20,
        pass_tokens in 1_usize..12,
    ) {
        let mut scheduler = scheduler(Bounds { pass_tokens, blocks, ..limits() }, &sequences);
        for _ in 0..5_000 {
            let decoding: Vec<SequenceId> = scheduler
                .running
                .iter()
                .filter(|sequence| sequence.pending() == 1)
                .map(Sequence::id)
                .collect();
            let oldest = scheduler.running.first().map(Sequence::id);
            let (pass, _) = step(&mut scheduler);
            for id in decoding {
                let planned = pass.chunks.iter().any(|chunk| chunk.id == id);
                prop_assert!(planned || pass.preempted.contains(&id), "{id:?} was passed over");
            }
            if let Some(oldest) = oldest {
                prop_assert!(!pass.preempted.contains(&oldest), "{oldest:?} gave way");
            }
            if scheduler.is_empty() {
                break;
            }
        }
        prop_assert!(scheduler.is_empty(), "it does not end");
    }
}
