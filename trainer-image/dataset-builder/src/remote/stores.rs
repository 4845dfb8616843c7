//! Objects in buckets of S3, Google Cloud Storage and Azure Blob Storage.
//!
//! Who asks: what the Secret says; else the identity that the pod's environment has (IRSA on AWS, workload
//! identity on Azure, the metadata service on Google where the installation allows it); else nobody, which
//! is enough for public buckets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use graftwork_contract::remote as entry;
use graftwork_contract::uri::{Endpoint, Host, ObjectStore as Kind};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, RetryConfig};
use tokio::time::timeout;

use super::client::Client;
use super::problem::{Problem, of_store};
use super::{Answer, Listed, Matching};
use crate::failure::Failure;
use crate::secret::Mounted;

/// How often a request is tried again within one attempt at a build.
const RETRIES: usize = 4;
/// Time for that.
const RETRY_TIME: Duration = Duration::from_secs(60);
/// Time for one page of a list, with what is tried again.
const PAGE_TIME: Duration = Duration::from_secs(180);
/// Where Google hands out credentials.
const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// A bucket, and what of it the source names.
pub struct Bucket {
    store: Arc<dyn ObjectStore>,
    root: String,
    key: String,
}

impl Bucket {
    /// A bucket. Nothing is asked yet.
    ///
    /// # Errors
    /// A Secret that can't be used.
    pub fn open(
        client: &Client,
        secret: &Mounted<'_>,
        kind: Kind,
        bucket: String,
        key: String,
    ) -> Result<Self, Failure> {
        let (scheme, store) = match kind {
            Kind::S3 => ("s3", s3(client, secret, &bucket)?),
            Kind::Gs => ("gs", gs(client, secret, &bucket)?),
            Kind::Az => ("az", az(client, secret, &bucket)?),
        };
        Ok(Self {
            store,
            root: format!("{scheme}://{bucket}/"),
            key,
        })
    }

    /// The bucket's URI, and the key or pattern.
    pub fn root(&self) -> (String, &str) {
        (self.root.clone(), &self.key)
    }

    /// Shows every object of the pattern's folder.
    pub async fn list(&self, matching: &mut Matching) -> Result<(), Problem> {
        let folder = matching.folder();
        let folder = if folder.is_empty() {
            None
        } else {
            Some(path(&folder)?)
        };
        let mut objects = self.store.list(folder.as_ref());
        loop {
            let next = timeout(PAGE_TIME, objects.next()).await.map_err(|_| {
                Problem::Away(format!(
                    "the store lists nothing for {} s",
                    PAGE_TIME.as_secs()
                ))
            })?;
            match next {
                None => return Ok(()),
                Some(Ok(object)) => {
                    // A server may not know the state of what was laid there behind its back.
                    let etag = object.e_tag.filter(|etag| !bare(etag).is_empty());
                    matching.see(object.location.as_ref(), etag)?;
                }
                Some(Err(error)) => return Err(of_store(&error)),
            }
        }
    }

    /// Asks for an object, in the state that it was listed in.
    pub async fn get(&self, listed: &Listed) -> Result<Answer, Problem> {
        let options = GetOptions {
            if_match: listed.etag.as_deref().map(quoted),
            ..GetOptions::default()
        };
        let answer = self
            .store
            .get_opts(&path(&listed.path)?, options)
            .await
            .map_err(|error| of_store(&error))?;
        // Not every server looks at what was asked for.
        let (before, now) = (&listed.etag, &answer.meta.e_tag);
        if before.is_some() && before.as_deref().map(bare) != now.as_deref().map(bare) {
            return Err(Problem::Changed);
        }
        let etag = answer.meta.e_tag.clone();
        Ok(Answer {
            etag: etag.filter(|etag| !bare(etag).is_empty()),
            pieces: answer
                .into_stream()
                .map(|piece| piece.map_err(|error| of_store(&error)))
                .boxed(),
        })
    }
}

/// A state's name without its quotes, which Azure's lists leave out.
fn bare(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

fn quoted(etag: &str) -> String {
    if etag.ends_with('"') {
        return etag.to_owned();
    }
    format!("\"{etag}\"")
}

fn path(key: &str) -> Result<Path, Problem> {
    Path::parse(key).map_err(|_| Problem::Wrong(format!("{key:?} is no key")))
}

fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: RETRIES,
        retry_timeout: RETRY_TIME,
        ..RetryConfig::default()
    }
}

fn s3(
    client: &Client,
    secret: &Mounted<'_>,
    bucket: &str,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let key_id = secret.text(entry::S3_KEY_ID)?;
    let key = secret.text(entry::S3_KEY)?;
    let mut builder = match (key_id, key) {
        (Some(key_id), Some(key)) => {
            let builder = AmazonS3Builder::new()
                .with_access_key_id(key_id)
                .with_secret_access_key(key);
            match secret.text(entry::S3_TOKEN)? {
                Some(token) => builder.with_token(token),
                None => builder,
            }
        }
        (None, None) => {
            let builder = AmazonS3Builder::from_env();
            let identities = [
                AmazonS3ConfigKey::WebIdentityTokenFile,
                AmazonS3ConfigKey::ContainerCredentialsRelativeUri,
                AmazonS3ConfigKey::ContainerCredentialsFullUri,
            ];
            let has_one = identities
                .iter()
                .any(|identity| builder.get_config_value(identity).is_some());
            builder.with_skip_signature(!has_one)
        }
        _ => {
            let problem = format!("has only one of {} and {}", entry::S3_KEY_ID, entry::S3_KEY);
            return Err(secret.bad(&problem));
        }
    };
    if let Some(region) = secret.text(entry::S3_REGION)? {
        builder = builder.with_region(region);
    }
    let is_virtual = match secret.text(entry::S3_STYLE)?.as_deref() {
        None | Some("path") => false,
        Some("virtual") => true,
        Some(_) => {
            let problem = format!("{} is neither path nor virtual", entry::S3_STYLE);
            return Err(secret.bad(&problem));
        }
    };
    if let Some(endpoint) = endpoint(secret, entry::S3_ENDPOINT)? {
        builder = builder.with_endpoint(place(&endpoint, is_virtual.then_some(bucket)));
    }
    let store = builder
        .with_virtual_hosted_style_request(is_virtual)
        .with_bucket_name(bucket)
        .with_retry(retry())
        .with_http_connector(client.clone())
        .build()
        .map_err(|_| secret.bad("its entries can't be used together"))?;
    Ok(Arc::new(store))
}

/// An endpoint as the library takes it, with the bucket before the host where it belongs there.
fn place(endpoint: &Endpoint, bucket: Option<&str>) -> String {
    match (bucket, &endpoint.host) {
        (Some(bucket), Host::Name(name)) => Endpoint {
            host: Host::Name(format!("{bucket}.{name}")),
            ..endpoint.clone()
        }
        .to_string(),
        _ => endpoint.to_string(),
    }
}

fn endpoint(secret: &Mounted<'_>, name: &str) -> Result<Option<Endpoint>, Failure> {
    let Some(text) = secret.text(name)? else {
        return Ok(None);
    };
    let read = Endpoint::parse(&text);
    read.map(Some)
        .map_err(|error| secret.bad(&format!("{name} {error}")))
}

fn gs(
    client: &Client,
    secret: &Mounted<'_>,
    bucket: &str,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_retry(retry())
        .with_http_connector(client.clone());
    let builder = match secret.text(entry::GS_KEY)? {
        Some(key) => builder.with_service_account_key(key),
        None if client.may_reach(&Host::Address(METADATA)) => builder,
        None => builder.with_skip_signature(true),
    };
    let store = builder.build().map_err(|_| {
        secret.bad(&format!(
            "{} is no JSON key of a service account",
            entry::GS_KEY
        ))
    })?;
    Ok(Arc::new(store))
}

fn az(
    client: &Client,
    secret: &Mounted<'_>,
    container: &str,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let key = secret.text(entry::AZ_KEY)?;
    let signature = secret.text(entry::AZ_SAS)?;
    let principal = (
        secret.text(entry::AZ_CLIENT_ID)?,
        secret.text(entry::AZ_CLIENT_SECRET)?,
        secret.text(entry::AZ_TENANT)?,
    );
    let builder = match (key, signature, principal) {
        (Some(key), ..) => MicrosoftAzureBuilder::new().with_access_key(key),
        (None, Some(signature), _) => {
            MicrosoftAzureBuilder::new().with_config(AzureConfigKey::SasKey, signature)
        }
        (None, None, (Some(id), Some(key), Some(tenant))) => {
            MicrosoftAzureBuilder::new().with_client_secret_authorization(id, key, tenant)
        }
        (None, None, (None, None, None)) => {
            let builder = MicrosoftAzureBuilder::from_env();
            let identity = builder.get_config_value(&AzureConfigKey::FederatedTokenFile);
            builder.with_skip_signature(identity.is_none())
        }
        _ => {
            return Err(secret.bad(&format!(
                "has not all of {}, {} and {}",
                entry::AZ_CLIENT_ID,
                entry::AZ_CLIENT_SECRET,
                entry::AZ_TENANT
            )));
        }
    };
    let builder = match secret.text(entry::AZ_ACCOUNT)? {
        Some(account) if is_account(&account) => builder.with_account(account),
        Some(_) => {
            return Err(secret.bad(&format!(
                "{} is not 3 to 24 small letters and digits",
                entry::AZ_ACCOUNT
            )));
        }
        None => builder,
    };
    if builder
        .get_config_value(&AzureConfigKey::AccountName)
        .is_none()
    {
        return Err(secret.bad(&format!(
            "a container belongs to an account; name it in the key {} of a Secret in secretRef",
            entry::AZ_ACCOUNT
        )));
    }
    let builder = match endpoint(secret, entry::AZ_ENDPOINT)? {
        Some(endpoint) => builder.with_endpoint(endpoint.to_string()),
        None => builder,
    };
    let store = builder
        .with_container_name(container)
        .with_retry(retry())
        .with_http_connector(client.clone())
        .build()
        .map_err(|_| secret.bad("its entries can't be used together"))?;
    Ok(Arc::new(store))
}

fn is_account(account: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    (3..=24).contains(&account.len()) && account.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_stands_before_its_host_only_where_that_is_a_name() {
        let at = |text: &str, bucket| place(&Endpoint::parse(text).unwrap(), bucket);
        let name = "https://s3.example.com";
        assert_eq!(at(name, None), "https://s3.example.com:443");
        assert_eq!(
            at(name, Some("corpus")),
            "https://corpus.s3.example.com:443"
        );
        assert_eq!(
            at("http://10.1.2.3:9000", Some("corpus")),
            "http://10.1.2.3:9000"
        );
    }

    #[test]
    fn a_state_is_the_same_with_quotes_and_without() {
        for etag in ["\"0x8D\"", "0x8D", "W/\"0x8D\""] {
            assert_eq!(bare(etag), "0x8D");
        }
        assert_eq!(quoted("0x8D"), "\"0x8D\"");
        assert_eq!(quoted("\"0x8D\""), "\"0x8D\"");
    }

    #[test]
    fn an_account_is_a_part_of_a_host_and_nothing_else() {
        for (account, good) in [
            ("corpus01", true),
            ("ab", false),
            ("evil.com/", false),
            ("a@b", false),
            ("Corpus", false),
        ] {
            assert_eq!(is_account(account), good, "{account}");
        }
    }
}
