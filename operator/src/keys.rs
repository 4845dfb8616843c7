//! The key that signs calls: a Secret in the operator's own namespace, made at first start.

use std::collections::BTreeMap;

use ed25519_dalek::SigningKey;
use graftwork_contract::signing::print_key;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::api::{self, ApiError, Class};
use crate::lease::Term;
use crate::metrics::Metrics;

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
    /// The key can't be written.
    #[error(
        "secret {namespace}/{SECRET} has no key, and the operator may not {verb} it: {source}; \
         allow that (the chart's Role does), or put 64 hexadecimal digits into its entry {SEED}"
    )]
    Refused {
        /// Namespace of the Secret.
        namespace: String,
        /// What was tried.
        verb: &'static str,
        /// The API server's words.
        source: ApiError,
    },
    /// Not a key. It is not replaced: it may be somebody's slip while keys are rotated, and pods
    /// trust the key that was meant.
    #[error(
        "secret {namespace}/{SECRET}: entry {key} has to be 64 hexadecimal digits and has {length} bytes \
         of something else: correct the entry, or delete the Secret, and a new key is made at the next start"
    )]
    Invalid {
        /// Namespace of the Secret.
        namespace: String,
        /// Which entry.
        key: &'static str,
        /// Bytes of the entry.
        length: usize,
    },
    /// Somebody changes the Secret all the time.
    #[error("secret {SECRET} is changed by somebody else all the time")]
    Contended,
}

/// Reads the key, or makes one where there is none or an empty one.
///
/// # Errors
/// See [`KeyError`].
pub async fn load_or_create(
    client: kube::Client,
    namespace: &str,
    term: &Term,
    metrics: &Metrics,
) -> Result<Keys, KeyError> {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    for _ in 0..3 {
        let found = api::call(secrets.get_opt(SECRET)).await?;
        if let Some(keys) = read(found.as_ref(), namespace)? {
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
        let (verb, answer) = match found {
            // Somebody keeps the Secret in Git without what is in it, or emptied it.
            Some(_) => {
                let write = secrets.replace(SECRET, &parameters, &secret);
                ("update", term.write(write).await)
            }
            None => {
                let write = secrets.create(&parameters, &secret);
                ("create", term.write(write).await)
            }
        };
        metrics.wrote("Secret", verb, answer.as_ref().err());
        match answer {
            Ok(_) => tracing::info!(secret = SECRET, "made the key that signs calls"),
            Err(error) if error.class() == Class::Conflict => {}
            Err(error) if error.class() == Class::Invalid => {
                return Err(KeyError::Refused {
                    namespace: namespace.to_owned(),
                    verb,
                    source: error,
                });
            }
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
    let keys = read(found.as_ref(), namespace)?;
    Ok(keys.unwrap_or_else(|| from_seed(rand::random(), None)))
}

/// Whether the Secret may have a key: a leader makes one before anything else, so that without one nobody
/// has led here yet, or somebody deleted it. What can't be looked at may be there.
pub async fn may_exist(secrets: &Api<Secret>) -> bool {
    let found = api::call(secrets.get_opt(SECRET)).await;
    !found.is_ok_and(|found| matches!(read(found.as_ref(), ""), Ok(None)))
}

fn read(secret: Option<&Secret>, namespace: &str) -> Result<Option<Keys>, KeyError> {
    let empty = BTreeMap::new();
    let data = secret.and_then(|secret| secret.data.as_ref());
    let entry = |key: &'static str| {
        let text = data.unwrap_or(&empty).get(key);
        // An entry without anything in it is as good as none.
        let text = text.filter(|text| !text.0.trim_ascii().is_empty());
        text.map(|text| {
            read_hex(text).ok_or_else(|| KeyError::Invalid {
                namespace: namespace.to_owned(),
                key,
                length: text.0.len(),
            })
        })
        .transpose()
    };
    let other = entry(ALSO_TRUSTED)?;
    Ok(entry(SEED)?.map(|seed| from_seed(seed, other)))
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
        let found = secret(&[(SEED, &seed), (ALSO_TRUSTED, "")]);
        let keys = read(Some(&found), "ns").unwrap().unwrap();
        assert_eq!(keys.signing.to_bytes(), [7; 32]);
        assert_eq!(keys.public, [print_key(&keys.signing.verifying_key())]);
        let other = "aa".repeat(32);
        let found = secret(&[(SEED, &seed), (ALSO_TRUSTED, &other)]);
        let keys = read(Some(&found), "ns").unwrap().unwrap();
        assert_eq!(keys.public.len(), 2);
    }

    #[test]
    fn an_empty_secret_has_no_key() {
        assert!(read(None, "ns").unwrap().is_none());
        assert!(read(Some(&Secret::default()), "ns").unwrap().is_none());
        for empty in ["", "\n"] {
            let found = secret(&[(SEED, empty)]);
            assert!(read(Some(&found), "ns").unwrap().is_none());
        }
    }

    #[test]
    fn a_malformed_key_is_an_error_that_names_the_entry_and_the_remedy() {
        for broken in ["07", &"zz".repeat(32), &"é".repeat(32)] {
            for key in [SEED, ALSO_TRUSTED] {
                let found = secret(&[(key, broken)]);
                let message = match read(Some(&found), "ns") {
                    Ok(_) => panic!("{broken} was taken"),
                    Err(error) => error.to_string(),
                };
                for part in ["ns/graftwork-operator-signing-key", key, "64", "delete"] {
                    assert!(message.contains(part), "{message}");
                }
            }
        }
    }
}
