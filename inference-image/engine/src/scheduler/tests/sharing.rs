//! What sequences with the same beginning share.

use super::*;

fn sharing(id: u64, adapter: &str, tokens: &[u32], answer: usize) -> Sequence {
    Sequence::new(SequenceId(id), tokens.to_vec(), answer)
        .with_adapter(Some(adapter.into()))
        .sharing()
}

fn text(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).collect()
}

fn roomy() -> Bounds {
    Bounds {
        pass_tokens: 32,
        ..limits()
    }
}

/// Steps until nothing is left; the first chunk of each sequence.
fn firsts(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize)> {
    let mut firsts: Vec<(u64, usize, usize)> = vec![];
    while !scheduler.is_empty() {
        let (pass, _) = step(scheduler);
        for chunk in pass.chunks {
            if firsts.iter().all(|(id, ..)| *id != chunk.id.0) {
                firsts.push((chunk.id.0, chunk.start, chunk.count));
            }
        }
    }
    firsts
}

#[test]
fn a_prompt_that_was_answered_before_is_computed_from_where_it_differs() {
    let mut scheduler = roomy().machine();
    scheduler.add(sharing(0, "a", &text(10), 2)).unwrap();
    assert_eq!(firsts(&mut scheduler), [(0, 0, 10)]);
    scheduler.add(sharing(1, "a", &text(11), 2)).unwrap();
    let pass = scheduler.plan();
    assert_eq!((pass.chunks[0].start, pass.chunks[0].count), (8, 3));
    assert_eq!(pass.reused_tokens, 8);
}

#[test]
fn the_next_turn_of_a_conversation_shares_the_answer_too() {
    let mut scheduler = roomy().machine();
    scheduler.add(sharing(0, "a", &text(10), 6)).unwrap();
    firsts(&mut scheduler);
    // The answer was six times 9, of which the last was never computed.
    let mut turn = text(10);
    turn.extend([9, 9, 9, 9, 9, 9, 30, 31, 32]);
    scheduler.add(sharing(1, "a", &turn, 1)).unwrap();
    assert_eq!(firsts(&mut scheduler), [(1, 12, 7)]);
}

#[test]
fn nothing_is_shared_with_another_adapter_or_by_who_wants_all_logits() {
    let mut scheduler = roomy().machine();
    scheduler.add(sharing(0, "a", &text(10), 1)).unwrap();
    firsts(&mut scheduler);
    scheduler.add(sharing(1, "b", &text(10), 1)).unwrap();
    let whole = Sequence::new(SequenceId(2), text(10), 1).with_adapter(Some("a".into()));
    scheduler.add(whole).unwrap();
    let base = Sequence::new(SequenceId(3), text(10), 1).sharing();
    scheduler.add(base).unwrap();
    let mut firsts = firsts(&mut scheduler);
    firsts.sort_unstable();
    assert_eq!(firsts, [(1, 0, 10), (2, 0, 10), (3, 0, 10)]);
}

#[test]
fn what_is_being_computed_is_not_shared_before_it_is_there() {
    let mut scheduler = roomy().machine();
    scheduler.add(sharing(0, "a", &text(10), 2)).unwrap();
    scheduler.add(sharing(1, "a", &text(10), 2)).unwrap();
    let pass = scheduler.plan();
    assert_eq!(counts(&pass), [(0, 10), (1, 10)]);
    assert_eq!(scheduler.used_blocks(), 6);
    scheduler.computed(&pass);
    assert_eq!(scheduler.used_blocks(), 4, "now one copy is enough");
}

#[test]
fn a_removed_sequence_leaves_what_it_computed_and_nothing_that_it_did_not() {
    let mut scheduler = Bounds {
        pass_tokens: 4,
        ..limits()
    }
    .machine();
    scheduler.add(sharing(0, "a", &text(20), 2)).unwrap();
    step(&mut scheduler);
    step(&mut scheduler);
    // Planned, but the pass failed.
    let failed = scheduler.plan();
    assert_eq!((failed.chunks[0].start, failed.chunks[0].count), (8, 4));
    assert!(scheduler.remove(SequenceId(0)));
    assert_eq!(scheduler.used_blocks(), 0);
    scheduler.add(sharing(1, "a", &text(20), 2)).unwrap();
    let pass = scheduler.plan();
    assert_eq!((pass.chunks[0].start, pass.reused_tokens), (8, 8));
}

#[test]
fn who_gave_way_goes_on_from_what_the_cache_still_has() {
    let tight = Bounds {
        blocks: 6,
        pass_tokens: 32,
        ..limits()
    };
    let mut scheduler = tight.machine();
    scheduler.add(sharing(0, "a", &text(8), 6)).unwrap();
    let other: Vec<u32> = (100..108).collect();
    scheduler.add(sharing(1, "a", &other, 10)).unwrap();
    let (mut preempted, mut again) = (0, None);
    while !scheduler.is_empty() {
        let (pass, _) = step(&mut scheduler);
        if preempted > 0 && again.is_none() {
            again = pass.chunks.iter().find(|chunk| chunk.id.0 == 1).copied();
        }
        preempted += pass.preempted.len();
    }
    assert_eq!(preempted, 1);
    assert_eq!(scheduler.used_blocks(), 0);
    let again = again.unwrap();
    assert_eq!(
        (again.start, again.count),
        (8, 5),
        "the other one took its third block"
    );
}

proptest! {
    /// Whatever shares whatever: no chunk begins before or after what the cache has, every answer is complete,
    /// and at the end nobody holds a block.
    #[test]
    fn sharing_loses_no_token_and_no_block(
        arrivals in prop::collection::vec(
            (any::<bool>(), 1_usize..18, 1_usize..10, any::<bool>(), 0_usize..3),
            1..25,
        ),
        blocks in 8_usize..20,
        pass_tokens in 1_usize..12,
        gone in prop::collection::vec(any::<bool>(), 25),
    ) {
        let mut scheduler = Bounds { pass_tokens, blocks, ..limits() }.machine();
        let mut computed = std::collections::BTreeMap::<u64, usize>::new();
        let mut left = std::collections::BTreeMap::<u64, usize>::new();
        let mut arrivals: VecDeque<_> = (0_u64..).zip(arrivals).collect();
        for round in 0..3_000_usize {
            if let Some((id, (adapter, prompt, answer, shares, delay))) = arrivals.front().copied()
                && delay <= round % 3
            {
                arrivals.pop_front();
                let adapter = if adapter { "a" } else { "b" };
                let mut sequence = Sequence::new(SequenceId(id), text(prompt), answer)
                    .with_adapter(Some(adapter.into()));
                if shares {
                    sequence = sequence.sharing();
                }
                scheduler.add(sequence).unwrap();
                left.insert(id, answer);
            }
            let first = scheduler.ids().next();
            if round % 5 == 4
                && let Some(id) = first
                && gone[id.0 as usize]
            {
                scheduler.remove(id);
                left.remove(&id.0);
            }
            let pass = scheduler.plan();
            prop_assert!(!pass.chunks.is_empty() || scheduler.is_empty(), "no progress");
            for id in &pass.preempted {
                computed.remove(&id.0);
            }
            for chunk in &pass.chunks {
                let length = scheduler.tokens(chunk.id).unwrap().len();
                match computed.get(&chunk.id.0) {
                    Some(at) => prop_assert_eq!(*at, chunk.start),
                    None => prop_assert!(chunk.start % 4 == 0 && chunk.start < length),
                }
                let end = chunk.start + chunk.count;
                prop_assert!(chunk.count > 0 && end <= length);
                prop_assert_eq!(chunk.samples, end == length);
                computed.insert(chunk.id.0, end);
            }
            prop_assert!(scheduler.used_blocks() <= blocks);
            scheduler.computed(&pass);
            for chunk in pass.chunks.iter().filter(|chunk| chunk.samples) {
                *left.get_mut(&chunk.id.0).unwrap() -= 1;
                scheduler.push_token(chunk.id, 9);
            }
            if arrivals.is_empty() && scheduler.is_empty() {
                break;
            }
        }
        prop_assert!(scheduler.is_empty(), "it does not end");
        prop_assert!(left.values().all(|left| *left == 0), "{left:?}");
        prop_assert_eq!(scheduler.used_blocks(), 0);
    }
}
