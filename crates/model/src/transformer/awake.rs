//! Threads that stay awake during a pass.
//!
//! A pass has a few hundred parallel loops of some microseconds each. Between them a thread of the pool finds
//! nothing to do, goes to sleep, and has to be woken by the kernel, which for one row takes as long as the work.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::Yield;

/// Looks for work before a thread lets another one of this machine run.
const LOOKS: usize = 64;
/// Pauses between two looks: they touch the memory of the thread that has the work.
const PAUSES: usize = 32;

/// Says that the pass is over, also where it ends by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Runs `pass` on this thread of a rayon pool, while the others look for parts of it without going to sleep.
/// Outside of a pool it just runs.
pub(super) fn awake<T: Send>(pass: impl FnOnce() -> T + Send) -> T {
    let own = match rayon::current_thread_index() {
        Some(own) if rayon::current_num_threads() > 1 => own,
        _ => return pass(),
    };
    let is_over = AtomicBool::new(false);
    rayon::scope(|scope| {
        // One on each thread. This thread's own comes while it waits for the others, or at the end.
        scope.spawn_broadcast(|_, context| {
            if context.index() != own {
                look_for_work(&is_over);
            }
        });
        let _over = Over(&is_over);
        pass()
    })
}

fn look_for_work(is_over: &AtomicBool) {
    let mut idle = 0;
    while !is_over.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle = 0;
            continue;
        }
        idle += 1;
        if idle % LOOKS == 0 {
            std::thread::yield_now();
        }
        for _ in 0..PAUSES {
            std::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    }

    #[test]
    fn a_pass_runs_once_and_its_loops_are_whole_on_any_number_of_threads() {
        for threads in 1..=4 {
            let pool = pool(threads);
            for _ in 0..50 {
                let sum: u64 = pool.install(|| {
                    awake(|| {
                        let loops = (0..20_u64).map(|_| (0..100_u64).into_par_iter().sum::<u64>());
                        loops.sum()
                    })
                });
                assert_eq!(sum, 20 * 4950, "{threads} threads");
            }
        }
    }

    #[test]
    fn outside_of_a_pool_a_pass_just_runs() {
        let thread = std::thread::current().id();
        assert_eq!(awake(|| std::thread::current().id()), thread);
    }

    #[test]
    fn a_pass_that_panics_leaves_the_threads_free() {
        let pool = pool(3);
        let pass = || pool.install(|| awake(|| panic!("a defect")));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(pass));
        assert!(panicked.is_err());
        let free = pool.broadcast(|context| context.index());
        assert_eq!(free, [0, 1, 2]);
    }
}
