//! Sources on the network: objects of stores, files of web servers and of hubs. What differs between them is
//! behind [`Shelf`]; their bytes are read like a volume's.
//!
//! Nothing is connected to but addresses that the installation allows, on every redirect anew. No answer is
//! held whole. What was listed is read in the state in which it was listed, or not at all.

mod analyzer;
mod body;
mod hub;
mod problem;
mod stores;
mod web;

use std::sync::Arc;

use graftwork_contract::address::Guard;
use graftwork_contract::dataset::{BuildConfig, Source};
use graftwork_contract::glob::{Glob, is_pattern};
use graftwork_contract::remote::{self as entry, HUB_ENDPOINT, Remote};
use graftwork_contract::uri::{DataUri, Endpoint};
use graftwork_objects::authorities;
use graftwork_objects::client::Client;
use tokio::runtime::Runtime;

use crate::failure::{Failure, causes};
use crate::files::{MAXIMUM_ENTRIES, MAXIMUM_FILES};
use crate::secret::Mounted;
pub use analyzer::{Analyzer, Answers, Spot};
use body::{Body, Pieces};
use hub::Repository;
use problem::{OfSource as _, Problem};
use stores::Bucket;
use web::Site;

/// Something that can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its URI, for provenance.
    pub uri: String,
    /// Its path, where a pattern found it.
    pub name: Option<String>,
    listed: Listed,
}

impl Found {
    /// Its state, where a list told.
    pub fn state(&self) -> Option<&str> {
        self.listed.etag.as_deref()
    }
}

/// What a server says of a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    /// Its path below the bucket or repository.
    path: String,
    /// Its state, where a list told.
    etag: Option<String>,
}

/// An answer, and the state that it is of.
struct Answer {
    pieces: Pieces,
    etag: Option<String>,
}

/// Bytes on their way.
pub struct Opened {
    /// The bytes.
    pub body: Body,
    /// What the server calls their state.
    pub etag: Option<String>,
}

/// Where files of a source are.
pub struct Shelf<'a> {
    source: &'a Source,
    runtime: Arc<Runtime>,
    place: Place,
}

enum Place {
    Bucket(Bucket),
    Site(Site),
    Repository(Repository),
}

/// The place of a source. Nothing is connected to yet, but for a hub's name of the revision.
///
/// # Errors
/// A URI or a Secret that can't be used, or that is not there; a hub that does not answer.
pub fn open<'a>(
    config: &BuildConfig,
    source: &'a Source,
    remote: &Remote,
) -> Result<Shelf<'a>, Failure> {
    let uri = DataUri::parse(&source.uri).map_err(|error| {
        Failure::bad_config(format!("spec.sources[{}].uri {error}", source.name))
    })?;
    let guard = Guard::parse(&config.allowed_hosts)
        .map_err(|error| Failure::bad_config(format!("dataSources.allow: {error}")))?;
    let secret = Mounted::new(source);
    check_secret(&secret, &uri, remote)?;
    let roots = match secret.bytes(entry::AUTHORITY)? {
        Some(pem) => authorities::of_pem(&pem).map_err(|problem| secret.bad(&problem))?,
        None => authorities::known(),
    };
    let client = Client::new(guard, roots).map_err(|error| Failure::bug(causes(&error)))?;
    // One thread moves what is on its way; this one reads it.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Failure::bug(format!("no runtime for connections: {error}")))?;
    let place = match uri {
        DataUri::Object { store, bucket, key } => {
            Place::Bucket(Bucket::open(&client, &secret, store, bucket, key)?)
        }
        DataUri::Web(uri) => Place::Site(Site::open(client, &secret, uri)?),
        DataUri::Hub {
            repository,
            revision,
            path,
        } => {
            let endpoint = config.hub_endpoint.as_deref().unwrap_or(HUB_ENDPOINT);
            let endpoint = Endpoint::parse(endpoint)
                .map_err(|error| Failure::bad_config(format!("dataSources.hubEndpoint {error}")))?;
            let opening = Repository::open(client, &secret, endpoint, repository, path)?;
            let pinned = runtime
                .block_on(opening.pinned(&revision))
                .map_err(|problem| problem.failure(&secret.title()))?;
            Place::Repository(pinned)
        }
    };
    Ok(Shelf {
        source,
        runtime: Arc::new(runtime),
        place,
    })
}

/// A Secret that is named has to hold something that is read.
fn check_secret(secret: &Mounted<'_>, uri: &DataUri, remote: &Remote) -> Result<(), Failure> {
    let Some(name) = &remote.secret else {
        return Ok(());
    };
    let entries = entry::entries(uri);
    for known in entries.iter().copied().chain([entry::AUTHORITY]) {
        if secret.bytes(known)?.is_some() {
            return Ok(());
        }
    }
    // It may come, as a file of a volume may.
    Err(Failure::source_not_found(format!(
        "{}: spec.sources[{}].secretRef: there is no Secret \"{name}\", or it has none of the keys {}; create it in \
         the Dataset's namespace, and it is found by itself",
        secret.title(),
        secret.source_name(),
        entries.join(", ")
    )))
}

impl Shelf<'_> {
    /// What there is to read: the one thing that the URI names, or what its pattern matches, by name.
    ///
    /// # Errors
    /// A server that does not answer or refuses, a pattern that matches nothing or too much.
    pub fn list(&self) -> Result<Vec<Found>, Failure> {
        let title = self.title(&self.source.uri);
        let (root, path) = self.place.root();
        if !is_pattern(path) || matches!(self.place, Place::Site(_)) {
            return Ok(vec![Found {
                uri: format!("{root}{path}"),
                name: None,
                listed: Listed {
                    path: path.to_owned(),
                    etag: None,
                },
            }]);
        }
        let glob = Glob::parse(path).map_err(|error| {
            Failure::bad_config(format!("spec.sources[{}].uri: {error}", self.source.name))
        })?;
        let mut matching = Matching::new(glob);
        self.runtime
            .block_on(self.place.list(&mut matching))
            .map_err(|problem| problem.failure(&title))?;
        let mut listed = matching.found;
        if listed.is_empty() {
            let words = "nothing matches the pattern".to_owned();
            return Err(Problem::NotFound(words).failure(&title));
        }
        listed.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(listed
            .into_iter()
            .map(|listed| Found {
                uri: format!("{root}{}", listed.path),
                name: Some(listed.path.clone()),
                listed,
            })
            .collect())
    }

    /// Asks for something that was listed, in the state that it was listed in.
    ///
    /// # Errors
    /// A server that does not answer or refuses; something that is gone or another by now.
    pub fn read(&self, found: &Found) -> Result<Opened, Failure> {
        let title = self.title(&found.uri);
        let answer = self
            .runtime
            .block_on(self.place.get(&found.listed))
            .map_err(|problem| problem.failure(&title))?;
        Ok(Opened {
            body: Body::new(Arc::clone(&self.runtime), answer.pieces, title),
            etag: answer.etag,
        })
    }

    fn title(&self, uri: &str) -> String {
        format!(
            "source {0} (spec.sources[{0}].uri: {uri})",
            self.source.name
        )
    }
}

impl Place {
    /// The URI of all there is, and what of it the source names.
    fn root(&self) -> (String, &str) {
        match self {
            Self::Bucket(bucket) => bucket.root(),
            Self::Site(site) => site.root(),
            Self::Repository(repository) => repository.root(),
        }
    }

    async fn list(&self, matching: &mut Matching) -> Result<(), Problem> {
        match self {
            Self::Bucket(bucket) => bucket.list(matching).await,
            Self::Repository(repository) => repository.list(matching).await,
            // It has no lists.
            Self::Site(_) => Ok(()),
        }
    }

    async fn get(&self, listed: &Listed) -> Result<Answer, Problem> {
        match self {
            Self::Bucket(bucket) => bucket.get(listed).await,
            Self::Site(site) => site.get().await,
            Self::Repository(repository) => repository.get(listed).await,
        }
    }
}

/// What matches a pattern, of all that a server lists.
struct Matching {
    glob: Glob,
    entries: usize,
    found: Vec<Listed>,
}

impl Matching {
    fn new(glob: Glob) -> Self {
        Self {
            glob,
            entries: 0,
            found: Vec::new(),
        }
    }

    /// The folder that all matches are in.
    fn folder(&self) -> String {
        self.glob.folder()
    }

    /// Keeps what matches.
    fn see(&mut self, path: &str, etag: Option<String>) -> Result<(), Problem> {
        let too_many = |what: &str, limit: usize| {
            Problem::Wrong(format!(
                "leads to more than {limit} {what}; name a narrower pattern"
            ))
        };
        self.entries += 1;
        if self.entries > MAXIMUM_ENTRIES {
            return Err(too_many("entries", MAXIMUM_ENTRIES));
        }
        if self.glob.matches(path) {
            if self.found.len() >= MAXIMUM_FILES {
                return Err(too_many("files", MAXIMUM_FILES));
            }
            self.found.push(Listed {
                path: path.to_owned(),
                etag,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_keeps_what_matches_and_not_more_than_a_source_may_have() {
        let mut matching = Matching::new(Glob::parse("faq/*.jsonl").unwrap());
        assert_eq!(matching.folder(), "faq");
        for path in ["faq/a.jsonl", "faq/b.csv", "faq/x/c.jsonl"] {
            matching.see(path, Some("1".to_owned())).unwrap();
        }
        assert_eq!(matching.found.len(), 1);
        for number in 1..MAXIMUM_FILES {
            matching.see(&format!("faq/{number}.jsonl"), None).unwrap();
        }
        let problem = matching.see("faq/last.jsonl", None).unwrap_err();
        assert!(
            matches!(problem, Problem::Wrong(words) if words.contains("more than 10000 files"))
        );
    }
}
