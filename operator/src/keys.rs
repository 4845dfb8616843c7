//! The key that signs calls: a Secret in the operator's own namespace, made at first start.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use graftwork_contract::signing::print_key;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::api::{self, ApiError, Class};
use crate::lease::Term;

/// Name of the Secret.
pub const SECRET: &str = "graftwork-operator-signing-key";
/// Its key: 64 hexadecimal digits of an Ed25519 seed.
const SEED: &str = "seed";
/// Its key during a rotation: 64 hexadecimal digits of a public key that is trusted as well.
const ALSO_TRUSTED: &str = "alsoTrusted";

/// The key, and the public keys that pods are given.
#[derive(Clone)]
pub struct Keys {
    /// Signs.
    pub signing: SigningKey,
    /// Trusted by pods: ours, and another one during a rotation.
    pub public: Vec<String>,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The API server.
    #[error("secret {SECRET}: {0}")]
    Api(#[from] ApiError),
    /// Not a key.
    #[error("secret {SECRET}: key {key} is not 64 hexadecimal digits")]
    Invalid {
        /// Which entry.
        key: &'static str,
    },
    /// Somebody changes the Secret all the time.
    #[error("secret {SECRET} is changed by somebody else all the time")]
    Contended,
}

/// Reads the key, or makes one where there is none.
///
/// # Errors
/// See [`KeyError`].
pub async fn load_or_create(
    client: kube::Client,
    namespace: &str,
    term: &Term,
) -> Result<Keys, KeyError> {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    for _ in 0..3 {
        let found = api::call(secrets.get_opt(SECRET)).await?;
        if let Some(keys) = found.as_ref().map(read).transpose()?.flatten() {
            return Ok(keys);
        }
        let seed: [u8; 32] = rand::random();
        let mut secret = found.clone().unwrap_or_else(|| Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        });
        secret
            .data
            .get_or_insert_default()
            .insert(SEED.to_owned(), ByteString(hex_of(&seed).into_bytes()));
        let parameters = PostParams::default();
        let answer = match found {
            // The chart makes it empty, so that no rule has to allow the creation of Secrets.
            Some(_) => {
                term.write(secrets.replace(SECRET, &parameters, &secret))
                    .await
            }
            None => term.write(secrets.create(&parameters, &secret)).await,
        };
        match answer {
            Ok(_) => tracing::info!(secret = SECRET, "made the key that signs calls"),
            Err(error) if error.class() == Class::Conflict => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(KeyError::Contended)
}

/// Reads the key; one that is used by this process alone where there is none, which no pod trusts.
///
/// # Errors
/// See [`KeyError`].
pub async fn load_or_pretend(client: kube::Client, namespace: &str) -> Result<Keys, KeyError> {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let found = api::call(secrets.get_opt(SECRET)).await?;
    let keys = found.as_ref().map(read).transpose()?.flatten();
    Ok(keys.unwrap_or_else(|| from_seed(rand::random(), None)))
}

fn read(secret: &Secret) -> Result<Option<Keys>, KeyError> {
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let Some(seed) = data.get(SEED) else {
        return Ok(None);
    };
    let seed = read_hex(seed).ok_or(KeyError::Invalid { key: SEED })?;
    let other = data
        .get(ALSO_TRUSTED)
        .map(|other| read_hex(other).ok_or(KeyError::Invalid { key: ALSO_TRUSTED }))
        .transpose()?;
    Ok(Some(from_seed(seed, other)))
}

/// Keys from a seed and another public key that is trusted as well.
pub fn from_seed(seed: [u8; 32], other: Option<[u8; 32]>) -> Keys {
    let signing = SigningKey::from_bytes(&seed);
    let mut public = vec![print_key(&signing.verifying_key())];
    public.extend(other.map(|other| hex_of(&other)));
    Keys { signing, public }
}

fn hex_of(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read_hex(text: &ByteString) -> Option<[u8; 32]> {
    let text = std::str::from_utf8(&text.0).ok()?.trim();
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(entries: &[(&str, &str)]) -> Secret {
        Secret {
            data: Some(
                entries
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    #[test]
    fn a_key_is_read_back() {
        let seed = "07".repeat(32);
        let keys = read(&secret(&[(SEED, &seed)])).unwrap().unwrap();
        assert_eq!(keys.signing.to_bytes(), [7; 32]);
        assert_eq!(keys.public, [print_key(&keys.signing.verifying_key())]);
        let other = "aa".repeat(32);
        let keys = read(&secret(&[(SEED, &seed), (ALSO_TRUSTED, &other)]))
            .unwrap()
            .unwrap();
        assert_eq!(keys.public.len(), 2);
    }

    #[test]
    fn an_empty_secret_has_no_key_and_a_broken_one_is_an_error() {
        assert!(read(&Secret::default()).unwrap().is_none());
        for broken in ["", "07", &"zz".repeat(32), &"é".repeat(32)] {
            assert!(read(&secret(&[(SEED, broken)])).is_err(), "{broken}");
        }
    }
}
