//! A store in a bucket. What is written is put whole; what is read is checked on its way.
//!
//! - A record is put with the condition that nothing is there. The first write of a process sees that the server
//!   keeps that condition.
//! - A folder's files are put before its manifest. Two writers of one content may write different bytes (a card
//!   with another time in it), and one may overwrite what the other's manifest names: so the files' states are
//!   looked at after the manifest is there, and a version that is not whole is published anew by whoever finds it
//!   with the same content in hand.
//! - The mounted Secret is read at each call: new keys need no new process.
//!
//! Calls are made from any thread and wait; a runtime of the store's own does the work.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use graftwork_contract::Digest;
use graftwork_contract::address::Guard;
use graftwork_contract::remote::{self, AUTHORITY};
use graftwork_contract::store::{BucketStore, Place};
use graftwork_contract::uri::DataUri;
use graftwork_objects::authorities;
use graftwork_objects::client::Client;
use graftwork_objects::secret;
use graftwork_objects::stores::{self, Credentials, bare};
use tokio::runtime::Runtime;

use crate::fetched::Fetched;
use crate::folder::Folder;
use crate::known::Known;
use crate::objects::{Content, Objects, State};
use crate::path::check;
use crate::staging::{Identity, MANIFEST_FILE};
use crate::store::{Entry, Put, decode};
use crate::volume::Volume;
use crate::{Error, Result};

/// How often a folder is published before another writer is waited for.
const TRIES: usize = 3;

/// The bucket. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Bucket {
    inner: Arc<Inner>,
    /// What is on its way.
    scratch: Folder,
}

struct Inner {
    config: BucketStore,
    place: Place,
    is_read_only: bool,
    runtime: Background,
    opened: Mutex<Option<(Secret, Objects)>>,
    /// Whether the server was seen to keep conditions.
    keeps_conditions: Mutex<bool>,
    known: Mutex<Known>,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Bucket({})", self.inner.config.url)
    }
}

/// A runtime that may be dropped anywhere, also on another one's threads.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a mounted Secret says.
#[derive(Default, PartialEq, Eq)]
struct Secret {
    texts: BTreeMap<&'static str, String>,
    authority: Option<Vec<u8>>,
}

impl Credentials for Secret {
    type Error = String;

    fn text(&self, name: &str) -> std::result::Result<Option<String>, String> {
        Ok(self.texts.get(name).cloned())
    }

    fn bad(&self, problem: &str) -> String {
        problem.to_owned()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bucket {
    /// Opens the store. Nothing is asked yet.
    pub(crate) fn open(config: BucketStore, scratch: Folder, is_read_only: bool) -> Result<Self> {
        let unusable = |problem: String| Error::Bucket {
            url: config.url.clone(),
            problem,
        };
        let place = Place::parse(&config.url).map_err(|error| unusable(error.to_string()))?;
        Guard::parse(&config.allowed_hosts)
            .map_err(|error| unusable(format!("store.allow: {error}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(Error::io("start threads for", scratch.root()))?;
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                place,
                is_read_only,
                runtime: Background(Some(runtime)),
                opened: Mutex::default(),
                keeps_conditions: Mutex::default(),
                known: Mutex::default(),
            }),
            scratch,
        })
    }

    /// The same bucket with another disk for what is on its way.
    pub(crate) fn on(self, volume: Volume) -> Self {
        Self {
            scratch: self.scratch.on(volume),
            ..self
        }
    }

    /// Where what is on its way is.
    pub(crate) const fn scratch(&self) -> &Folder {
        &self.scratch
    }

    /// Runs what asks the bucket, and waits for it.
    fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let ended = || self.unusable("a task of ours ended early".to_owned());
        let runtime = self.inner.runtime.0.as_ref().ok_or_else(ended)?;
        let (sender, receiver) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            // Who asked waits below.
            let _ = sender.send(work.await);
        });
        receiver.recv().unwrap_or_else(|_| Err(ended()))
    }

    fn unusable(&self, problem: String) -> Error {
        Error::Remote {
            action: "open",
            url: self.inner.config.url.clone(),
            problem,
        }
    }

    fn secret(&self) -> Result<Secret> {
        let config = &self.inner.config;
        let Some(name) = &config.secret else {
            return Ok(Secret::default());
        };
        let folder = Path::new(&config.path);
        let read = |entry: &str| {
            secret::entry(folder, entry)
                .map_err(|error| self.unusable(format!("Secret {name}: {entry} {error}")))
        };
        let uri = DataUri::parse(&config.url).map_err(|error| self.unusable(error.to_string()))?;
        let entries = remote::entries(&uri);
        let mut found = Secret {
            texts: BTreeMap::new(),
            authority: read(AUTHORITY)?,
        };
        for entry in entries.iter().copied() {
            let Some(bytes) = read(entry)? else { continue };
            let text = secret::text(bytes)
                .map_err(|_| self.unusable(format!("Secret {name}: {entry} is not UTF-8")))?;
            if let Some(text) = text {
                found.texts.insert(entry, text);
            }
        }
        if found == Secret::default() {
            return Err(self.unusable(format!(
                "there is no Secret {name} in this namespace, or it has none of the keys {}",
                entries.join(", ")
            )));
        }
        Ok(found)
    }

    /// The bucket as the Secret says now.
    fn objects(&self) -> Result<Objects> {
        let secret = self.secret()?;
        let mut opened = locked(&self.inner.opened);
        if let Some((known, objects)) = opened.as_ref()
            && *known == secret
        {
            return Ok(objects.clone());
        }
        let (config, place) = (&self.inner.config, &self.inner.place);
        let named = config.secret.as_deref().unwrap_or("(none)");
        let bad = |problem: String| self.unusable(format!("Secret {named}: {problem}"));
        let guard = Guard::parse(&config.allowed_hosts)
            .map_err(|error| self.unusable(format!("store.allow: {error}")))?;
        let roots = match &secret.authority {
            Some(pem) => authorities::of_pem(pem).map_err(bad)?,
            None => authorities::known(),
        };
        let client = Client::new(guard, roots).map_err(|error| self.unusable(error.to_string()))?;
        let store = stores::open(&client, &secret, place.store, &place.bucket).map_err(bad)?;
        let objects = Objects::new(store, config.url.clone(), place.prefix.clone());
        *opened = Some((secret, objects.clone()));
        Ok(objects)
    }

    /// The bucket for a write.
    fn writable(&self) -> Result<Objects> {
        let unusable = |problem: &str| Error::Bucket {
            url: self.inner.config.url.clone(),
            problem: problem.to_owned(),
        };
        if self.inner.is_read_only {
            return Err(unusable("it was opened for reading"));
        }
        let objects = self.objects()?;
        if !*locked(&self.inner.keeps_conditions) {
            let asked = objects.clone();
            if !self.run(async move { asked.keeps_conditions().await })? {
                return Err(unusable(
                    "its server puts an object over another though asked not to (If-None-Match), so records could be \
                     lost; use one that keeps conditions",
                ));
            }
            *locked(&self.inner.keeps_conditions) = true;
        }
        Ok(objects)
    }

    pub(crate) fn get_up_to(&self, path: &str, limit: u64) -> Result<Option<Content>> {
        check(path)?;
        let (objects, path) = (self.objects()?, path.to_owned());
        self.run(async move { objects.read(&path, limit).await })
    }

    pub(crate) fn get_listed(&self, entries: &[Entry], limit: u64) -> Result<Vec<Option<Content>>> {
        let known: Vec<Option<Vec<u8>>> = {
            let records = locked(&self.inner.known);
            let at_most = |bytes: &Vec<u8>| bytes.len() as u64 <= limit;
            entries
                .iter()
                .map(|entry| records.get(entry).filter(at_most))
                .collect()
        };
        let unknown: Vec<String> = entries
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(entry, _)| entry.path.clone())
            .collect();
        let mut read = BTreeMap::new();
        if !unknown.is_empty() {
            let objects = self.objects()?;
            read.extend(self.run(async move { objects.read_all(unknown, limit).await })?);
        }
        let mut records = locked(&self.inner.known);
        let found = entries.iter().zip(known).map(|(entry, known)| {
            if let Some(bytes) = known {
                return Some((bytes, entry.size));
            }
            let (bytes, size) = read.remove(&entry.path).flatten()?;
            if size == entry.size {
                records.keep(entry, &bytes);
            }
            Some((bytes, size))
        });
        Ok(found.collect())
    }

    pub(crate) fn exists(&self, path: &str) -> Result<bool> {
        self.state(path).map(|state| state.is_some())
    }

    fn state(&self, path: &str) -> Result<Option<State>> {
        check(path)?;
        let (objects, path) = (self.objects()?, path.to_owned());
        self.run(async move { objects.state(&path).await })
    }

    pub(crate) fn put_new(&self, path: &str, bytes: &[u8]) -> Result<Put> {
        check(path)?;
        let (objects, path, bytes) = (self.writable()?, path.to_owned(), bytes.to_vec());
        self.run(async move { objects.put_new(&path, &bytes).await })
    }

    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let (objects, prefix) = (self.objects()?, prefix.to_owned());
        self.run(async move { objects.list(&prefix).await })
    }

    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        check(path)?;
        let (objects, paths) = (self.writable()?, vec![path.to_owned()]);
        self.run(async move { objects.remove(paths).await })
    }

    /// Manifests go first: without one a folder does not exist.
    pub(crate) fn remove_folder(&self, path: &str) -> Result<()> {
        check(path)?;
        let objects = self.writable()?;
        let listed = self.list(&format!("{path}/"))?;
        let paths = listed.into_iter().map(|entry| entry.path);
        let is_manifest = |path: &String| path.rsplit('/').next() == Some(MANIFEST_FILE);
        let (manifests, files): (Vec<_>, Vec<_>) = paths.partition(is_manifest);
        self.run(async move {
            objects.remove(manifests).await?;
            objects.remove(files).await
        })
    }

    pub(crate) fn verify(&self, folder: &str, files: &BTreeMap<String, Digest>) -> Result<()> {
        let paths = paths(folder, files)?;
        let objects = self.objects()?;
        self.run(async move {
            for (_, path, digest) in &paths {
                objects.check(path, digest, None).await?;
            }
            Ok(())
        })
    }

    pub(crate) fn fetch(&self, folder: &str, files: &BTreeMap<String, Digest>) -> Result<Fetched> {
        self.copies(folder, files, |_| false)
    }

    pub(crate) fn peek(&self, folder: &str, files: &BTreeMap<String, Digest>) -> Result<Fetched> {
        let is_long = |name: &str| {
            Path::new(name)
                .extension()
                .is_some_and(|extension| extension == "safetensors")
        };
        self.copies(folder, files, is_long)
    }

    fn copies(
        &self,
        folder: &str,
        files: &BTreeMap<String, Digest>,
        is_head_enough: impl Fn(&str) -> bool,
    ) -> Result<Fetched> {
        let paths = paths(folder, files)?;
        let objects = self.objects()?;
        let session = self.scratch.session()?;
        let fetched = Fetched::copies(session.folder()?, session);
        let jobs: Vec<_> = paths
            .into_iter()
            .map(|(name, path, digest)| {
                let to = fetched.path().join(&name);
                (path, digest, to, is_head_enough(&name))
            })
            .collect();
        self.run(async move {
            for (path, digest, to, head) in &jobs {
                if *head {
                    objects.head_of_tensors(path, to).await?;
                } else {
                    objects.check(path, digest, Some(to)).await?;
                }
            }
            Ok(())
        })?;
        Ok(fetched)
    }

    /// Puts the files of `dir` and then the manifest; see [`crate::Staged::publish`].
    pub(crate) fn publish(&self, dir: &Path, target: &str, manifest: &[u8]) -> Result<Put> {
        check(target)?;
        let path = format!("{target}/{MANIFEST_FILE}");
        let ours: Identity = decode(&path, manifest)?;
        for _ in 0..TRIES {
            if let Some((existing, _)) = self.get_up_to(&path, u64::MAX)? {
                let existing: Identity = decode(&path, &existing)?;
                if !existing.is_same(&ours) {
                    return Err(Error::Conflict {
                        path: target.to_owned(),
                    });
                }
                match self.verify(target, &existing.files) {
                    Ok(()) => return Ok(Put::Existing),
                    Err(error @ (Error::Missing { .. } | Error::DigestMismatch { .. })) => {
                        tracing::warn!(%error, folder = target, "a version that is not whole is published anew");
                        self.remove(&path)?;
                    }
                    Err(error) => return Err(error),
                }
            }
            let put = self.upload(dir, target)?;
            let (objects, at, bytes) = (self.writable()?, path.clone(), manifest.to_vec());
            if !self.run(async move { objects.create(&at, &bytes).await })? {
                // Another writer was faster.
                continue;
            }
            if self.are_unchanged(&put)? {
                return Ok(Put::Created);
            }
            tracing::warn!(
                folder = target,
                "another writer's bytes came between; publishing anew"
            );
            self.remove(&path)?;
        }
        Err(Error::Remote {
            action: "publish",
            url: format!("{}/{target}", self.inner.config.url),
            problem: "others write the same again and again".to_owned(),
        })
    }

    /// Puts every file of `dir`. Returns path and state of each.
    fn upload(&self, dir: &Path, target: &str) -> Result<Vec<(String, State)>> {
        let mut files = Vec::new();
        for item in fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let item = item.map_err(Error::io("list", dir))?;
            let path = format!("{target}/{}", item.file_name().to_string_lossy());
            check(&path)?;
            files.push((path, item.path()));
        }
        let objects = self.writable()?;
        self.run(async move {
            let mut put = Vec::new();
            for (path, from) in files {
                let state = objects.upload(&path, &from).await?;
                put.push((path, state));
            }
            Ok(put)
        })
    }

    /// Whether objects are in the state that they were put in, as far as the server tells states.
    fn are_unchanged(&self, put: &[(String, State)]) -> Result<bool> {
        for (path, before) in put {
            let Some(now) = self.state(path)? else {
                return Ok(false);
            };
            if let (Some(before), Some(now)) = (&before.0, &now.0)
                && bare(before) != bare(now)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Name, path and digest of a folder's files.
fn paths(folder: &str, files: &BTreeMap<String, Digest>) -> Result<Vec<(String, String, Digest)>> {
    files
        .iter()
        .map(|(name, digest)| {
            let path = format!("{folder}/{name}");
            check(&path)?;
            if name.contains('/') {
                return Err(Error::Path {
                    path,
                    problem: "is in a folder of the folder",
                });
            }
            Ok((name.clone(), path, digest.clone()))
        })
        .collect()
}
