//! Files of dataset repositories of a hub that speaks like Hugging Face's.
//!
//! The revision is looked up once; everything after that is of its commit, which cannot change.

use std::fmt::Write as _;

use graftwork_contract::remote as entry;
use graftwork_contract::uri::{Endpoint, WebUri};
use graftwork_objects::client::Client;
use http::header::{ETAG, LINK};
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::problem::{Problem, of_connection};
use super::web::{self, Location, header, pieces};
use super::{Answer, Listed, Matching};
use crate::failure::Failure;
use crate::secret::Mounted;

/// Longest answer about files, in bytes.
const MAXIMUM_ANSWER_BYTES: usize = 32 << 20;
/// Most pages of a list: a hub may lead on without an end.
const MAXIMUM_PAGES: usize = 10_000;

/// A repository, and what of it the source names.
pub struct Repository {
    client: Client,
    endpoint: Endpoint,
    authorization: Option<HeaderValue>,
    name: String,
    commit: String,
    path: String,
}

impl Repository {
    /// A repository whose commit is not known yet.
    ///
    /// # Errors
    /// A Secret that can't be used.
    pub fn open(
        client: Client,
        secret: &Mounted<'_>,
        endpoint: Endpoint,
        name: String,
        path: String,
    ) -> Result<Self, Failure> {
        if !endpoint.is_encrypted {
            return Err(Failure::bad_config("dataSources.hubEndpoint is not https"));
        }
        let token = secret.text(entry::HUB_TOKEN)?;
        let authorization = token.map(|token| header(secret, &format!("Bearer {token}")));
        Ok(Self {
            client,
            endpoint,
            authorization: authorization.transpose()?,
            name,
            commit: String::new(),
            path,
        })
    }

    /// The same at the commit that a branch, a tag or a commit's name means now.
    pub async fn pinned(self, revision: &str) -> Result<Self, Problem> {
        let path = format!("/api/datasets/{}/revision/{revision}", self.name);
        let (said, _) = self.ask(self.at(path, None)).await?;
        let commit = said.get("sha").and_then(Value::as_str).unwrap_or_default();
        let is_commit = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_commit {
            let words = "the hub names no commit of this revision";
            return Err(Problem::Away(words.to_owned()));
        }
        let commit = commit.to_owned();
        Ok(Self { commit, ..self })
    }

    /// The URI of the commit, and the path or pattern.
    pub fn root(&self) -> (String, &str) {
        (format!("hf://{}@{}/", self.name, self.commit), &self.path)
    }

    /// Shows every file of the pattern's folder.
    pub async fn list(&self, matching: &mut Matching) -> Result<(), Problem> {
        let mut path = format!("/api/datasets/{}/tree/{}", self.name, self.commit);
        let folder = matching.folder();
        if !folder.is_empty() {
            path = format!("{path}/{}", encoded(&folder));
        }
        let mut page = self.at(path, Some("recursive=true".to_owned()));
        for _ in 0..MAXIMUM_PAGES {
            let (said, more) = self.ask(page).await?;
            for entry in said.as_array().into_iter().flatten() {
                let text = |pointer| entry.pointer(pointer).and_then(Value::as_str);
                if let (Some("file"), Some(path)) = (text("/type"), text("/path")) {
                    let state = text("/lfs/oid").or_else(|| text("/oid"));
                    matching.see(path, state.map(str::to_owned))?;
                }
            }
            match more {
                Some(more) => page = more,
                None => return Ok(()),
            }
        }
        let words = format!("the hub lists more than {MAXIMUM_PAGES} pages; name a folder");
        Err(Problem::Wrong(words))
    }

    /// Asks for a file of the commit.
    pub async fn get(&self, listed: &Listed) -> Result<Answer, Problem> {
        let path = format!(
            "/datasets/{}/resolve/{}/{}",
            self.name,
            self.commit,
            encoded(&listed.path)
        );
        let answer = self.get_at(self.at(path, None)).await?;
        let state = listed.etag.clone();
        Ok(Answer {
            etag: state.or_else(|| web::text(answer.headers(), ETAG)),
            pieces: pieces(answer),
        })
    }

    fn at(&self, path: String, query: Option<String>) -> Location {
        Location {
            uri: WebUri {
                host: self.endpoint.host.clone(),
                port: self.endpoint.port,
                path,
            },
            query,
        }
    }

    /// Only the hub itself gets the token, wherever its pages lead.
    async fn get_at(&self, at: Location) -> Result<Response<Incoming>, Problem> {
        let is_hub = at.uri.endpoint() == self.endpoint;
        let authorization = self.authorization.as_ref().filter(|_| is_hub);
        web::get(&self.client, at, authorization).await
    }

    /// The hub's answer as JSON, and where the rest of it is.
    async fn ask(&self, at: Location) -> Result<(Value, Option<Location>), Problem> {
        let here = Location {
            uri: at.uri.clone(),
            query: None,
        };
        let answer = self.get_at(at).await?;
        let more = web::text(answer.headers(), LINK);
        let more = more.as_deref().and_then(following);
        let more = more.map(|words| here.moved(words)).transpose()?;
        let body = Limited::new(answer.into_body(), MAXIMUM_ANSWER_BYTES);
        let bytes = body
            .collect()
            .await
            .map_err(|error| of_connection(error.as_ref()))?
            .to_bytes();
        let said = serde_json::from_slice(&bytes)
            .map_err(|_| Problem::Away("the hub's answer is no JSON".to_owned()))?;
        Ok((said, more))
    }
}

/// The next page by a `Link` header (RFC 8288).
fn following(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let mut parameters = parameters.split(';').map(str::trim);
        parameters
            .any(|it| it == "rel=\"next\"" || it == "rel=next")
            .then_some(target)
    })
}

/// A path as a URI has it: of everything but letters, digits and what is safe, the bytes in percent signs.
fn encoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing into a text does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_repository_is_encoded_and_the_next_page_is_found() {
        assert_eq!(encoded("data/é b?.csv"), "data/%C3%A9%20b%3F.csv");
        let header = r#"<https://huggingface.co/api/x?cursor=a%3D%3D&recursive=true>; rel="next""#;
        let next = "https://huggingface.co/api/x?cursor=a%3D%3D&recursive=true";
        assert_eq!(following(header), Some(next));
        assert_eq!(following(r#"<https://a/b>; rel="prev""#), None);
        assert_eq!(following("nonsense"), None);
    }
}
