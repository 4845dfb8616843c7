//! How much of the container's memory, or of the GPU's, a training may keep activations in.

use graftwork_model::transformer::Accelerator;

/// What the container may hold, in bytes, or `max` (cgroup v2).
const LIMIT_FILE: &str = "/sys/fs/cgroup/memory.max";
/// What this process holds (`proc_pid_status(5)`).
const STATUS_FILE: &str = "/proc/self/status";

/// Bytes for activations, to be asked once the base model and the rows are there: half of what the
/// container has left. The other half is for the optimiser, one layer's gradients, and a checkpoint on its
/// way out. Without a limit there is none for activations either. On a GPU it is half of what its memory has
/// left; the other half is for logits and for what one layer's pass needs.
pub fn activation_bytes(accelerator: Option<&Accelerator>) -> usize {
    if let Some(free) = accelerator.and_then(Accelerator::free_bytes) {
        return free / 2;
    }
    let read = |file| std::fs::read_to_string(file).ok();
    half_of_the_rest(read(LIMIT_FILE).as_deref(), read(STATUS_FILE).as_deref())
}

fn half_of_the_rest(limit: Option<&str>, status: Option<&str>) -> usize {
    let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
    let Some(limit) = limit else {
        return usize::MAX;
    };
    let held = status.and_then(resident_bytes).unwrap_or_default();
    usize::try_from(limit.saturating_sub(held) / 2).unwrap_or(usize::MAX)
}

/// `VmRSS` of a status file, which is in KiB.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
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
        assert_eq!(half_of_the_rest(limit, Some(STATUS)), left / 2);
        assert_eq!(half_of_the_rest(limit, Some("Name: x")), 5_120_000);
        assert_eq!(half_of_the_rest(Some("1000000"), Some(STATUS)), 0);
    }

    #[test]
    fn without_a_limit_all_are_kept() {
        assert_eq!(half_of_the_rest(Some("max\n"), Some(STATUS)), usize::MAX);
        assert_eq!(half_of_the_rest(None, Some(STATUS)), usize::MAX);
    }

    #[test]
    fn this_process_holds_something() {
        let status = std::fs::read_to_string(STATUS_FILE).unwrap();
        assert!(resident_bytes(&status).unwrap() > 1 << 20);
    }
}
