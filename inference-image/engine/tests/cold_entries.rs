//! What a registered adapter costs while nobody asks for it. Alone in its process: memory is counted.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use engine::registry::state::{Budget, HeaderRead, Registry, Source, Standing, Version};
use graftwork_contract::{Digest, paths};

const ENTRIES: u32 = 10_000;
const LIMIT: usize = 4096;

/// Bytes of this process in memory.
fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.unwrap().trim().parse::<usize>().unwrap() * 1024
}

#[test]
fn ten_thousand_registered_adapters_take_at_most_four_kilobytes_each() {
    let before = resident_bytes();
    let mut registry: Registry<u32, ()> = Registry::new(Budget {
        adapters: 8,
        bytes: u64::MAX,
    });
    let versions = (0..ENTRIES).map(|n| {
        // As long as names are in a cluster.
        let name = format!(
            "team-{:03}-adapter-with-a-name-as-people-give-them-{n:05}",
            n % 100
        );
        let digest = Digest::of(&n.to_le_bytes());
        Version {
            source: Source {
                folder: paths::adapter(&name, &digest),
                digest,
            },
            name,
            number: 1,
            is_default: true,
        }
    });
    let (mut load, mut verify) = (None, None);
    for source in registry.replace(versions.collect()).read {
        let header = HeaderRead {
            fingerprint: vec![(1, 1); 3],
            result: Ok(1 << 20),
        };
        let actions = registry.on_header(&source, header);
        (load, verify) = (load.or(actions.load), verify.or(actions.verify));
    }
    while load.is_some() || verify.is_some() {
        if let Some(source) = load.take() {
            let actions = registry.on_loaded(&source, Ok(0));
            (load, verify) = (actions.load, verify.or(actions.verify));
        } else if let Some(source) = verify.take() {
            let actions = registry.on_verified(&source, Ok(()));
            (load, verify) = (actions.load, actions.verify);
        }
    }
    let cold = |standing: &Standing| matches!(standing, Standing::Verified);
    let count = registry.standings().filter(|(_, s)| cold(s)).count();
    assert_eq!(count, ENTRIES as usize - 8);
    let each = resident_bytes().saturating_sub(before) / ENTRIES as usize;
    assert!(each <= LIMIT, "{each} bytes for each of {ENTRIES}");
}
