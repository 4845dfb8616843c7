//! Buckets of S3, Google Cloud Storage and Azure Blob Storage.
//!
//! Who asks: what the Secret says; else the identity that the pod's environment has (IRSA on AWS, workload
//! identity on Azure, the metadata service on Google where the installation allows it); else nobody, which
//! is enough for public buckets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use graftwork_contract::remote as entry;
use graftwork_contract::uri::{Endpoint, Host, ObjectStore as Kind};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ObjectStore, RetryConfig};

use crate::client::Client;

/// How often a request is tried again.
const RETRIES: usize = 4;
/// Time for that.
const RETRY_TIME: Duration = Duration::from_secs(60);
/// Where Google hands out credentials.
const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// The entries of a Secret, and how it is said that they can't be used.
pub trait Credentials {
    /// Why a bucket can't be opened.
    type Error;

    /// An entry; none where it is not there or empty.
    ///
    /// # Errors
    /// One that can't be read.
    fn text(&self, name: &str) -> Result<Option<String>, Self::Error>;

    /// The Secret can't be used, for this problem.
    fn bad(&self, problem: &str) -> Self::Error;
}

/// A bucket. Nothing is asked yet.
///
/// # Errors
/// A Secret that can't be used.
pub fn open<C: Credentials>(
    client: &Client,
    secret: &C,
    kind: Kind,
    bucket: &str,
) -> Result<Arc<dyn ObjectStore>, C::Error> {
    match kind {
        Kind::S3 => s3(client, secret, bucket),
        Kind::Gs => gs(client, secret, bucket),
        Kind::Az => az(client, secret, bucket),
    }
}

/// The scheme of a kind's URIs.
pub const fn scheme(kind: Kind) -> &'static str {
    match kind {
        Kind::S3 => "s3",
        Kind::Gs => "gs",
        Kind::Az => "az",
    }
}

/// A state's name without its quotes, which Azure's lists leave out.
pub fn bare(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}

fn retry() -> RetryConfig {
    RetryConfig {
        max_retries: RETRIES,
        retry_timeout: RETRY_TIME,
        ..RetryConfig::default()
    }
}

fn s3<C: Credentials>(
    client: &Client,
    secret: &C,
    bucket: &str,
) -> Result<Arc<dyn ObjectStore>, C::Error> {
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

fn endpoint<C: Credentials>(secret: &C, name: &str) -> Result<Option<Endpoint>, C::Error> {
    let Some(text) = secret.text(name)? else {
        return Ok(None);
    };
    let read = Endpoint::parse(&text);
    read.map(Some)
        .map_err(|error| secret.bad(&format!("{name} {error}")))
}

fn gs<C: Credentials>(
    client: &Client,
    secret: &C,
    bucket: &str,
) -> Result<Arc<dyn ObjectStore>, C::Error> {
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

fn az<C: Credentials>(
    client: &Client,
    secret: &C,
    container: &str,
) -> Result<Arc<dyn ObjectStore>, C::Error> {
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
            "a container belongs to an account; name it in the key {} of the Secret",
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
