//! Where conversations with adapters ran last: that engine still has what they began with in its KV cache.
//!
//! An adapter's requests go to one engine while that has room, and its cache is the right one. An adapter that many ask
//! for at one time runs on several, and there a conversation's next turn is told apart by this alone. It is a help and
//! no promise: what is forgotten costs a prompt that is computed again.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::engine::Engine;

/// So many of the newest conversations are remembered at least, and twice as many at most.
const CONVERSATIONS: usize = 8192;

/// What a conversation with a version is known by: its digest, and how the text begins.
pub fn conversation(digest: &str, beginning: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    digest.hash(&mut hasher);
    beginning.hash(&mut hasher);
    hasher.finish()
}

/// Where each conversation ran last.
#[derive(Debug, Default)]
pub struct Places(Mutex<Generations>);

/// The newer ones become the older ones once they are many enough: nothing has to be sorted by age.
#[derive(Debug, Default)]
struct Generations {
    newer: HashMap<u64, Weak<Engine>>,
    older: HashMap<u64, Weak<Engine>>,
}

impl Places {
    /// The engine on which a conversation ran last, where that is remembered and the engine is still there.
    pub fn find(&self, conversation: u64) -> Option<Arc<Engine>> {
        let generations = self.lock();
        let newer = generations.newer.get(&conversation);
        newer
            .or_else(|| generations.older.get(&conversation))
            .and_then(Weak::upgrade)
    }

    /// It ran there now.
    pub fn note(&self, conversation: u64, engine: &Arc<Engine>) {
        let mut generations = self.lock();
        let is_new = !generations.newer.contains_key(&conversation);
        if is_new && generations.newer.len() >= CONVERSATIONS {
            generations.older = std::mem::take(&mut generations.newer);
        }
        generations
            .newer
            .insert(conversation, Arc::downgrade(engine));
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Registry;

    #[test]
    fn the_newest_conversations_are_remembered_as_long_as_their_engine_is_there() {
        let registry = Registry::default();
        let engine = |port: u16| registry.engine(&format!("10.0.0.1:{port}").parse().unwrap());
        let (one, two) = (engine(1), engine(2));
        let places = Places::default();
        let many = CONVERSATIONS as u64;
        for conversation in 0..2 * many {
            places.note(conversation, &one);
        }
        let is_known = |conversation: u64| places.find(conversation).is_some();
        assert!(is_known(0) && is_known(2 * many - 1));
        places.note(2 * many - 1, &two);
        assert!(is_known(0), "one that is known takes no more room");
        assert!(Arc::ptr_eq(&places.find(2 * many - 1).unwrap(), &two));
        places.note(2 * many, &two);
        assert!(!is_known(0) && is_known(many) && is_known(2 * many));
        drop(one);
        assert!(!is_known(many) && is_known(2 * many));
    }

    #[test]
    fn conversations_are_told_apart_by_their_version_and_their_beginning() {
        assert_eq!(conversation("a", 1), conversation("a", 1));
        assert_ne!(conversation("a", 1), conversation("b", 1));
        assert_ne!(conversation("a", 1), conversation("a", 2));
    }
}
