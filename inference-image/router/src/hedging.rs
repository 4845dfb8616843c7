//! How many requests may be sent to a second engine: where everything is slow, twice as many requests would make it
//! slower.

use std::sync::atomic::{AtomicU32, Ordering};

/// One second attempt for so many requests.
const EACH: u32 = 10;
/// Second attempts that may come at one time.
const BURST: u32 = 10;

/// Second attempts that are left, in parts of [`EACH`].
#[derive(Debug)]
pub struct HedgeBudget(AtomicU32);

impl Default for HedgeBudget {
    fn default() -> Self {
        Self(AtomicU32::new(BURST * EACH))
    }
}

impl HedgeBudget {
    /// A request came.
    pub fn earn(&self) {
        let more = |left: u32| (left < BURST * EACH).then(|| left + 1);
        // Nothing is added to a full one.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Takes one second attempt; false: there is none left.
    pub fn spend(&self) -> bool {
        let less = |left: u32| left.checked_sub(EACH);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_every_tenth_request_may_have_a_second_attempt() {
        let budget = HedgeBudget::default();
        for _ in 0..1000 {
            budget.earn();
        }
        let mut spent = 0;
        while budget.spend() {
            spent += 1;
        }
        assert_eq!(spent, BURST, "what nobody needed is not saved up");
        let mut more = 0;
        for _ in 0..100 {
            budget.earn();
            more += u32::from(budget.spend());
        }
        assert_eq!(more, 10);
    }
}
