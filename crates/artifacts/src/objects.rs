//! The asynchronous half of a store in a bucket: objects, one after another.

use std::fs::File;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use graftwork_contract::Digest;
use graftwork_objects::problem::{Words, is_of_bucket, of_store};
use object_store::path::Path as Key;
use object_store::{
    Error as StoreError, GetOptions, GetResult, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, WriteMultipart,
};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::path::check;
use crate::store::{Entry, Put, compare};
use crate::{Error, Result};

/// Where a person changes what the store may be asked, and by whom.
const WORDS: Words = Words {
    allow: "store.allow",
    denied: "correct the Secret that store.secretName names, or what its user may do",
};
/// Time for one request, with what is tried again.
const ANSWER_TIME: Duration = Duration::from_secs(180);
/// Longest silence in the midst of an answer.
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes of one part of a large object, at least; smaller ones are put at once.
const PART_BYTES: u64 = 8 << 20;
/// Parts of one object that every store takes.
const MAXIMUM_PARTS: u64 = 9000;
/// Parts that are on their way at a time.
const UPLOADS: usize = 4;
/// Small objects that are asked for at a time.
const READS: usize = 16;
/// Looks at who was faster.
const TRIES: usize = 5;
/// Between them: who is faster is still writing.
const PAUSE: Duration = Duration::from_millis(200);
/// The object that shows whether the server keeps the condition that nothing is there.
const CONDITIONS: &str = ".conditions";
/// Longest header of safetensors that is read: the format's own limit.
const MAXIMUM_HEADER_BYTES: u64 = 100_000_000;

/// Bytes, and how many there are in all.
pub type Content = (Vec<u8>, u64);

/// What the server calls the state of an object's bytes, where it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State(pub(crate) Option<String>);

type Pieces = BoxStream<'static, object_store::Result<Bytes>>;

/// Objects of the store.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    url: String,
    prefix: String,
}

impl Objects {
    /// Objects whose keys begin with `prefix`, if it is not empty; `url` names both, for messages.
    pub(crate) fn new(store: Arc<dyn ObjectStore>, url: String, prefix: String) -> Self {
        Self { store, url, prefix }
    }

    fn key(&self, path: &str) -> Result<Key> {
        let text = match (self.prefix.as_str(), path) {
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}/{path}"),
        };
        Key::parse(text).map_err(|_| Error::Path {
            path: path.to_owned(),
            problem: "is no key of a bucket",
        })
    }

    fn remote(&self, action: &'static str, path: &str, problem: String) -> Error {
        let url = match path {
            "" => self.url.clone(),
            path => format!("{}/{path}", self.url),
        };
        Error::Remote {
            action,
            url,
            problem,
        }
    }

    fn failed(&self, action: &'static str, path: &str, error: &StoreError) -> Error {
        self.remote(action, path, of_store(error, &WORDS).words())
    }

    async fn in_time<T>(
        &self,
        action: &'static str,
        path: &str,
        work: impl Future<Output = object_store::Result<T>> + Send,
    ) -> Result<object_store::Result<T>> {
        timeout(ANSWER_TIME, work).await.map_err(|_| {
            let seconds = ANSWER_TIME.as_secs();
            self.remote(action, path, format!("no answer for {seconds} s"))
        })
    }

    /// The answer to a request for an object, or for what is known of it alone.
    async fn ask(&self, path: &str, head: bool) -> Result<Option<GetResult>> {
        let key = self.key(path)?;
        let options = GetOptions {
            head,
            ..GetOptions::default()
        };
        match self
            .in_time("read", path, self.store.get_opts(&key, options))
            .await?
        {
            Ok(answer) => Ok(Some(answer)),
            Err(error @ StoreError::NotFound { .. }) if !is_of_bucket(&error) => Ok(None),
            Err(error) => Err(self.failed("read", path, &error)),
        }
    }

    async fn next(&self, path: &str, pieces: &mut Pieces) -> Result<Option<Bytes>> {
        match timeout(SILENCE, pieces.next()).await {
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(Some(Err(error))) => Err(self.failed("read", path, &error)),
            Ok(None) => Ok(None),
            Err(_) => {
                let problem = format!("nothing came for {} s", SILENCE.as_secs());
                Err(self.remote("read", path, problem))
            }
        }
    }

    /// At most `limit` bytes of an object, and the size of all.
    pub(crate) async fn read(&self, path: &str, limit: u64) -> Result<Option<Content>> {
        let Some(answer) = self.ask(path, false).await? else {
            return Ok(None);
        };
        let size = answer.meta.size;
        let limit = usize::try_from(size.min(limit)).unwrap_or(usize::MAX);
        let mut bytes = Vec::with_capacity(limit);
        let mut pieces = answer.into_stream();
        while bytes.len() < limit
            && let Some(piece) = self.next(path, &mut pieces).await?
        {
            let room = piece.len().min(limit - bytes.len());
            bytes.extend_from_slice(piece.get(..room).unwrap_or_default());
        }
        if bytes.len() < limit {
            return Err(self.remote("read", path, "the answer was cut".to_owned()));
        }
        Ok(Some((bytes, size)))
    }

    async fn read_one(self, path: String, limit: u64) -> Result<(String, Option<Content>)> {
        let found = self.read(&path, limit).await?;
        Ok((path, found))
    }

    /// [`Objects::read`] for several, in their order.
    pub(crate) async fn read_all(
        &self,
        paths: Vec<String>,
        limit: u64,
    ) -> Result<Vec<(String, Option<Content>)>> {
        let reads: Vec<_> = paths
            .into_iter()
            .map(|path| self.clone().read_one(path, limit))
            .collect();
        stream::iter(reads).buffered(READS).try_collect().await
    }

    /// Every object whose path begins with this text, in the order of paths, but the store's own.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        if !folder.is_empty() || prefix.starts_with('/') {
            check(folder)?;
        }
        let key = self.key(folder)?;
        let own = match self.prefix.as_str() {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let mut objects = self.store.list(Some(&key));
        let mut entries = Vec::new();
        loop {
            let page = async { objects.next().await.transpose() };
            let object = match self.in_time("list", prefix, page).await? {
                Ok(Some(object)) => object,
                Ok(None) => break,
                Err(error) => return Err(self.failed("list", prefix, &error)),
            };
            let Some(path) = object.location.as_ref().strip_prefix(&own) else {
                continue;
            };
            let is_own = path.split('/').any(|part| part.starts_with('.'));
            if path.starts_with(prefix) && !is_own {
                entries.push(Entry {
                    path: path.to_owned(),
                    size: object.size,
                    state: object.e_tag.clone(),
                });
            }
        }
        entries.sort();
        Ok(entries)
    }

    /// Whether something is there, and what the server calls its state.
    pub(crate) async fn state(&self, path: &str) -> Result<Option<State>> {
        let answer = self.ask(path, true).await?;
        Ok(answer.map(|answer| State(answer.meta.e_tag)))
    }

    /// Puts an object if nothing is there. False: something is, or is about to be.
    pub(crate) async fn create(&self, path: &str, bytes: &[u8]) -> Result<bool> {
        let key = self.key(path)?;
        let options = PutOptions {
            mode: PutMode::Create,
            ..PutOptions::default()
        };
        let payload = PutPayload::from(bytes.to_vec());
        let put = self.store.put_opts(&key, payload, options);
        match self.in_time("write", path, put).await? {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.failed("write", path, &error)),
        }
    }

    /// Puts an object if nothing is there; see [`crate::Store::put_new`].
    pub(crate) async fn put_new(&self, path: &str, bytes: &[u8]) -> Result<Put> {
        for _ in 0..TRIES {
            if let Some((existing, _)) = self.read(path, u64::MAX).await? {
                return compare(path, &existing, bytes);
            }
            if self.create(path, bytes).await? {
                return Ok(Put::Created);
            }
            tokio::time::sleep(PAUSE).await;
        }
        let problem = "something is there and can't be read".to_owned();
        Err(self.remote("write", path, problem))
    }

    /// That the server puts no second object where only a first may be.
    pub(crate) async fn keeps_conditions(&self) -> Result<bool> {
        let content = b"graftwork\n";
        // Where it is there already, the server has just shown it.
        if !self.create(CONDITIONS, content).await? {
            return Ok(true);
        }
        Ok(!self.create(CONDITIONS, content).await?)
    }

    /// Takes objects away, in this order as far as the server keeps one. Nothing there is fine.
    pub(crate) async fn remove(&self, paths: Vec<String>) -> Result<()> {
        let keys: Vec<Key> = paths
            .iter()
            .map(|path| self.key(path))
            .collect::<Result<_>>()?;
        let place = paths.first().map_or("", String::as_str);
        let mut gone = self
            .store
            .delete_stream(stream::iter(keys.into_iter().map(Ok)).boxed());
        loop {
            let next = async { gone.next().await.transpose() };
            match self.in_time("remove", place, next).await? {
                Ok(Some(_)) | Err(StoreError::NotFound { .. }) => {}
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.failed("remove", place, &error)),
            }
        }
    }

    /// Puts a file, whatever is there. Returns what the server calls the state of its bytes.
    pub(crate) async fn upload(&self, path: &str, from: &Path) -> Result<State> {
        let key = self.key(path)?;
        let mut file = File::open(from).map_err(Error::io("open", from))?;
        let metadata = file.metadata().map_err(Error::io("look at", from))?;
        let size = metadata.len();
        if size <= PART_BYTES {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)
                .map_err(Error::io("read", from))?;
            let payload = PutPayload::from(bytes);
            let put = self.store.put_opts(&key, payload, PutOptions::default());
            let put = self.in_time("write", path, put).await?;
            return put
                .map(|put| State(put.e_tag))
                .map_err(|error| self.failed("write", path, &error));
        }
        let options = PutMultipartOptions::default();
        let upload = self
            .in_time("write", path, self.store.put_multipart_opts(&key, options))
            .await?
            .map_err(|error| self.failed("write", path, &error))?;
        let part = size.div_ceil(MAXIMUM_PARTS).max(PART_BYTES);
        let part_bytes = usize::try_from(part).unwrap_or(usize::MAX);
        let mut write = WriteMultipart::new_with_chunk_size(upload, part_bytes);
        loop {
            let mut piece = Vec::new();
            let read = (&mut file).take(part).read_to_end(&mut piece);
            let waited = write.wait_for_capacity(UPLOADS);
            let waited = self.in_time("write", path, waited).await;
            let ended = match (read, waited) {
                (Err(error), _) => Error::io("read", from)(error),
                (Ok(_), Err(late)) => late,
                (Ok(_), Ok(Err(error))) => self.failed("write", path, &error),
                (Ok(0), Ok(Ok(()))) => break,
                (Ok(_), Ok(Ok(()))) => {
                    write.put(piece.into());
                    continue;
                }
            };
            // What a bucket's own rules take away later costs until then.
            let _ = timeout(ANSWER_TIME, write.abort()).await;
            return Err(ended);
        }
        let put = self.in_time("write", path, write.finish()).await?;
        put.map(|put| State(put.e_tag))
            .map_err(|error| self.failed("write", path, &error))
    }

    /// Reads an object whole, to `to` if it is said, and checks that it has this digest.
    pub(crate) async fn check(
        &self,
        path: &str,
        expected: &Digest,
        to: Option<&Path>,
    ) -> Result<()> {
        let answer = self.ask(path, false).await?;
        let answer = answer.ok_or_else(|| missing(path))?;
        let meta = answer.meta.clone();
        let mut file = to.map(create).transpose()?;
        let mut hasher = Sha256::new();
        let mut pieces = answer.into_stream();
        while let Some(piece) = self.next(path, &mut pieces).await? {
            hasher.update(&piece);
            if let (Some(file), Some(to)) = (&mut file, to) {
                file.write_all(&piece).map_err(Error::io("write", to))?;
            }
        }
        let got = Digest::from_sha256(hasher.finalize().into());
        if got != *expected {
            return Err(Error::DigestMismatch {
                path: path.to_owned(),
                expected: expected.clone(),
                got,
            });
        }
        match (file, to) {
            (Some(file), Some(to)) => stamp(&file, &meta, to),
            _ => Ok(()),
        }
    }

    /// Reads the header of safetensors to a file that is as long as the object; the rest of it is a hole.
    pub(crate) async fn head_of_tensors(&self, path: &str, to: &Path) -> Result<()> {
        let answer = self.ask(path, false).await?;
        let answer = answer.ok_or_else(|| missing(path))?;
        let meta = answer.meta.clone();
        let mut bytes = Vec::new();
        let mut pieces = answer.into_stream();
        while (bytes.len() as u64) < header_end(&bytes).min(meta.size)
            && let Some(piece) = self.next(path, &mut pieces).await?
        {
            bytes.extend_from_slice(&piece);
        }
        let mut file = create(to)?;
        file.write_all(&bytes).map_err(Error::io("write", to))?;
        file.set_len(meta.size).map_err(Error::io("write", to))?;
        stamp(&file, &meta, to)
    }
}

/// Where the header ends: its length stands in the first eight bytes.
fn header_end(bytes: &[u8]) -> u64 {
    let length = bytes.first_chunk::<8>();
    length.map_or(8, |length| {
        u64::from_le_bytes(*length)
            .min(MAXIMUM_HEADER_BYTES)
            .saturating_add(8)
    })
}

fn missing(path: &str) -> Error {
    Error::Missing {
        path: path.to_owned(),
    }
}

fn create(to: &Path) -> Result<File> {
    File::create_new(to).map_err(Error::io("create", to))
}

/// Gives the copy the object's time: readers tell by it whether files changed.
fn stamp(file: &File, meta: &ObjectMeta, to: &Path) -> Result<()> {
    let seconds = u64::try_from(meta.last_modified.timestamp()).unwrap_or_default();
    let since = Duration::new(seconds, meta.last_modified.timestamp_subsec_nanos());
    file.set_modified(UNIX_EPOCH + since)
        .map_err(Error::io("write", to))
}
