//! The rules of the registry, with numbers as adapters and as callers.

use graftwork_contract::Digest;

use super::state::*;

type Machine = Registry<u32, u32>;

fn version(name: &str, number: u32, content: u32) -> Version {
    Version {
        name: name.into(),
        number,
        source: source(content),
        is_default: number == 1,
    }
}

fn source(content: u32) -> Source {
    Source {
        digest: Digest::of(&content.to_le_bytes()),
        folder: format!("adapters/{content}"),
    }
}

fn machine(adapters: usize, bytes: u64) -> Machine {
    Machine::new(Budget { adapters, bytes })
}

fn fine() -> HeaderRead {
    HeaderRead {
        fingerprint: vec![(1, 1)],
        result: Ok(10),
    }
}

fn broken(time: u128, may_pass: bool) -> HeaderRead {
    HeaderRead {
        fingerprint: vec![(time, 1)],
        result: Err(refusal("broken", may_pass)),
    }
}

fn refusal(message: &str, may_pass: bool) -> Refusal {
    Refusal {
        reason: "AdapterFilesInvalid",
        message: message.into(),
        may_pass,
    }
}

/// Callers that were answered, with the adapter's number.
fn granted(actions: &Actions<u32, u32>) -> Vec<(u32, u32)> {
    actions
        .answers
        .iter()
        .map(|(waiter, answer)| (*waiter, answer.as_ref().unwrap().adapter))
        .collect()
}

/// What is being loaded and verified.
#[derive(Default)]
struct Begun {
    load: Option<Source>,
    verify: Option<Source>,
    /// All that was begun so far.
    order: Vec<u32>,
}

impl Begun {
    fn take(&mut self, actions: Actions<u32, u32>) {
        let begun = actions.load.iter().chain(&actions.verify);
        self.order.extend(begun.map(number));
        self.load = self.load.take().or(actions.load);
        self.verify = self.verify.take().or(actions.verify);
    }

    /// Ends it well, and what follows, until nothing is left to do.
    fn settle(&mut self, registry: &mut Machine) {
        loop {
            let actions = if let Some(source) = self.load.take() {
                registry.on_loaded(&source, Ok(number(&source)))
            } else if let Some(source) = self.verify.take() {
                registry.on_verified(&source, Ok(()))
            } else {
                return;
            };
            self.take(actions);
        }
    }
}

/// A registry in which all of `versions` were read, verified in order, and loaded up to the limit.
fn settled(limit: usize, versions: &[Version]) -> Machine {
    let mut registry = machine(limit, 1000);
    let actions = registry.replace(versions.to_vec());
    let mut begun = Begun::default();
    for source in &actions.read {
        begun.take(registry.on_header(source, fine()));
    }
    begun.settle(&mut registry);
    registry
}

fn number(source: &Source) -> u32 {
    source.folder.rsplit('/').next().unwrap().parse().unwrap()
}

fn standings(registry: &Machine) -> Vec<Standing> {
    registry.standings().map(|(_, standing)| standing).collect()
}

fn exactly(name: &str, number: u32) -> Target {
    Target::Exactly(name.into(), number)
}

#[test]
fn a_version_goes_from_unread_over_registered_to_resident() {
    let mut registry = machine(2, 1000);
    let actions = registry.replace(vec![version("a", 1, 10)]);
    assert_eq!(actions.read, [source(10)]);
    assert_eq!(
        (standings(&registry), registry.all_read()),
        (vec![Standing::Unread], false)
    );
    let actions = registry.on_header(&source(10), fine());
    assert_eq!(
        actions.load,
        Some(source(10)),
        "it is verified in the background"
    );
    assert_eq!(
        (standings(&registry), registry.all_read()),
        (vec![Standing::Registered], true)
    );
    registry.on_loaded(&source(10), Ok(10));
    assert_eq!(standings(&registry), [Standing::Resident]);
}

#[test]
fn everything_is_verified_but_only_so_many_stay_in_memory() {
    let versions: Vec<_> = (1..=4).map(|n| version("a", n, n)).collect();
    let registry = settled(2, &versions);
    assert_eq!(
        standings(&registry),
        [
            Standing::Resident,
            Standing::Resident,
            Standing::Verified,
            Standing::Verified
        ]
    );
}

#[test]
fn a_name_alone_means_its_default_version() {
    let mut registry = settled(4, &[version("a", 2, 20), version("a", 1, 10)]);
    let answer = registry.acquire(&Target::Default("a".into()), 7);
    assert_eq!(granted(&answer), [(7, 10)]);
    let answer = registry.acquire(&exactly("a", 2), 8);
    assert_eq!(granted(&answer), [(8, 20)]);
}

#[test]
fn unknown_names_and_versions_are_told_apart() {
    let mut registry = settled(4, &[version("a", 1, 10)]);
    let error = |target: &Target, registry: &mut Machine| {
        registry.acquire(target, 1).answers.remove(0).1.unwrap_err()
    };
    assert_eq!(
        error(&Target::Default("b".into()), &mut registry),
        AcquireError::UnknownName("b".into())
    );
    assert!(matches!(
        error(&exactly("a", 2), &mut registry),
        AcquireError::NotHere { version: 2, .. }
    ));
}

#[test]
fn a_request_for_a_version_that_is_not_loaded_waits_and_the_oldest_idle_one_goes() {
    let versions: Vec<_> = (1..=3).map(|n| version("a", n, n)).collect();
    let mut registry = settled(2, &versions);
    granted(&registry.acquire(&exactly("a", 1), 1));
    registry.on_released(&source(1).digest);
    let actions = registry.acquire(&exactly("a", 3), 2);
    assert_eq!((actions.answers.len(), actions.load), (0, Some(source(3))));
    let actions = registry.on_loaded(&source(3), Ok(3));
    assert_eq!(granted(&actions), [(2, 3)]);
    assert_eq!(
        standings(&registry),
        [Standing::Resident, Standing::Verified, Standing::Resident],
        "version 2 was used longest ago"
    );
}

#[test]
fn a_leased_adapter_is_never_thrown_out_and_its_end_lets_the_next_one_in() {
    let mut registry = settled(1, &[version("a", 1, 1), version("a", 2, 2)]);
    assert_eq!(granted(&registry.acquire(&exactly("a", 1), 1)), [(1, 1)]);
    let actions = registry.acquire(&exactly("a", 2), 2);
    assert!(actions.answers.is_empty() && actions.load.is_none());
    assert_eq!(
        granted(&registry.acquire(&exactly("a", 1), 3)),
        [(3, 1)],
        "who needs what is in memory does not wait"
    );
    assert!(registry.on_released(&source(1).digest).load.is_none());
    assert_eq!(
        registry.on_released(&source(1).digest).load,
        Some(source(2))
    );
    assert_eq!(granted(&registry.on_loaded(&source(2), Ok(2))), [(2, 2)]);
}

#[test]
fn several_requests_share_one_load() {
    let mut registry = settled(1, &[version("a", 1, 1), version("a", 2, 2)]);
    assert_eq!(registry.acquire(&exactly("a", 2), 1).load, Some(source(2)));
    assert!(registry.acquire(&exactly("a", 2), 2).load.is_none());
    assert_eq!(
        granted(&registry.on_loaded(&source(2), Ok(2))),
        [(1, 2), (2, 2)]
    );
}

#[test]
fn a_request_comes_before_background_verification() {
    let mut registry = machine(4, 1000);
    let versions: Vec<_> = (1..=3).map(|n| version("a", n, n)).collect();
    for source in registry.replace(versions).read {
        registry.on_header(&source, fine());
    }
    registry.acquire(&exactly("a", 3), 1);
    let actions = registry.on_loaded(&source(1), Ok(1));
    assert_eq!(actions.load, Some(source(3)));
}

#[test]
fn a_version_that_left_the_list_stays_until_its_last_request_ends() {
    let mut registry = settled(2, &[version("a", 1, 1)]);
    granted(&registry.acquire(&exactly("a", 1), 1));
    registry.replace(vec![]);
    assert_eq!(registry.resident(), 1);
    registry.on_released(&source(1).digest);
    assert_eq!(registry.resident(), 0);
}

#[test]
fn an_idle_version_that_left_the_list_is_freed_at_once() {
    let mut registry = settled(2, &[version("a", 1, 1), version("b", 1, 2)]);
    registry.replace(vec![version("b", 1, 2)]);
    assert_eq!(registry.resident(), 1);
}

#[test]
fn a_request_that_waits_gets_its_version_even_if_the_list_changes_meanwhile() {
    let mut registry = machine(2, 1000);
    registry.replace(vec![version("a", 1, 1)]);
    registry.on_header(&source(1), fine());
    registry.acquire(&exactly("a", 1), 5);
    registry.replace(vec![]);
    assert_eq!(granted(&registry.on_loaded(&source(1), Ok(1))), [(5, 1)]);
    registry.on_released(&source(1).digest);
    assert_eq!(registry.resident(), 0);
}

#[test]
fn a_refused_version_answers_its_requests_with_the_reason_and_harms_no_other() {
    let mut registry = machine(2, 1000);
    registry.replace(vec![version("a", 1, 1), version("b", 1, 2)]);
    registry.acquire(&exactly("a", 1), 5);
    let actions = registry.on_header(&source(1), broken(1, false));
    let error = actions.answers[0].1.as_ref().unwrap_err();
    assert!(error.to_string().contains("broken"), "{error}");
    registry.on_header(&source(2), fine());
    registry.on_loaded(&source(2), Err(refusal("not finite", false)));
    assert!(registry.all_read());
    assert!(
        standings(&registry)
            .iter()
            .all(|standing| matches!(standing, Standing::Refused(_)))
    );
}

#[test]
fn refused_files_are_looked_at_again_with_every_list_and_count_once_they_changed() {
    let list = vec![version("a", 1, 1)];
    let mut registry = machine(2, 1000);
    registry.replace(list.clone());
    registry.on_header(&source(1), fine());
    registry.on_loaded(&source(1), Err(refusal("digest", false)));
    assert!(registry.may_pass().is_empty());
    assert_eq!(registry.replace(list.clone()).read, [source(1)]);
    assert!(
        registry.on_header(&source(1), fine()).load.is_none(),
        "the same files are not read whole again"
    );
    registry.replace(list);
    let changed = HeaderRead {
        fingerprint: vec![(2, 1)],
        result: Ok(10),
    };
    assert_eq!(
        registry.on_header(&source(1), changed).load,
        Some(source(1))
    );
}

#[test]
fn a_storage_that_did_not_answer_is_asked_again() {
    let list = vec![version("a", 1, 1)];
    let mut registry = machine(2, 1000);
    registry.replace(list);
    registry.on_header(&source(1), broken(1, true));
    assert_eq!(registry.may_pass(), [source(1)], "without a new list");
    let again = HeaderRead {
        fingerprint: vec![(1, 1)],
        result: Ok(10),
    };
    assert_eq!(registry.on_header(&source(1), again).load, Some(source(1)));
}

#[test]
fn two_names_with_the_same_content_share_its_memory() {
    let mut registry = settled(4, &[version("a", 1, 1), version("b", 1, 1)]);
    assert_eq!(registry.resident(), 1);
    assert_eq!(granted(&registry.acquire(&exactly("a", 1), 1)), [(1, 1)]);
    assert_eq!(granted(&registry.acquire(&exactly("b", 1), 2)), [(2, 1)]);
}

#[test]
fn an_unchanged_list_starts_no_work() {
    let list = vec![version("a", 1, 1), version("a", 2, 2)];
    let mut registry = settled(4, &list);
    let actions = registry.replace(list);
    assert!(actions.read.is_empty() && actions.load.is_none() && actions.verify.is_none());
}

/// A registry with room for one adapter, in which version 2 is being verified in the background.
fn verifying() -> Machine {
    let mut registry = machine(1, 1000);
    let versions: Vec<_> = (1..=3).map(|n| version("a", n, n)).collect();
    for source in registry.replace(versions).read {
        registry.on_header(&source, fine());
    }
    let actions = registry.on_loaded(&source(1), Ok(1));
    assert_eq!((actions.load, actions.verify), (None, Some(source(2))));
    registry
}

#[test]
fn what_memory_has_no_room_for_is_verified_without_being_loaded() {
    let mut registry = verifying();
    let actions = registry.on_verified(&source(2), Ok(()));
    assert_eq!((actions.load, actions.verify), (None, Some(source(3))));
    registry.on_verified(&source(3), Err(refusal("not finite", false)));
    let expected = [
        Standing::Resident,
        Standing::Verified,
        Standing::Refused(refusal("not finite", false)),
    ];
    assert_eq!(standings(&registry), expected);
}

#[test]
fn a_request_does_not_wait_for_a_verification() {
    let mut registry = verifying();
    let actions = registry.acquire(&exactly("a", 3), 7);
    assert_eq!((actions.load, actions.verify), (Some(source(3)), None));
    let actions = registry.acquire(&exactly("a", 2), 8);
    assert!(actions.load.is_none(), "one load at a time");
    assert_eq!(granted(&registry.on_loaded(&source(3), Ok(3))), [(7, 3)]);
    let actions = registry.on_released(&source(3).digest);
    assert_eq!(
        actions.load,
        Some(source(2)),
        "not even for that of the version that it wants"
    );
    assert_eq!(granted(&registry.on_loaded(&source(2), Ok(2))), [(8, 2)]);
    registry.on_verified(&source(2), Ok(()));
    let expected = [Standing::Verified, Standing::Resident, Standing::Verified];
    assert_eq!(standings(&registry), expected);
}

/// As [`settled`], with what each adapter takes in memory.
fn settled_with(bytes: u64, sizes: &[(u32, u64)]) -> Machine {
    let mut registry = machine(10, bytes);
    let versions: Vec<Version> = sizes.iter().map(|(n, _)| version("a", *n, *n)).collect();
    registry.replace(versions);
    let mut begun = Begun::default();
    for (number, bytes) in sizes {
        let header = HeaderRead {
            fingerprint: vec![(1, 1)],
            result: Ok(*bytes),
        };
        begun.take(registry.on_header(&source(*number), header));
    }
    begun.settle(&mut registry);
    registry
}

#[test]
fn adapters_in_memory_take_no_more_bytes_than_they_may() {
    let mut registry = settled_with(100, &[(1, 60), (2, 30), (3, 70)]);
    assert_eq!((registry.resident(), registry.resident_bytes()), (2, 90));
    assert_eq!(
        registry.acquire(&exactly("a", 3), 1).load,
        Some(source(3)),
        "room is made before it is loaded"
    );
    assert_eq!(
        registry.resident_bytes(),
        30,
        "the older one was enough: 30 + 70 fit"
    );
    assert_eq!(granted(&registry.on_loaded(&source(3), Ok(3))), [(1, 3)]);
    assert_eq!(registry.resident_bytes(), 100);
}

#[test]
fn nobody_is_thrown_out_where_it_would_not_be_enough() {
    let mut registry = settled_with(100, &[(1, 50), (2, 50), (3, 60)]);
    assert_eq!(granted(&registry.acquire(&exactly("a", 1), 1)), [(1, 1)]);
    assert!(registry.acquire(&exactly("a", 3), 2).load.is_none());
    assert_eq!(
        registry.resident(),
        2,
        "version 2 stays: 50 + 60 do not fit"
    );
    assert_eq!(
        registry.on_released(&source(1).digest).load,
        Some(source(3))
    );
}

#[test]
fn an_adapter_that_could_never_be_loaded_is_refused_with_its_size() {
    let registry = settled_with(100, &[(1, 101), (2, 100)]);
    let standings = standings(&registry);
    let Standing::Refused(refusal) = &standings[0] else {
        panic!("not refused");
    };
    assert_eq!(
        refusal.message,
        "the adapter takes 101 bytes in memory, the engine has 100 for adapters; raise \
         spec.engine.adapterMemory or lower the adapter's rank"
    );
    assert_eq!(standings[1], Standing::Resident);
}

#[test]
fn what_a_list_adds_is_verified_before_what_was_there() {
    let mut versions: Vec<Version> = (0..100_u32)
        .map(|n| version(&format!("adapter-{n}"), 1, n))
        .collect();
    let mut registry = machine(0, 1000);
    let mut begun = Begun::default();
    for source in &registry.replace(versions.clone()).read {
        begun.take(registry.on_header(source, fine()));
    }
    versions.push(version("newer", 1, 200));
    begun.take(registry.replace(versions));
    begun.take(registry.on_header(&source(200), fine()));
    begun.settle(&mut registry);
    assert_eq!(begun.order.len(), 101);
    assert_eq!(begun.order[..2], [0, 200], "the first had begun");
}

#[test]
fn of_ten_thousand_versions_each_is_verified_once_defaults_last() {
    let versions: Vec<Version> = (0..10_000_u32)
        .map(|n| version(&format!("adapter-{}", n / 2), 2 - n % 2, n))
        .collect();
    let mut registry = machine(4, 1000);
    let read = registry.replace(versions.clone()).read;
    assert_eq!(read.len(), 10_000);
    let mut begun = Begun::default();
    for source in &read {
        begun.take(registry.on_header(source, fine()));
    }
    begun.settle(&mut registry);
    let order = begun.order;
    assert_eq!(order.len(), 10_000);
    // The first was there alone when it was picked.
    let others = order[1..].iter().take_while(|n| *n % 2 == 0).count();
    assert_eq!(others, 4_999);
    let found = registry.find(&Target::Default("adapter-4321".into()));
    assert_eq!(found.unwrap(), versions[8643]);
}
