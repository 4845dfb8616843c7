//! URIs of data and models beyond the cluster's volumes: `s3://`, `gs://`, `az://`, `https://` and
//! `hf://`. Parsed once, strictly, into what a client connects to: nobody reads the text again.
//!
//! A URI holds no credentials (no user, no query, no fragment), no character that some reader takes for
//! another, and no path that leaves its root. Whether its host may be reached is [`crate::address`]'s
//! question. `pvc://` is the operator's, which mounts it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use thiserror::Error;

/// Longest URI, in bytes.
const MAXIMUM_BYTES: usize = 2048;
/// Longest redirect, in bytes: it may carry a signature.
const MAXIMUM_REDIRECT_BYTES: usize = 8192;
/// Longest key of an object, in bytes: what S3 takes.
const MAXIMUM_PATH_BYTES: usize = 1024;

/// A URI that was read.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DataUri {
    /// An object, or a pattern of objects, in a bucket.
    Object {
        /// Whose.
        store: ObjectStore,
        /// The bucket or container.
        bucket: String,
        /// Its key, without a slash at the beginning.
        key: String,
    },
    /// A file on a web server.
    Web(WebUri),
    /// A repository of a hub.
    Hub {
        /// `ORG/NAME`
        repository: String,
        /// A branch, tag or commit.
        revision: String,
        /// A file or pattern in it; empty for all of it.
        path: String,
    },
}

/// Kinds of object stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectStore {
    /// S3 and what speaks like it.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
}

/// An `https://` URI.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WebUri {
    /// The host, which has not been looked up.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The path with its first slash, percent-encoded as it was written.
    pub path: String,
}

/// Where a redirect leads.
#[derive(Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The URI, which is to be checked like the first one.
    pub uri: WebUri,
    /// What stands behind its question mark: a signature, as a rule, that is said nowhere.
    pub query: Option<String>,
}

impl fmt::Debug for Redirect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Redirect")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}

/// Where a service listens: `https://HOST:PORT`, or `http://HOST:PORT` within a network that is trusted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Whether it is `https`.
    pub is_encrypted: bool,
    /// The host, which has not been looked up.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// A host by name or by address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name in lower case.
    Name(String),
    /// An address.
    Address(IpAddr),
}

/// Why a URI is refused. It names no part of the URI that may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UriError {
    /// No `://`, or nothing behind it.
    #[error("is not a URI")]
    NotAUri,
    /// Longer than anybody needs.
    #[error("is longer than 2048 bytes")]
    TooLong,
    /// White space, a control, a backslash, a quote, or nothing that ASCII knows.
    #[error("has a character that a URI can't have")]
    Character,
    /// Another scheme.
    #[error("has another scheme than s3, gs, az, https or hf")]
    Scheme,
    /// A user or password before the host.
    #[error("has credentials; name a Secret in secretRef")]
    Credentials,
    /// A query or fragment, where signatures and tokens stand.
    #[error("has a query or a fragment; name a Secret in secretRef")]
    Query,
    /// No host, or one that is written in a way that readers disagree about.
    #[error("has no plain host name or address")]
    Host,
    /// No number from 1 to 65535.
    #[error("has no plain port")]
    Port,
    /// A bucket that no store takes.
    #[error("has no valid bucket")]
    Bucket,
    /// A repository or revision that no hub takes.
    #[error("is not hf://ORG/NAME@REVISION/PATH")]
    Repository,
    /// A path that is missing, leaves its root or can be read in two ways.
    #[error("has a path with an empty, hidden or encoded part, or none")]
    Path,
}

impl DataUri {
    /// Reads a URI.
    ///
    /// # Errors
    /// See [`UriError`].
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = split(text)?;
        match scheme {
            "s3" => object(ObjectStore::S3, rest),
            "gs" => object(ObjectStore::Gs, rest),
            "az" => object(ObjectStore::Az, rest),
            "hf" => hub(rest),
            "https" => web(rest, Slashes::Plain).map(Self::Web),
            _ => Err(UriError::Scheme),
        }
    }
}

impl WebUri {
    /// Where a redirect leads: another `https` URI, or a path on the same host. It is to be checked like
    /// the first one. Servers sign what they redirect to, so it may have a query; and they may encode the
    /// slashes and marks of a path, which is theirs to read.
    ///
    /// # Errors
    /// See [`UriError`]; a redirect to another scheme is one.
    pub fn redirected(&self, location: &str) -> Result<Redirect, UriError> {
        if location.len() > MAXIMUM_REDIRECT_BYTES {
            return Err(UriError::TooLong);
        }
        check_characters(location)?;
        let (place, query) = match location.split_once('?') {
            Some((_, "")) => return Err(UriError::Query),
            Some((place, query)) => (place, Some(query.to_owned())),
            None => (location, None),
        };
        if location.contains('#') {
            return Err(UriError::Query);
        }
        let uri = if place.starts_with('/') && !place.starts_with("//") {
            check_web_path(place, Slashes::Encoded)?;
            Self {
                path: place.to_owned(),
                ..self.clone()
            }
        } else {
            let rest = match place.split_once("://") {
                Some(("https", rest)) => rest,
                Some(_) => return Err(UriError::Scheme),
                None => return Err(UriError::NotAUri),
            };
            web(rest, Slashes::Encoded)?
        };
        Ok(Redirect { uri, query })
    }

    /// Where it is served.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            is_encrypted: true,
            host: self.host.clone(),
            port: self.port,
        }
    }
}

impl Endpoint {
    /// Reads an endpoint. A slash at the end is no path.
    ///
    /// # Errors
    /// See [`UriError`].
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = split(text)?;
        let (is_encrypted, usual) = match scheme {
            "https" => (true, 443),
            "http" => (false, 80),
            _ => return Err(UriError::Scheme),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains('/') {
            return Err(UriError::Path);
        }
        let (host, port) = host_and_port(authority, usual)?;
        Ok(Self {
            is_encrypted,
            host,
            port,
        })
    }
}

fn split(text: &str) -> Result<(&str, &str), UriError> {
    if text.len() > MAXIMUM_BYTES {
        return Err(UriError::TooLong);
    }
    check_characters(text)?;
    let (scheme, rest) = text.split_once("://").ok_or(UriError::NotAUri)?;
    if rest.is_empty() {
        return Err(UriError::NotAUri);
    }
    if rest.contains(['?', '#']) {
        return Err(UriError::Query);
    }
    Ok((scheme, rest))
}

fn check_characters(text: &str) -> Result<(), UriError> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"\\\"'`<>^{}|".contains(&byte);
    if text.bytes().all(plain) {
        Ok(())
    } else {
        Err(UriError::Character)
    }
}

fn object(store: ObjectStore, rest: &str) -> Result<DataUri, UriError> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.contains('@') {
        return Err(UriError::Credentials);
    }
    if !is_bucket(store, bucket) {
        return Err(UriError::Bucket);
    }
    check_path(key)?;
    Ok(DataUri::Object {
        store,
        bucket: bucket.to_owned(),
        key: key.to_owned(),
    })
}

/// What S3, Google and Azure all take of each: lower case, digits, hyphens, and points where the store
/// has them. One that looks like an address is none.
fn is_bucket(store: ObjectStore, bucket: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let point = store != ObjectStore::Az;
    (3..=63).contains(&bucket.len())
        && bucket
            .bytes()
            .all(|byte| inner(byte) || byte == b'-' || (point && byte == b'.'))
        && bucket.bytes().next().is_some_and(inner)
        && bucket.bytes().next_back().is_some_and(inner)
        && !["..", ".-", "-."].iter().any(|pair| bucket.contains(pair))
        && !(store == ObjectStore::Az && bucket.contains("--"))
        && !bucket
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

fn hub(rest: &str) -> Result<DataUri, UriError> {
    let mut parts = rest.splitn(3, '/');
    let organisation = parts.next().unwrap_or_default();
    let named = parts.next().ok_or(UriError::Repository)?;
    let path = parts.next();
    let (name, revision) = named.split_once('@').ok_or(UriError::Repository)?;
    if organisation.contains('@') {
        return Err(UriError::Credentials);
    }
    let is_name = |part: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=96).contains(&part.len())
            && part.bytes().all(plain)
            && part
                .bytes()
                .next()
                .is_some_and(|byte| byte.is_ascii_alphanumeric())
            && !part.contains("..")
            && !part.contains("--")
    };
    if ![organisation, name, revision].into_iter().all(is_name) {
        return Err(UriError::Repository);
    }
    path.map_or(Ok(()), check_path)?;
    Ok(DataUri::Hub {
        repository: format!("{organisation}/{name}"),
        revision: revision.to_owned(),
        path: path.unwrap_or_default().to_owned(),
    })
}

/// Whether a path's slashes and marks may be percent-encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slashes {
    /// They may not: the next reader may decode once more.
    Plain,
    /// They may, where the server itself wrote them.
    Encoded,
}

fn web(rest: &str, slashes: Slashes) -> Result<WebUri, UriError> {
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => return Err(UriError::Path),
    };
    let (host, port) = host_and_port(authority, 443)?;
    check_web_path(path, slashes)?;
    Ok(WebUri {
        host,
        port,
        path: path.to_owned(),
    })
}

fn host_and_port(authority: &str, usual: u16) -> Result<(Host, u16), UriError> {
    if authority.contains('@') {
        return Err(UriError::Credentials);
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(UriError::Host)?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or(UriError::Host)?),
            };
            // An address with a zone means another machine on each machine; it does not parse.
            let address: Ipv6Addr = address.parse().map_err(|_| UriError::Host)?;
            (Host::Address(address.into()), port)
        }
        None => {
            let (host, port) = match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            };
            (name_or_address(host)?, port)
        }
    };
    let port = match port {
        None => usual,
        Some(port) => port
            .parse()
            .ok()
            .filter(|number: &u16| *number != 0 && number.to_string() == port)
            .ok_or(UriError::Port)?,
    };
    Ok((host, port))
}

/// A name of letters, digits and hyphens, or four plain numbers. Readers disagree about hosts such as
/// `127.1`, `0x7f.1`, `017700000001` and `2130706433`: whatever ends in a number and is not four is
/// refused.
fn name_or_address(host: &str) -> Result<Host, UriError> {
    let name = host.to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(is_label) {
        return Err(UriError::Host);
    }
    let last = name.rsplit('.').next().unwrap_or_default();
    if last
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_digit())
    {
        let address: Ipv4Addr = name.parse().map_err(|_| UriError::Host)?;
        return Ok(Host::Address(address.into()));
    }
    Ok(Host::Name(name))
}

/// Checks a path below some root, without a slash at the beginning. No part is empty, begins with two
/// points or is one point, and nothing is percent-encoded: stores take keys as they are written.
///
/// # Errors
/// [`UriError::Path`], [`UriError::Character`]
pub fn check_path(path: &str) -> Result<(), UriError> {
    check_characters(path)?;
    let is_part = |part: &str| {
        !part.is_empty() && part != "." && !part.starts_with("..") && !part.starts_with('~')
    };
    let plain = !path.contains(['%', ':', '@', ';', '$', '&', '!', '?', '#']);
    if path.len() <= MAXIMUM_PATH_BYTES && plain && path.split('/').all(is_part) {
        Ok(())
    } else {
        Err(UriError::Path)
    }
}

/// Checks the path of a web URI: after one decoding it is a path as [`check_path`] has it, but for
/// spaces and letters beyond ASCII; what decodes to a separator, a point or a percent sign is refused,
/// because the next reader may decode once more.
fn check_web_path(path: &str, slashes: Slashes) -> Result<(), UriError> {
    let below = path.strip_prefix('/').ok_or(UriError::Path)?;
    let mut pieces = below.split('%');
    let mut decoded = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2).ok_or(UriError::Path)?;
        let byte = u8::from_str_radix(code, 16).map_err(|_| UriError::Path)?;
        let hexadecimal = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let own =
            slashes == Slashes::Encoded && byte.is_ascii_graphic() && !b".%\\".contains(&byte);
        let safe = own || byte == b' ' || !byte.is_ascii() || byte.is_ascii_alphanumeric();
        if !hexadecimal || !safe {
            return Err(UriError::Path);
        }
        let mark = byte.is_ascii() && !byte.is_ascii_alphanumeric() && byte != b'/';
        decoded.push(if mark { b'x' } else { byte });
        decoded.extend(rest.bytes());
    }
    // Letters of other scripts are letters; their points and slashes are neither.
    let decoded = String::from_utf8(decoded).map_err(|_| UriError::Path)?;
    if decoded
        .chars()
        .any(|letter| !letter.is_ascii() && !letter.is_alphanumeric())
    {
        return Err(UriError::Path);
    }
    check_path(&decoded.replace(|letter: char| !letter.is_ascii(), "x"))
}

impl Host {
    /// Reads a host that stands alone: a name, or an address without brackets.
    ///
    /// # Errors
    /// [`UriError::Host`]
    pub fn parse(text: &str) -> Result<Self, UriError> {
        match text.parse::<Ipv6Addr>() {
            Ok(address) => Ok(Self::Address(address.into())),
            Err(_) => name_or_address(text),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        match &self.host {
            Host::Address(IpAddr::V6(address)) => {
                write!(formatter, "{scheme}://[{address}]:{}", self.port)
            }
            host => write!(formatter, "{scheme}://{host}:{}", self.port),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => formatter.write_str(name),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

#[cfg(test)]
#[path = "uri_tests.rs"]
mod tests;
