use proptest::prelude::*;

use super::*;
use crate::fixture::TinyShape;

#[expect(clippy::unnecessary_wraps, reason = "as sequences name theirs")]
fn owner(name: &str) -> Owner {
    Some(name.into())
}

/// Computes and publishes all of `tokens`.
fn fill(sequence: &mut KvSequence, tokens: &[u32]) {
    sequence.reserve(tokens.len()).unwrap();
    sequence.publish(tokens);
}

#[test]
fn blocks_return_on_drop_and_nothing_is_taken_by_a_refusal() {
    let pool = KvPool::new(&TinyShape::default().config(), 4);
    let mut a = pool.sequence();
    a.reserve(17).unwrap();
    assert_eq!((a.blocks(), pool.free_blocks()), (2, 2));
    a.reserve(32).unwrap();
    assert_eq!(a.blocks(), 2);
    let mut b = pool.sequence();
    assert_eq!(
        b.reserve(33),
        Err(KvError::Exhausted { needed: 3, free: 2 })
    );
    assert_eq!(pool.free_blocks(), 2);
    drop(a);
    b.reserve(64).unwrap();
    std::thread::spawn(move || drop(b)).join().unwrap();
    assert_eq!(pool.free_blocks(), 4);
}

#[test]
fn a_block_in_f16_takes_half_of_the_bytes() {
    let config = TinyShape::default().config();
    let bytes = |format| KvPool::block_bytes_of(&config, format);
    assert_eq!(bytes(KvFormat::F32), KvPool::block_bytes(&config));
    assert_eq!(2 * bytes(KvFormat::F16), bytes(KvFormat::F32));
}

#[test]
fn a_known_beginning_is_shared_in_full_blocks_and_the_last_token_is_left_to_compute() {
    let blocks = KvBlocks::new(8, 4);
    let text: Vec<u32> = (0..12).collect();
    let mut first = blocks.sequence(owner("a"));
    assert_eq!(first.adopt(&text), 0, "nothing is known yet");
    fill(&mut first, &text);
    for (tokens, shared) in [
        (&text[..], 8),
        (&text[..11], 8),
        (&text[..9], 8),
        (&text[..8], 4),
        (&text[..4], 0),
        (&[0, 1, 2, 3, 9, 5, 6, 7, 8][..], 4),
        (&[1, 1, 2, 3, 4][..], 0),
        (&text[..0], 0),
    ] {
        let mut next = blocks.sequence(owner("a"));
        assert_eq!(next.adopt(tokens), shared, "{tokens:?}");
        assert_eq!((next.len(), next.blocks()), (shared, shared / 4));
        assert_eq!(blocks.free(), 5, "shared blocks cost nothing");
    }
}

#[test]
fn nothing_is_shared_between_adapters_or_with_the_base() {
    let blocks = KvBlocks::new(8, 4);
    let text: Vec<u32> = (0..9).collect();
    let mut base = blocks.sequence(None);
    fill(&mut base, &text);
    let mut a = blocks.sequence(owner("a"));
    assert_eq!(a.adopt(&text), 0);
    fill(&mut a, &text);
    assert_eq!(blocks.sequence(owner("b")).adopt(&text), 0);
    assert_eq!(blocks.free(), 8 - 2 * 3);
    assert_eq!(blocks.sequence(None).adopt(&text), 8);
    assert_eq!(blocks.sequence(owner("a")).adopt(&text), 8);
}

#[test]
fn what_was_computed_twice_is_kept_once() {
    let blocks = KvBlocks::new(8, 4);
    let text: Vec<u32> = (0..8).collect();
    let (mut a, mut b) = (blocks.sequence(None), blocks.sequence(None));
    a.reserve(8).unwrap();
    b.reserve(8).unwrap();
    assert_eq!(blocks.free(), 4);
    a.publish(&text);
    b.publish(&text);
    assert_eq!(blocks.free(), 6);
    assert_eq!(a.blocks, b.blocks);
    drop(a);
    assert_eq!(blocks.free(), 6, "the other one still holds them");
    drop(b);
    assert_eq!(blocks.free(), 8);
}

#[test]
fn known_blocks_that_nobody_holds_go_when_room_is_needed_those_let_go_longest_ago_first() {
    let blocks = KvBlocks::new(4, 4);
    let (old, new): (Vec<u32>, Vec<u32>) = ((0..9).collect(), (100..109).collect());
    for text in [&old, &new] {
        let mut sequence = blocks.sequence(None);
        sequence.reserve(8).unwrap();
        sequence.publish(&text[..8]);
    }
    assert_eq!(blocks.free(), 4, "nobody holds anything");
    assert_eq!(blocks.sequence(None).adopt(&new), 8);
    assert_eq!(blocks.sequence(None).adopt(&old), 8);
    // Now `new` is the older one, and its end goes before its beginning.
    let mut other = blocks.sequence(None);
    other.reserve(4).unwrap();
    assert_eq!(blocks.sequence(None).adopt(&new), 4);
    assert_eq!(blocks.sequence(None).adopt(&old), 8);
    drop(other);
}

#[test]
fn a_cleared_sequence_finds_its_own_blocks_again() {
    let blocks = KvBlocks::new(4, 4);
    let text: Vec<u32> = (0..10).collect();
    let mut sequence = blocks.sequence(owner("a"));
    fill(&mut sequence, &text);
    sequence.clear();
    assert_eq!((sequence.len(), blocks.free()), (0, 4));
    assert_eq!(sequence.adopt(&text), 8);
    fill(&mut sequence, &text);
    assert_eq!(blocks.free(), 1);
}

#[derive(Debug, Clone)]
enum Act {
    /// A sequence of one of two adapters begins with so many tokens of one of two texts.
    Begin {
        adapter: bool,
        text: bool,
        tokens: usize,
    },
    /// One computes more tokens.
    Grow { which: usize, tokens: usize },
    /// One ends.
    End(usize),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (any::<bool>(), any::<bool>(), 1_usize..14)
            .prop_map(|(adapter, text, tokens)| Act::Begin { adapter, text, tokens }),
        4 => (any::<usize>(), 1_usize..6).prop_map(|(which, tokens)| Act::Grow { which, tokens }),
        3 => any::<usize>().prop_map(Act::End),
    ]
}

/// Both texts begin alike, so that sequences share a part.
fn text(which: bool, tokens: usize) -> Vec<u32> {
    (0..tokens as u32)
        .map(|i| if which && i >= 7 { 100 + i } else { i })
        .collect()
}

proptest! {
    /// Whatever comes, grows and goes: no block leaks or has an owner too many, none is unreachable, and a
    /// sequence shares only blocks that were filled with its own tokens under its own adapter.
    #[test]
    fn the_ledger_never_contradicts_itself_and_a_block_never_answers_for_others(
        acts in prop::collection::vec(act(), 1..150),
        count in 3_usize..12,
    ) {
        let blocks = KvBlocks::new(count, 3);
        let mut live: Vec<(KvSequence, bool)> = Vec::new();
        // What each block was filled with: adapter and all tokens up to its end.
        let mut content: Vec<(bool, Vec<u32>)> = vec![(false, vec![]); count];
        for act in acts {
            match act {
                Act::Begin { adapter, text: which, tokens } => {
                    let name = if adapter { "a" } else { "b" };
                    let mut sequence = blocks.sequence(owner(name));
                    let text = text(which, tokens);
                    let shared = sequence.adopt(&text);
                    prop_assert!(shared < text.len());
                    for (i, id) in sequence.blocks.iter().enumerate() {
                        let expected = (adapter, text[..(i + 1) * 3].to_vec());
                        prop_assert_eq!(&content[*id as usize], &expected);
                    }
                    live.push((sequence, which));
                }
                Act::Grow { which, tokens } if !live.is_empty() => {
                    let at = which % live.len();
                    let (sequence, which) = &mut live[at];
                    let length = sequence.len() + tokens;
                    let text = text(*which, length);
                    if sequence.reserve(length).is_ok() {
                        let adapter = sequence.owner == owner("a");
                        for (i, id) in sequence.blocks.iter().enumerate().skip(sequence.published) {
                            let end = length.min((i + 1) * 3);
                            content[*id as usize] = (adapter, text[..end].to_vec());
                        }
                        let computed = length - sequence.len();
                        sequence.advance(computed);
                        sequence.publish(&text);
                    }
                }
                Act::End(which) if !live.is_empty() => {
                    let at = which % live.len();
                    live.swap_remove(at);
                }
                Act::Grow { .. } | Act::End(_) => {}
            }
            let held: Vec<Vec<u32>> = live.iter().map(|(s, _)| s.blocks.clone()).collect();
            blocks.lock().check(&held);
        }
        drop(live);
        blocks.lock().check(&[]);
        prop_assert_eq!(blocks.free(), count);
    }
}
