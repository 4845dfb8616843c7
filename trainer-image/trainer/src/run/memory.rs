//! How much of the container's memory, or of the GPU's, a training may keep activations in.

use graftwork_model::transformer::Accelerator;

/// What the container may hold, in bytes: or `max` (cgroup v2), or more than there is (cgroup v1).
const LIMIT_FILES: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];
/// What this process holds (`proc_pid_status(5)`).
const STATUS_FILE: &str = "/proc/self/status";
/// What the machine has left (`proc_meminfo(5)`).
const MACHINE_FILE: &str = "/proc/meminfo";

/// Bytes for activations, to be asked once the base model and the rows are there: half of what the
/// container has left. The other half is for the optimiser, one layer's gradients, and a checkpoint on its
/// way out. A container without a limit, or with one that the machine can't keep, has left what the machine has.
/// On a GPU it is half of what its memory has left; the other half is for logits and for what one layer's pass
/// needs.
pub fn activation_bytes(accelerator: Option<&Accelerator>) -> usize {
    if let Some(free) = accelerator.and_then(Accelerator::free_bytes) {
        return free / 2;
    }
    let read = |file| std::fs::read_to_string(file).ok();
    half_of_the_rest(
        LIMIT_FILES.into_iter().find_map(read).as_deref(),
        read(STATUS_FILE).as_deref(),
        read(MACHINE_FILE).as_deref(),
    )
}

fn half_of_the_rest(limit: Option<&str>, status: Option<&str>, machine: Option<&str>) -> usize {
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    let held = status.and_then(|text| bytes_of(text, "VmRSS:"));
    let of_container = limit.map(|limit| limit.saturating_sub(held.unwrap_or_default()));
    let of_machine = machine.and_then(|text| bytes_of(text, "MemAvailable:"));
    let rest = of_container.into_iter().chain(of_machine).min();
    rest.and_then(|rest| usize::try_from(rest / 2).ok())
        .unwrap_or(usize::MAX)
}

/// A figure of the kernel's, which is in KiB.
fn bytes_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib = line.split_whitespace().next()?.parse::<u64>().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\ttrainer\nVmHWM:\t  9000 kB\nVmRSS:\t    2000 kB\nThreads:\t3\n";

    #[test]
    fn activations_get_half_of_what_is_left() {
        let limit = Some("10240000\n");
        let left = 10_240_000 - 2000 * 1024;
        assert_eq!(half_of_the_rest(limit, Some(STATUS), None), left / 2);
        assert_eq!(half_of_the_rest(limit, Some("Name: x"), None), 5_120_000);
        assert_eq!(half_of_the_rest(Some("1000000"), Some(STATUS), None), 0);
    }

    #[test]
    fn without_a_limit_or_under_one_that_is_too_large_the_machine_says_what_is_left() {
        let machine = Some("MemTotal:  9000 kB\nMemAvailable:    6000 kB\n");
        let half = 3000 * 1024;
        for limit in [Some("max\n"), None, Some("9223372036854771712\n")] {
            assert_eq!(half_of_the_rest(limit, Some(STATUS), machine), half);
        }
        let less = half_of_the_rest(Some("5120000"), Some(STATUS), machine);
        assert_eq!(less, (5_120_000 - 2000 * 1024) / 2);
        let nobody_says = half_of_the_rest(None, Some(STATUS), Some("MemTotal: 9000 kB"));
        assert_eq!(nobody_says, usize::MAX);
    }

    #[test]
    fn this_process_holds_something() {
        let status = std::fs::read_to_string(STATUS_FILE).unwrap();
        assert!(bytes_of(&status, "VmRSS:").unwrap() > 1 << 20);
        let machine = std::fs::read_to_string(MACHINE_FILE).unwrap();
        assert!(bytes_of(&machine, "MemAvailable:").unwrap() > 1 << 20);
    }
}
