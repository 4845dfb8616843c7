//! Who holds which block, and what the blocks that nobody holds still know: a pure ledger.
//!
//! A full block may be published: from then on it is found by its owner (an adapter's digest, or the bare base)
//! and by every token up to its end. Keys are compared whole and not by a hash of them, so that a block can't
//! answer for other tokens or another adapter. A published block that nobody holds stays until its place is
//! needed, and the one that was let go longest ago goes first.
//!
//! A sequence lets its last block go first. So a block never goes before the blocks that are found through it,
//! and whoever holds a published block holds all those before it (radix-tree reuse as in `SGLang`: Zheng et al. 2024,
//! arXiv:2312.07104, section 3, over the blocks of Kwon et al. 2023).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::KvError;

/// Whose keys and values a block holds: an adapter's digest; none: the bare base model.
pub type Owner = Option<Arc<str>>;

/// What a block comes after.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Parent {
    /// Nothing: it begins a sequence.
    Start(Owner),
    /// The published block with this number, which no other gets ever again.
    Block(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    parent: Parent,
    tokens: Box<[u32]>,
}

#[derive(Debug)]
struct Published {
    key: Key,
    number: u64,
}

#[derive(Debug, Default)]
struct Block {
    holders: u32,
    published: Option<Published>,
    /// Its place in the order of leaving; counts while nobody holds it.
    let_go: u64,
}

/// All blocks of a pool.
#[derive(Debug)]
pub(super) struct Ledger {
    block_tokens: usize,
    blocks: Vec<Block>,
    /// Blocks without holders and content.
    free: Vec<u32>,
    /// Blocks without holders that are published, by when they were let go.
    idle: BTreeMap<u64, u32>,
    found_by: HashMap<Key, u32>,
    /// Numbers published blocks and moments.
    clock: u64,
}

impl Ledger {
    pub(super) fn new(blocks: usize, block_tokens: usize) -> Self {
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            block_tokens: block_tokens.max(1),
            blocks: (0..count).map(|_| Block::default()).collect(),
            // Low numbers are handed out first.
            free: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            found_by: HashMap::new(),
            clock: 0,
        }
    }

    pub(super) fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    pub(super) fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody holds: those with content can be had, too.
    pub(super) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Takes `count` blocks with nothing in them.
    ///
    /// # Errors
    /// Too few blocks; then nothing was taken.
    pub(super) fn take(&mut self, count: usize, into: &mut Vec<u32>) -> Result<(), KvError> {
        let free = self.available();
        if count > free {
            return Err(KvError::Exhausted {
                needed: count,
                free,
            });
        }
        for _ in 0..count {
            let Some(id) = self.free.pop().or_else(|| self.forget_oldest()) else {
                break;
            };
            if let Some(block) = self.blocks.get_mut(id as usize) {
                block.holders = 1;
            }
            into.push(id);
        }
        Ok(())
    }

    /// Takes away what the block that was let go longest ago knows.
    fn forget_oldest(&mut self) -> Option<u32> {
        let (_, id) = self.idle.pop_first()?;
        let published = self.blocks.get_mut(id as usize)?.published.take();
        if let Some(published) = published {
            self.found_by.remove(&published.key);
        }
        Some(id)
    }

    fn hold(&mut self, id: u32) {
        if let Some(block) = self.blocks.get_mut(id as usize) {
            if block.holders == 0 {
                self.idle.remove(&block.let_go);
            }
            block.holders += 1;
        }
    }

    /// Lets a block go.
    pub(super) fn release(&mut self, id: u32) {
        let Some(block) = self.blocks.get_mut(id as usize) else {
            return;
        };
        block.holders = block.holders.saturating_sub(1);
        if block.holders > 0 {
            return;
        }
        if block.published.is_none() {
            self.free.push(id);
            return;
        }
        self.clock += 1;
        block.let_go = self.clock;
        self.idle.insert(self.clock, id);
    }

    fn number(&self, id: u32) -> Option<u64> {
        let published = self.blocks.get(id as usize)?.published.as_ref()?;
        Some(published.number)
    }

    /// Holds the published blocks that `tokens` begins with. They are added to `into`; what comes after
    /// the last of them is returned.
    pub(super) fn adopt(&mut self, owner: &Owner, tokens: &[u32], into: &mut Vec<u32>) -> Parent {
        let mut parent = Parent::Start(owner.clone());
        for part in tokens.chunks_exact(self.block_tokens) {
            let key = Key {
                parent: parent.clone(),
                tokens: part.into(),
            };
            let found = self.found_by.get(&key).copied();
            let Some((id, number)) = found.and_then(|id| Some((id, self.number(id)?))) else {
                break;
            };
            self.hold(id);
            into.push(id);
            parent = Parent::Block(number);
        }
        parent
    }

    /// Publishes a block that its only holder has filled with `tokens`; returns the block to hold in its place,
    /// which is another one where these tokens are known already, and what comes after it.
    pub(super) fn publish(&mut self, id: u32, parent: Parent, tokens: &[u32]) -> (u32, Parent) {
        let key = Key {
            parent,
            tokens: tokens.into(),
        };
        let known = self.found_by.get(&key).copied();
        if let Some((known, number)) = known.and_then(|known| Some((known, self.number(known)?))) {
            // Two sequences computed the same: one copy is enough.
            self.hold(known);
            self.release(id);
            return (known, Parent::Block(number));
        }
        self.clock += 1;
        let number = self.clock;
        if let Some(block) = self.blocks.get_mut(id as usize) {
            block.published = Some(Published {
                key: key.clone(),
                number,
            });
        }
        self.found_by.insert(key, id);
        (id, Parent::Block(number))
    }
}

#[cfg(test)]
impl Ledger {
    /// Fails where the ledger contradicts itself or what `held` (blocks of each sequence) says.
    pub(super) fn check(&self, held: &[Vec<u32>]) {
        use std::collections::BTreeSet;
        let free: BTreeSet<u32> = self.free.iter().copied().collect();
        let idle: BTreeSet<u32> = self.idle.values().copied().collect();
        assert_eq!((free.len(), idle.len()), (self.free.len(), self.idle.len()));
        let numbers: BTreeSet<u64> = self
            .blocks
            .iter()
            .filter_map(|block| Some(block.published.as_ref()?.number))
            .collect();
        for (id, block) in (0_u32..).zip(&self.blocks) {
            let holders = held.iter().flatten().filter(|held| **held == id).count();
            assert_eq!(block.holders as usize, holders, "block {id}");
            let expected = (holders == 0).then_some(block.published.is_some());
            assert_eq!(free.contains(&id), expected == Some(false), "block {id}");
            assert_eq!(idle.contains(&id), expected == Some(true), "block {id}");
            if let Some(published) = &block.published {
                assert_eq!(self.found_by.get(&published.key), Some(&id));
                if let Parent::Block(parent) = published.key.parent {
                    assert!(numbers.contains(&parent), "block {id} can't be found");
                }
            }
        }
        assert_eq!(self.found_by.len(), numbers.len());
    }
}
