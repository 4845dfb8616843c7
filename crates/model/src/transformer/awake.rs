//! Threads that stay awake during a pass.
//!
//! A pass has a few hundred parallel loops of some microseconds each. Between them a thread of the pool finds
//! nothing to do, goes to sleep, and has to be woken by the kernel, which for one row takes as long as the work.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::Yield;

/// Looks for work, or for the others, before a thread lets another one of this machine run.
const LOOKS: usize = 64;
/// Pauses between two looks: they touch the memory of the thread that has the work.
const PAUSES: usize = 32;
/// Looks for the others before a pass begins without them: longer than it takes to wake one up.
const PATIENCE: usize = 128;

/// What a pass and the threads that stay awake for it know of each other.
///
/// Nobody begins to look for work once the pass has begun. A thread that has already taken a part of the pass may come
/// to this in the midst of it, while it waits for a part of that part; it would look until the pass is over, and the
/// pass would wait for what lies below on its stack.
#[derive(Debug, Default)]
struct Pass {
    here: AtomicUsize,
    has_begun: AtomicBool,
    is_over: AtomicBool,
}

impl Pass {
    /// Waits for `others` threads, but not for those that something else keeps.
    fn begin(&self, others: usize) {
        let mut looks = 0;
        while self.here.load(Ordering::Acquire) < others && looks < PATIENCE {
            looks += 1;
            pause(looks);
        }
        self.has_begun.store(true, Ordering::Release);
    }

    fn look_for_work(&self) {
        if self.has_begun.load(Ordering::Acquire) {
            return;
        }
        self.here.fetch_add(1, Ordering::AcqRel);
        let mut idle = 0;
        while !self.is_over.load(Ordering::Acquire) {
            if rayon::yield_now() == Some(Yield::Executed) {
                idle = 0;
                continue;
            }
            idle += 1;
            pause(idle);
        }
    }
}

fn pause(looks: usize) {
    if looks.is_multiple_of(LOOKS) {
        std::thread::yield_now();
    }
    for _ in 0..PAUSES {
        std::hint::spin_loop();
    }
}

/// Says that the pass is over, also where it ends by a panic.
struct Over<'a>(&'a Pass);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// Runs `run` on this thread of a rayon pool, while the others look for parts of it without going to sleep.
/// Outside of a pool it just runs.
pub(super) fn awake<T>(run: impl FnOnce() -> T) -> T {
    let threads = rayon::current_num_threads();
    let own = match rayon::current_thread_index() {
        Some(own) if threads > 1 => own,
        _ => return run(),
    };
    let pass = Arc::new(Pass::default());
    let others = Arc::clone(&pass);
    // One on each thread; this thread's own has nothing to do.
    rayon::spawn_broadcast(move |context| {
        if context.index() != own {
            others.look_for_work();
        }
    });
    let _over = Over(&pass);
    pass.begin(threads - 1);
    run()
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
    fn who_comes_after_the_pass_has_begun_does_not_stay_for_it() {
        let pass = Arc::new(Pass::default());
        pass.begin(1);
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            pass.look_for_work();
            done.send(pass.here.load(Ordering::Acquire))
        });
        let here = is_done.recv_timeout(std::time::Duration::from_secs(20));
        assert_eq!(here, Ok(0));
    }

    #[test]
    fn many_short_passes_come_to_their_end() {
        let pool = pool(2);
        for _ in 0..20_000 {
            let parts = pool.install(|| {
                awake(|| {
                    (0..8_u32)
                        .into_par_iter()
                        .with_max_len(1)
                        .map(|_| 1_u32)
                        .sum::<u32>()
                })
            });
            assert_eq!(parts, 8);
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
