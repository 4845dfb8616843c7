//! Who waits for whom, counted in passes.

use std::collections::BTreeMap;

use graftwork_model::kv::Owner;

use super::*;

fn of_adapter(id: u64, adapter: u64, prompt: usize, answer: usize) -> Sequence {
    sequence(id, prompt, answer).with_adapter(Some(adapter.to_string().into()))
}

fn roomy(sequences: usize, pass_tokens: usize) -> Bounds {
    Bounds {
        sequences,
        pass_tokens,
        blocks: 1000,
        ..limits()
    }
}

/// A machine with a clock: when each sequence arrived and, first token and end, was heard of.
struct Watched {
    scheduler: Scheduler,
    now: u64,
    next_id: u64,
    arrived: BTreeMap<u64, (u64, u64)>,
    first: BTreeMap<u64, u64>,
}

impl Watched {
    fn new(bounds: Bounds) -> Self {
        Self {
            scheduler: bounds.machine(),
            now: 0,
            next_id: 0,
            arrived: BTreeMap::new(),
            first: BTreeMap::new(),
        }
    }

    fn add(&mut self, adapter: u64, (prompt, answer): (usize, usize)) {
        let id = self.next_id;
        self.next_id += 1;
        self.arrived.insert(id, (self.now, adapter));
        self.scheduler
            .add(of_adapter(id, adapter, prompt, answer))
            .unwrap();
    }

    /// One pass; the adapters whose sequences ended.
    fn step(&mut self) -> Vec<u64> {
        let (pass, ended) = step(&mut self.scheduler);
        for chunk in pass.chunks.iter().filter(|chunk| chunk.samples) {
            self.first.entry(chunk.id.0).or_insert(self.now);
        }
        self.now += 1;
        ended.iter().map(|id| self.arrived[id].1).collect()
    }

    /// Passes to the first token, shortest first, of sequences that `wanted` takes (by arrival and adapter).
    fn waits(&self, wanted: impl Fn(u64, u64) -> bool) -> Vec<u64> {
        let mut waits: Vec<u64> = self
            .first
            .iter()
            .filter(|(id, _)| wanted(self.arrived[id].0, self.arrived[id].1))
            .map(|(id, first)| first - self.arrived[id].0)
            .collect();
        waits.sort_unstable();
        waits
    }
}

#[test]
fn a_burst_of_one_adapter_does_not_keep_the_others_waiting() {
    let run = |admission| {
        let mut watched = Watched::new(Bounds {
            admission,
            ..roomy(4, 16)
        });
        for _ in 0..100 {
            watched.add(0, (12, 8));
        }
        let mut light = 0;
        while !watched.scheduler.is_empty() {
            if watched.now % 10 == 5 && light < 30 {
                light += 1;
                watched.add(1 + light % 8, (6, 4));
            }
            watched.step();
        }
        let longest = |waits: Vec<u64>| *waits.last().unwrap();
        let light = longest(watched.waits(|_, adapter| adapter > 0));
        (light, watched.now)
    };
    let (light, passes) = run(Admission::Fair);
    let (first_come_light, first_come_passes) = run(Admission::Arrival);
    assert!(light < 20, "{light} passes");
    assert!(
        first_come_light > 100,
        "by arrival they wait: {first_come_light}"
    );
    assert!(
        passes * 9 <= first_come_passes * 10,
        "{passes} passes, {first_come_passes} by arrival"
    );
}

#[test]
fn a_busy_adapter_is_not_kept_back_for_ever_by_ever_new_ones() {
    let mut watched = Watched::new(roomy(2, 8));
    for _ in 0..6 {
        watched.add(0, (8, 8));
    }
    let mut newcomer = 0;
    let mut ended = 0;
    while ended < 6 {
        assert!(watched.now < 500, "only {ended} of 6 ended");
        while watched.scheduler.waiting() < 10 {
            newcomer += 1;
            watched.add(newcomer, (2, 2));
        }
        ended += watched
            .step()
            .iter()
            .filter(|adapter| **adapter == 0)
            .count();
    }
}

#[test]
fn who_comes_back_after_a_pause_has_saved_up_nothing() {
    let mut watched = Watched::new(roomy(1, 8));
    watched.add(1, (2, 1));
    watched.step();
    // While 1 is away, 2 and 3 have 40 tokens each.
    for _ in 0..4 {
        for adapter in [2, 3] {
            watched.add(adapter, (8, 2));
        }
    }
    while watched.scheduler.waiting() > 1 {
        watched.step();
    }
    let (before, other) = (watched.next_id, 3);
    for _ in 0..4 {
        watched.add(1, (8, 2));
    }
    watched.add(other, (8, 2));
    while !watched.scheduler.is_empty() {
        watched.step();
    }
    let order: Vec<u64> = (before..watched.next_id)
        .map(|id| watched.first[&id])
        .collect();
    assert!(
        order[4] < order[2],
        "the other one goes before the third of who came back: {order:?}"
    );
}

#[test]
fn what_is_known_of_adapters_that_left_is_forgotten() {
    let mut scheduler = roomy(4, 16).machine();
    for id in 0..10_000 {
        scheduler.add(of_adapter(id, id, 2, 1)).unwrap();
        step(&mut scheduler);
    }
    assert!(scheduler.is_empty());
    assert!(scheduler.shares.known() <= 2);
}

#[test]
fn a_prompt_beside_streams_is_cut_to_what_they_hardly_feel_and_alone_it_is_not() {
    let mut scheduler = roomy(4, 64).machine();
    let wide = |id, prompt| Sequence::new(SequenceId(id), vec![7; prompt], 9);
    scheduler.limits.context_tokens = 400;
    scheduler.add(wide(0, 2)).unwrap();
    let (first, _) = step(&mut scheduler);
    scheduler.took(&first, 0.004);
    let (decode, _) = step(&mut scheduler);
    scheduler.took(&decode, 0.001);
    scheduler.add(wide(1, 300)).unwrap();
    let (pass, _) = step(&mut scheduler);
    assert_eq!(
        counts(&pass),
        [(0, 1), (1, 2)],
        "a prompt token takes 2 ms, a pass without 1 ms"
    );
    assert!(scheduler.remove(SequenceId(0)));
    let (pass, _) = step(&mut scheduler);
    assert_eq!(counts(&pass), [(1, 64)], "nobody is being read to");
}

#[test]
fn who_waited_far_longer_than_the_queue_is_long_gets_every_second_place_and_no_more() {
    const CALLERS: usize = 40;
    let mut watched = Watched::new(roomy(4, 64));
    for _ in 0..CALLERS {
        watched.add(0, (8, 1));
    }
    // Ever new adapters come, which were served nothing yet.
    let (mut newcomer, mut order) = (0, vec![]);
    while order.len() < 3 * CALLERS {
        while watched.scheduler.waiting() < CALLERS {
            newcomer += 1;
            watched.add(newcomer, (2, 1));
        }
        order.extend(watched.step());
    }
    let busy = order.iter().filter(|adapter| **adapter == 0).count();
    assert_eq!(busy, CALLERS, "none is kept back: {order:?}");
    // The first pass was its own: nobody else was there.
    let mut pairs = order.windows(2).skip(8);
    assert!(
        pairs.all(|pair| pair != [0_u64, 0]),
        "two in a row: {order:?}"
    );
}

#[test]
fn a_prompt_alone_on_a_slow_machine_is_cut_so_that_whoever_left_is_seen_to_soon() {
    let mut scheduler = roomy(4, 256).machine();
    scheduler.limits.context_tokens = 800;
    let wide = |id, prompt| Sequence::new(SequenceId(id), vec![7; prompt], 1);
    scheduler.add(wide(0, 700)).unwrap();
    let (first, _) = step(&mut scheduler);
    assert_eq!(counts(&first), [(0, 256)], "nothing was measured yet");
    scheduler.took(&first, 2.56);
    scheduler.add(wide(1, 10)).unwrap();
    let (pass, _) = step(&mut scheduler);
    assert_eq!(counts(&pass), [(0, 50)], "half a second of 10 ms a token");
}

proptest! {
    /// Whatever adapters come in whatever order: every sequence ends, and the first one of an adapter is not
    /// overtaken more often than ageing allows.
    #[test]
    fn every_sequence_of_every_adapter_ends(
        arrivals in prop::collection::vec((0_u64..5, 1_usize..20, 1_usize..12), 1..40),
        blocks in 8_usize..20,
    ) {
        let mut scheduler = Bounds { blocks, ..limits() }.machine();
        let mut wanted: BTreeMap<u64, usize> = BTreeMap::new();
        for (id, (adapter, prompt, answer)) in (0_u64..).zip(arrivals) {
            scheduler.add(of_adapter(id, adapter, prompt, answer)).unwrap();
            wanted.insert(id, answer);
            let (pass, _) = step(&mut scheduler);
            for chunk in pass.chunks.iter().filter(|chunk| chunk.samples) {
                *wanted.get_mut(&chunk.id.0).unwrap() -= 1;
            }
        }
        for _ in 0..5_000 {
            let mut heads: BTreeMap<Owner, usize> = BTreeMap::new();
            for sequence in &scheduler.waiting {
                heads.entry(sequence.adapter().clone()).or_insert(sequence.overtaken);
            }
            let limit = AGEING * scheduler.limits.sequences;
            prop_assert!(heads.values().all(|overtaken| *overtaken <= limit));
            let (pass, _) = step(&mut scheduler);
            for chunk in pass.chunks.iter().filter(|chunk| chunk.samples) {
                *wanted.get_mut(&chunk.id.0).unwrap() -= 1;
            }
            if scheduler.is_empty() {
                break;
            }
        }
        prop_assert!(scheduler.is_empty(), "it does not end");
        prop_assert!(wanted.values().all(|left| *left == 0), "{wanted:?}");
        prop_assert_eq!(scheduler.used_blocks(), 0);
    }
}
