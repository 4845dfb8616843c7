//! How long a program has been at work on this machine, less what others took of its processors meanwhile.

use std::path::Path;
use std::time::{Duration, Instant};

/// What Linux counts processor time in, on every machine that we know.
const TICKS_A_SECOND: f64 = 100.0;

/// Processor time until one moment, as /proc counts it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Instant,
    cores: u64,
    /// Ticks in which the machine's processors were not idle.
    busy: u64,
    /// Those of the program.
    own: u64,
}

impl Moment {
    /// This one; none where no process of that name runs on this machine.
    pub fn now(program: &str) -> Option<Self> {
        let (cores, busy) = of_the_machine(&read(Path::new("/proc/stat")))?;
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        let own = processes
            .map(|process| process.path())
            .filter(|folder| read(&folder.join("comm")).trim() == program)
            .filter_map(|folder| of_a_process(&read(&folder.join("stat"))))
            .reduce(|one, other| one + other)?;
        Some(Self {
            at: Instant::now(),
            cores,
            busy,
            own,
        })
    }

    /// The time since `earlier`, less the part of it for which others would have kept all processors busy.
    pub fn since(&self, earlier: &Self) -> Duration {
        let own = self.own.saturating_sub(earlier.own);
        let others = (self.busy.saturating_sub(earlier.busy)).saturating_sub(own);
        let taken = Duration::from_secs_f64(others as f64 / TICKS_A_SECOND / self.cores as f64);
        (self.at - earlier.at).saturating_sub(taken)
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// How many processors there are, and their busy ticks: all but idle and waiting for a disk, with what a hypervisor
/// took. (proc(5): user, nice, system, idle, iowait, irq, softirq, steal; the guests' are in user and nice.)
fn of_the_machine(stat: &str) -> Option<(u64, u64)> {
    let mut lines = stat.lines();
    let all = lines.next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = all
        .split_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let busy = [0_usize, 1, 2, 5, 6, 7]
        .iter()
        .filter_map(|it| ticks.get(*it));
    let cores = lines.take_while(|line| line.starts_with("cpu")).count() as u64;
    (cores > 0).then_some((cores, busy.sum()))
}

/// Ticks of all threads of a process: fields 14 and 15, of which the second is its name in brackets.
fn of_a_process(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_take_of_the_processors_is_not_counted() {
        let start = Moment {
            at: Instant::now(),
            cores: 2,
            busy: 1000,
            own: 300,
        };
        let after_a_minute = |busy: u64, own: u64| Moment {
            at: start.at + Duration::from_secs(60),
            busy: start.busy + busy,
            own: start.own + own,
            ..start
        };
        let left = |busy, own| after_a_minute(busy, own).since(&start).as_secs_f64();
        // Alone, on both processors or waiting for something.
        assert!((left(12_000, 12_000) - 60.0).abs() < 1e-6);
        assert!((left(0, 0) - 60.0).abs() < 1e-6);
        // Another one beside it, on one of two processors, and on both.
        assert!((left(12_000, 6000) - 30.0).abs() < 1e-6);
        assert!(left(12_000, 0) < 1e-6);
    }

    #[test]
    fn ticks_are_read_as_linux_writes_them() {
        let stat =
            "cpu  10 20 30 4000 500 6 7 8 1 1\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 2 3 4\nintr 1 2\n";
        assert_eq!(of_the_machine(stat), Some((2, 81)));
        assert_eq!(of_the_machine(""), None);
        let process = "41 (a ) name) S 1 41 41 0 -1 4194304 101 0 0 0 250 17 0 0 20 0 1 0 65 3 4";
        assert_eq!(of_a_process(process), Some(267));
        assert_eq!(of_a_process(""), None);
    }

    #[test]
    fn a_program_that_is_not_here_has_no_time() {
        assert!(Moment::now("no such program").is_none());
    }
}
