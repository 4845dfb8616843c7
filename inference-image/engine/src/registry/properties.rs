//! Whatever comes in whatever order: a request gets the adapter that it asked for, or an error.

use std::collections::{BTreeMap, BTreeSet};

use graftwork_contract::Digest;
use proptest::prelude::*;

use super::state::*;

/// One thing that happens. Numbers choose among what is there at the time.
#[derive(Debug, Clone)]
enum Step {
    /// A new list: names with the contents of their versions.
    Replace(Vec<Vec<u32>>),
    /// A request for a name's default version, or for one by number.
    Acquire { name: usize, number: Option<u32> },
    /// A look at headers ends.
    HeaderRead { which: usize, outcome: Outcome },
    /// The load that runs ends.
    Loaded(Outcome),
    /// The verification that runs ends.
    Verified(Outcome),
    /// A request ends.
    Released(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Fine,
    Broken { may_pass: bool },
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        5 => Just(Outcome::Fine),
        1 => any::<bool>().prop_map(|may_pass| Outcome::Broken { may_pass }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let contents = prop::collection::vec(0_u32..8, 0..3);
    prop_oneof![
        2 => prop::collection::vec(contents, 0..4).prop_map(Step::Replace),
        5 => (0_usize..4, prop::option::of(1_u32..4))
            .prop_map(|(name, number)| Step::Acquire { name, number }),
        4 => (any::<usize>(), outcome())
            .prop_map(|(which, outcome)| Step::HeaderRead { which, outcome }),
        4 => outcome().prop_map(Step::Loaded),
        2 => outcome().prop_map(Step::Verified),
        4 => any::<usize>().prop_map(Step::Released),
    ]
}

fn name(index: usize) -> String {
    format!("adapter-{index}")
}

/// Each name has folders of its own, of which several may hold the same bytes.
fn source(index: usize, content: u32) -> Source {
    Source {
        digest: Digest::of(&content.to_le_bytes()),
        folder: format!("adapters/{}/{content}", name(index)),
    }
}

/// 1 to 4, by the content.
fn bytes(source: &Source) -> u64 {
    u64::from(source.digest.hex().as_bytes()[0] % 4) + 1
}

/// A list of versions; each name's first is its default.
fn list(contents: &[Vec<u32>]) -> Vec<Version> {
    let versions = |(index, contents): (usize, &Vec<u32>)| {
        let numbered = (1_u32..).zip(contents.clone());
        numbered
            .map(move |(number, content)| Version {
                name: name(index),
                number,
                source: source(index, content),
                is_default: number == 1,
            })
            .collect::<Vec<_>>()
    };
    contents.iter().enumerate().flat_map(versions).collect()
}

/// A registry with the world around it: what is being read and loaded, who waits, who runs.
struct World {
    /// The adapter in memory is the digest of what was loaded.
    registry: Registry<Digest, u64>,
    budget: Budget,
    list: Vec<Version>,
    reading: Vec<Source>,
    loading: Option<Source>,
    verifying: Option<Source>,
    /// What each request that was not answered yet should get.
    waiting: BTreeMap<u64, Version>,
    running: Vec<Digest>,
    requests: u64,
    looks: u128,
}

impl World {
    fn new(budget: Budget) -> Self {
        Self {
            registry: Registry::new(budget),
            budget,
            list: Vec::new(),
            reading: Vec::new(),
            loading: None,
            verifying: None,
            waiting: BTreeMap::new(),
            running: Vec::new(),
            requests: 0,
            looks: 0,
        }
    }

    fn take(&mut self, step: Step) {
        let actions = match step {
            Step::Replace(contents) => {
                self.list = list(&contents);
                self.registry.replace(self.list.clone())
            }
            Step::Acquire {
                name: index,
                number,
            } => {
                let target = match number {
                    None => Target::Default(name(index)),
                    Some(number) => Target::Exactly(name(index), number),
                };
                let wanted = self.list.iter().find(|version| {
                    version.name == name(index)
                        && number.map_or(version.is_default, |number| version.number == number)
                });
                self.requests += 1;
                if let Some(version) = wanted {
                    self.waiting.insert(self.requests, version.clone());
                }
                let is_known = wanted.is_some();
                let mut actions = self.registry.acquire(&target, self.requests);
                if !is_known {
                    let answer = actions
                        .answers
                        .pop()
                        .expect("an unknown name is answered at once");
                    assert_eq!(answer.0, self.requests);
                    assert!(answer.1.is_err(), "nobody gets what is not in the list");
                }
                actions
            }
            Step::HeaderRead { which, outcome } => {
                if self.reading.is_empty() {
                    return;
                }
                let source = self.reading.remove(which % self.reading.len());
                self.looks += 1;
                let header = HeaderRead {
                    fingerprint: vec![(self.looks, 1)],
                    result: result(outcome, bytes(&source)),
                };
                self.registry.on_header(&source, header)
            }
            Step::Loaded(outcome) => {
                let Some(source) = self.loading.take() else {
                    return;
                };
                let adapter = source.digest.clone();
                self.registry.on_loaded(&source, result(outcome, adapter))
            }
            Step::Verified(outcome) => {
                let Some(source) = self.verifying.take() else {
                    return;
                };
                self.registry.on_verified(&source, result(outcome, ()))
            }
            Step::Released(which) => {
                if self.running.is_empty() {
                    return;
                }
                let digest = self.running.remove(which % self.running.len());
                self.registry.on_released(&digest)
            }
        };
        self.perform(actions);
        self.check();
    }

    fn perform(&mut self, actions: Actions<Digest, u64>) {
        self.reading.extend(actions.read);
        if let Some(source) = actions.load {
            assert_eq!(self.loading, None, "one load at a time");
            self.loading = Some(source);
        }
        if let Some(source) = actions.verify {
            assert_eq!(self.verifying, None, "one verification at a time");
            self.verifying = Some(source);
        }
        for (request, answer) in actions.answers {
            let wanted = self.waiting.remove(&request).expect("answered once");
            match answer {
                Ok(grant) => {
                    assert_eq!(grant.version, wanted, "pinned on arrival");
                    assert_eq!(grant.adapter, wanted.source.digest, "the right weights");
                    self.running.push(grant.adapter);
                }
                Err(AcquireError::NotHere { name, version, .. }) => {
                    assert_eq!((name, version), (wanted.name, wanted.number));
                }
                Err(error) => panic!("{wanted:?} was in the list: {error}"),
            }
        }
    }

    fn check(&self) {
        let resident = self.registry.resident();
        let leased: BTreeSet<&Digest> = self.running.iter().collect();
        assert!(
            resident <= self.budget.adapters,
            "{resident} adapters in memory"
        );
        let bytes = self.registry.resident_bytes();
        assert!(bytes <= self.budget.bytes, "{bytes} bytes in memory");
        assert!(resident >= leased.len(), "weights went under a request");
        let mut standings = self.registry.standings();
        assert!(
            !self.registry.all_read()
                || standings.all(|(_, standing)| standing != Standing::Unread),
            "a file of the list was not looked at"
        );
    }

    /// Everything that was begun ends well, until nothing is left to do.
    fn settle(&mut self) {
        while !self.reading.is_empty()
            || self.loading.is_some()
            || self.verifying.is_some()
            || !self.running.is_empty()
        {
            self.take(Step::HeaderRead {
                which: 0,
                outcome: Outcome::Fine,
            });
            self.take(Step::Loaded(Outcome::Fine));
            self.take(Step::Verified(Outcome::Fine));
            self.take(Step::Released(0));
        }
    }
}

fn result<T>(outcome: Outcome, fine: T) -> Result<T, Refusal> {
    match outcome {
        Outcome::Fine => Ok(fine),
        Outcome::Broken { may_pass } => Err(Refusal {
            reason: "AdapterFilesInvalid",
            message: "broken".to_owned(),
            may_pass,
        }),
    }
}

proptest! {
    #[test]
    fn every_request_gets_what_its_name_meant_on_arrival_or_an_error(
        adapters in 1_usize..4,
        memory in 3_u64..10,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(Budget { adapters, bytes: memory });
        for step in steps {
            world.take(step);
        }
        world.settle();
        prop_assert!(world.registry.all_read(), "a list is answered in the end");
        prop_assert!(world.waiting.is_empty(), "nobody waits for ever: {:?}", world.waiting);
        // With nobody left, nothing stays that the list does not name.
        world.take(Step::Replace(vec![]));
        world.settle();
        prop_assert_eq!(world.registry.resident(), 0);
    }
}
