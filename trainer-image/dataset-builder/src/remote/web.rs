//! Files of web servers. Redirects are followed by hand: each is read and checked as the first URI was, and
//! credentials go to the first server alone.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::StreamExt as _;
use graftwork_contract::address::{MAXIMUM_REDIRECTS, Refused};
use graftwork_contract::remote as entry;
use graftwork_contract::uri::WebUri;
use graftwork_objects::client::Client;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, ETAG, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use object_store::client::HttpRequestBody;

use super::Answer;
use super::body::Pieces;
use super::problem::{Problem, of_connection, of_status};
use crate::failure::Failure;
use crate::secret::Mounted;

/// Who we say we are.
pub const US: &str = concat!("graftwork/", env!("CARGO_PKG_VERSION"));

/// A file on a web server.
pub struct Site {
    client: Client,
    uri: WebUri,
    authorization: Option<HeaderValue>,
}

impl Site {
    /// A file. Nothing is asked yet.
    ///
    /// # Errors
    /// A Secret that can't be used.
    pub fn open(client: Client, secret: &Mounted<'_>, uri: WebUri) -> Result<Self, Failure> {
        let user = secret.text(entry::WEB_USER)?;
        let password = secret.text(entry::WEB_PASSWORD)?;
        let token = secret.text(entry::WEB_TOKEN)?;
        let words = match (token, user, password) {
            (Some(token), ..) => Some(format!("Bearer {token}")),
            (None, Some(user), password) => {
                let pair = format!("{user}:{}", password.unwrap_or_default());
                Some(format!("Basic {}", BASE64_STANDARD.encode(pair)))
            }
            (None, None, Some(_)) => {
                let problem = format!("has {} and no {}", entry::WEB_PASSWORD, entry::WEB_USER);
                return Err(secret.bad(&problem));
            }
            (None, None, None) => None,
        };
        Ok(Self {
            client,
            uri,
            authorization: words.map(|words| header(secret, &words)).transpose()?,
        })
    }

    /// The URI up to the path, and the path.
    pub fn root(&self) -> (String, &str) {
        let endpoint = self.uri.endpoint().to_string();
        let usual = endpoint.strip_suffix(":443").unwrap_or(&endpoint);
        (usual.to_owned(), &self.uri.path)
    }

    /// Asks for the file.
    pub async fn get(&self) -> Result<Answer, Problem> {
        let at = Location {
            uri: self.uri.clone(),
            query: None,
        };
        let answer = get(&self.client, at, self.authorization.as_ref()).await?;
        Ok(Answer {
            etag: text(answer.headers(), ETAG),
            pieces: pieces(answer),
        })
    }
}

/// What is asked for.
pub struct Location {
    /// Where.
    pub uri: WebUri,
    /// What stands behind the question mark.
    pub query: Option<String>,
}

impl Location {
    fn text(&self) -> String {
        let (endpoint, path) = (self.uri.endpoint(), &self.uri.path);
        match &self.query {
            Some(query) => format!("{endpoint}{path}?{query}"),
            None => format!("{endpoint}{path}"),
        }
    }

    /// Where a server's own words lead from here.
    ///
    /// # Errors
    /// Words that lead to nothing that we read.
    pub fn moved(&self, words: &str) -> Result<Self, Problem> {
        let redirect = self
            .uri
            .redirected(words)
            .map_err(|error| Problem::Denied(format!("it redirects to what {error}")))?;
        Ok(Self {
            uri: redirect.uri,
            query: redirect.query,
        })
    }
}

/// A header that no log prints.
pub fn header(secret: &Mounted<'_>, words: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(words)
        .map_err(|_| secret.bad("its entries have a character that a header can't have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The answer to a GET, after its redirects.
///
/// # Errors
/// A server that does not answer or refuses, or that leads where nobody may go.
pub async fn get(
    client: &Client,
    first: Location,
    authorization: Option<&HeaderValue>,
) -> Result<Response<Incoming>, Problem> {
    let home = first.uri.endpoint();
    let mut at = first;
    for _ in 0..=MAXIMUM_REDIRECTS {
        let mut request = Request::get(at.text())
            .header(USER_AGENT, US)
            // What is packed is unpacked by what it is, and hashed as it came.
            .header(ACCEPT_ENCODING, "identity");
        if at.uri.endpoint() == home
            && let Some(words) = authorization
        {
            request = request.header(AUTHORIZATION, words.clone());
        }
        let request = request
            .body(HttpRequestBody::empty())
            .map_err(|_| Problem::Denied("it leads to what is no URI".to_owned()))?;
        let answer = client
            .send(request)
            .await
            .map_err(|error| of_connection(&error))?;
        match answer.status().as_u16() {
            200 => return Ok(answer),
            301 | 302 | 303 | 307 | 308 => {
                let words = text(answer.headers(), LOCATION)
                    .ok_or_else(|| Problem::Away("the server redirects to nothing".to_owned()))?;
                at = at.moved(&words)?;
            }
            status => return Err(of_status(status, None)),
        }
    }
    Err(Problem::Denied(Refused::Redirects.to_string()))
}

/// A header as text.
pub fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned())
}

/// The pieces of an answer.
pub fn pieces(answer: Response<Incoming>) -> Pieces {
    answer
        .into_body()
        .into_data_stream()
        .map(|piece| piece.map_err(|error| of_connection(&error)))
        .boxed()
}
