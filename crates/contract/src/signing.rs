//! Signed calls: what the operator sends to a pod when something is to change.
//!
//! Signed are the method, the hash of the body, the receiving pod's UID, the owning object's UID,
//! the expiry and the `(lease epoch, generation)` pair. A pod that can merely reach the port can't
//! change anything, a call can't be replayed to another pod or after its expiry, and an old leader
//! can't undo a newer one's work. Each push has a pair of its own; one that comes again with the pair
//! that was admitted last is the very same call, and its receiver does nothing.

use ed25519_dalek::{Signature, Signer as _, SigningKey, Verifier as _, VerifyingKey};

use crate::digest::PartsHasher;
use crate::proto::call::v1::SignedCall;

/// How long a signed call is valid, in seconds.
pub const VALID_SECONDS: u64 = 60;

/// Who may call whom, and in which order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressee {
    /// UID of the pod that is called.
    pub pod_uid: String,
    /// UID of the object that owns the pod (a namespace's UID for keepers).
    pub owner_uid: String,
}

/// The order of pushes: a receiver refuses a lower pair, and another call with the same one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// Number of the leader's term (the Lease's transitions).
    pub lease_epoch: u64,
    /// Generation of what is pushed, growing within a term.
    pub generation: u64,
}

impl From<&SignedCall> for Fence {
    fn from(call: &SignedCall) -> Self {
        Self {
            lease_epoch: call.lease_epoch,
            generation: call.generation,
        }
    }
}

/// Whether an admitted call was here before.
#[must_use = "a call that comes again must have no effect"]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Its pair is above every one before.
    New,
    /// It is the very call that was admitted last, sent again.
    Again,
}

/// Why a call was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The envelope names another method.
    #[error("call is signed for method {got:?}, this is {expected:?}")]
    Method {
        /// The method in the envelope.
        got: String,
        /// The method that was called.
        expected: String,
    },
    /// The envelope names another pod.
    #[error("call is signed for pod {got:?}, this pod is {expected:?}")]
    Pod {
        /// The pod in the envelope.
        got: String,
        /// This pod.
        expected: String,
    },
    /// The envelope names another owner.
    #[error("call is signed for owner {got:?}, this pod belongs to {expected:?}")]
    Owner {
        /// The owner in the envelope.
        got: String,
        /// This pod's owner.
        expected: String,
    },
    /// The call came too late.
    #[error("call expired {late_seconds} s ago; check the clocks of operator and node")]
    Expired {
        /// Seconds since the expiry.
        late_seconds: u64,
    },
    /// No known key made the signature.
    #[error("signature was made by none of the {keys} known operator keys")]
    Signature {
        /// How many keys were tried.
        keys: usize,
    },
    /// A newer leader or a newer generation was here before, or another call with this pair.
    #[error("call has lease epoch {} and generation {}, this pod has already seen {} and {}", got.lease_epoch, got.generation, seen.lease_epoch, seen.generation)]
    Stale {
        /// The pair in the envelope.
        got: Fence,
        /// The highest pair seen.
        seen: Fence,
    },
}

fn signed_bytes(call: &SignedCall) -> Vec<u8> {
    let digest = PartsHasher::new()
        .part("graftwork/call/v1")
        .part(&call.method)
        .part(crate::Digest::of(&call.body).as_str())
        .part(&call.pod_uid)
        .part(&call.owner_uid)
        .part(call.expires_unix_seconds.to_le_bytes())
        .part(call.lease_epoch.to_le_bytes())
        .part(call.generation.to_le_bytes())
        .finish();
    digest.as_str().as_bytes().to_vec()
}

/// Signs `body` (an encoded request) for one method of one pod.
///
/// `now` is in seconds since the Unix epoch.
pub fn sign(
    key: &SigningKey,
    method: &str,
    body: Vec<u8>,
    to: &Addressee,
    fence: Fence,
    now: u64,
) -> SignedCall {
    let mut call = SignedCall {
        method: method.to_owned(),
        body,
        pod_uid: to.pod_uid.clone(),
        owner_uid: to.owner_uid.clone(),
        expires_unix_seconds: now + VALID_SECONDS,
        lease_epoch: fence.lease_epoch,
        generation: fence.generation,
        signature: Vec::new(),
    };
    call.signature = key.sign(&signed_bytes(&call)).to_bytes().to_vec();
    call
}

/// The receiving side: checks calls and remembers the highest fence per subject.
#[derive(Debug, Clone)]
pub struct Guard {
    me: Addressee,
    keys: Vec<VerifyingKey>,
    /// The call that was admitted last: its pair, the highest, and what was signed.
    seen: Option<(Fence, Vec<u8>)>,
}

/// A public key in the mounted configuration that is not one.
#[derive(Debug, thiserror::Error)]
#[error("operator public key {index} is not 64 hexadecimal digits of an Ed25519 key")]
pub struct InvalidKey {
    /// Position in the list.
    pub index: usize,
}

impl Guard {
    /// A guard for the pod `me` that trusts `keys` (64 hexadecimal digits each).
    ///
    /// # Errors
    /// Where a key can't be read.
    pub fn new(me: Addressee, keys: &[String]) -> Result<Self, InvalidKey> {
        Ok(Self {
            me,
            keys: parse_keys(keys)?,
            seen: None,
        })
    }

    /// Trusts `keys` from now on: the mounted configuration changed, as in a rotation. What was seen
    /// stays seen.
    ///
    /// # Errors
    /// Where a key can't be read; the old ones stay.
    pub fn replace_keys(&mut self, keys: &[String]) -> Result<(), InvalidKey> {
        self.keys = parse_keys(keys)?;
        Ok(())
    }

    /// Checks one call without its order; reads the body.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn verify<'a>(
        &self,
        call: &'a SignedCall,
        method: &str,
        now: u64,
    ) -> Result<&'a [u8], Refusal> {
        if call.method != method {
            return Err(Refusal::Method {
                got: call.method.clone(),
                expected: method.to_owned(),
            });
        }
        if call.pod_uid != self.me.pod_uid {
            return Err(Refusal::Pod {
                got: call.pod_uid.clone(),
                expected: self.me.pod_uid.clone(),
            });
        }
        if call.owner_uid != self.me.owner_uid {
            return Err(Refusal::Owner {
                got: call.owner_uid.clone(),
                expected: self.me.owner_uid.clone(),
            });
        }
        if call.expires_unix_seconds < now {
            return Err(Refusal::Expired {
                late_seconds: now - call.expires_unix_seconds,
            });
        }
        let bytes = signed_bytes(call);
        let genuine = Signature::from_slice(&call.signature).is_ok_and(|signature| {
            self.keys
                .iter()
                .any(|key| key.verify(&bytes, &signature).is_ok())
        });
        if genuine {
            Ok(&call.body)
        } else {
            Err(Refusal::Signature {
                keys: self.keys.len(),
            })
        }
    }

    /// Checks one call, and that its fence is above the highest seen, which it raises. The call that was
    /// admitted last is admitted [`Admission::Again`], for an answer that was lost; it must have no effect,
    /// since whoever saw it go by can send it.
    ///
    /// A receiver reads the body that [`Self::verify`] gives before it admits the call: what can't be
    /// read must not keep out a correct call of the same pair.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub fn admit(
        &mut self,
        call: &SignedCall,
        method: &str,
        now: u64,
    ) -> Result<Admission, Refusal> {
        self.verify(call, method, now)?;
        let got = Fence::from(call);
        let signed = signed_bytes(call);
        match &self.seen {
            Some((seen, last)) if got == *seen && signed == *last => Ok(Admission::Again),
            Some((seen, _)) if got <= *seen => Err(Refusal::Stale { got, seen: *seen }),
            _ => {
                self.seen = Some((got, signed));
                Ok(Admission::New)
            }
        }
    }

    /// The UID of this pod, echoed in every answer.
    pub fn pod_uid(&self) -> &str {
        &self.me.pod_uid
    }
}

/// The written form of a public key: 64 hexadecimal digits.
pub fn print_key(key: &VerifyingKey) -> String {
    hex::encode(key.to_bytes())
}

fn parse_keys(keys: &[String]) -> Result<Vec<VerifyingKey>, InvalidKey> {
    keys.iter()
        .enumerate()
        .map(|(index, text)| parse_key(text).ok_or(InvalidKey { index }))
        .collect()
}

fn parse_key(text: &str) -> Option<VerifyingKey> {
    let bytes: [u8; 32] = hex::decode(text).ok()?.try_into().ok()?;
    VerifyingKey::from_bytes(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(key: &SigningKey) -> Guard {
        Guard::new(me(), &[print_key(&key.verifying_key())]).unwrap()
    }

    fn me() -> Addressee {
        Addressee {
            pod_uid: "pod".into(),
            owner_uid: "owner".into(),
        }
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn fence(lease_epoch: u64, generation: u64) -> Fence {
        Fence {
            lease_epoch,
            generation,
        }
    }

    #[test]
    fn a_genuine_call_is_admitted_and_its_body_read() {
        let mut guard = guard(&key(1));
        let call = sign(&key(1), "Sync", b"body".to_vec(), &me(), fence(0, 0), 100);
        assert_eq!(guard.verify(&call, "Sync", 100), Ok(&b"body"[..]));
        assert_eq!(guard.admit(&call, "Sync", 100), Ok(Admission::New));
    }

    #[test]
    fn a_call_for_another_method_pod_or_owner_is_refused() {
        let mut guard = guard(&key(1));
        let call = sign(&key(1), "Sync", vec![], &me(), fence(1, 1), 100);
        assert!(matches!(
            guard.admit(&call, "Publish", 100),
            Err(Refusal::Method { .. })
        ));
        let other = Addressee {
            pod_uid: "x".into(),
            ..me()
        };
        let call = sign(&key(1), "Sync", vec![], &other, fence(1, 1), 100);
        assert!(matches!(
            guard.admit(&call, "Sync", 100),
            Err(Refusal::Pod { .. })
        ));
        let other = Addressee {
            owner_uid: "x".into(),
            ..me()
        };
        let call = sign(&key(1), "Sync", vec![], &other, fence(1, 1), 100);
        assert!(matches!(
            guard.admit(&call, "Sync", 100),
            Err(Refusal::Owner { .. })
        ));
    }

    #[test]
    fn an_expired_call_is_refused() {
        let call = sign(&key(1), "Sync", vec![], &me(), fence(1, 1), 100);
        assert_eq!(
            guard(&key(1)).admit(&call, "Sync", 100 + VALID_SECONDS + 5),
            Err(Refusal::Expired { late_seconds: 5 })
        );
    }

    #[test]
    fn a_changed_field_or_a_foreign_key_breaks_the_signature() {
        let mut guard = guard(&key(1));
        let foreign = sign(&key(2), "Sync", vec![], &me(), fence(1, 1), 100);
        assert!(matches!(
            guard.admit(&foreign, "Sync", 100),
            Err(Refusal::Signature { keys: 1 })
        ));
        let genuine = sign(&key(1), "Sync", b"a".to_vec(), &me(), fence(1, 1), 100);
        for change in [
            |call: &mut SignedCall| call.body = b"b".to_vec(),
            |call: &mut SignedCall| call.generation += 1,
            |call: &mut SignedCall| call.lease_epoch += 1,
            |call: &mut SignedCall| call.expires_unix_seconds += 1,
            |call: &mut SignedCall| call.signature.clear(),
        ] {
            let mut call = genuine.clone();
            change(&mut call);
            assert!(matches!(
                guard.admit(&call, "Sync", 100),
                Err(Refusal::Signature { .. })
            ));
        }
    }

    #[test]
    fn replaced_keys_are_trusted_and_the_fence_stays() {
        let mut guard = guard(&key(1));
        let call = |k, f| sign(&key(k), "Sync", vec![], &me(), f, 100);
        assert!(guard.admit(&call(1, fence(2, 1)), "Sync", 100).is_ok());
        assert!(guard.replace_keys(&["zz".into()]).is_err());
        assert!(guard.admit(&call(1, fence(2, 1)), "Sync", 100).is_ok());
        guard
            .replace_keys(&[print_key(&key(2).verifying_key())])
            .unwrap();
        assert!(matches!(
            guard.admit(&call(1, fence(2, 2)), "Sync", 100),
            Err(Refusal::Signature { .. })
        ));
        assert!(matches!(
            guard.admit(&call(2, fence(1, 1)), "Sync", 100),
            Err(Refusal::Stale { .. })
        ));
        assert!(guard.admit(&call(2, fence(2, 2)), "Sync", 100).is_ok());
    }

    #[test]
    fn an_old_leader_can_not_undo_a_newer_ones_work() {
        let mut guard = guard(&key(1));
        let call = |f| sign(&key(1), "Sync", vec![], &me(), f, 100);
        assert_eq!(
            guard.admit(&call(fence(2, 1)), "Sync", 100),
            Ok(Admission::New)
        );
        assert_eq!(
            guard.admit(&call(fence(2, 1)), "Sync", 100),
            Ok(Admission::Again),
            "a repeated push is harmless"
        );
        assert_eq!(
            guard.admit(&call(fence(1, 9)), "Sync", 100),
            Err(Refusal::Stale {
                got: fence(1, 9),
                seen: fence(2, 1)
            })
        );
        assert_eq!(
            guard.admit(&call(fence(3, 0)), "Sync", 100),
            Ok(Admission::New)
        );
    }

    #[test]
    fn a_pair_belongs_to_one_call() {
        let mut guard = guard(&key(1));
        let call = |body: &[u8], at| sign(&key(1), "Sync", body.to_vec(), &me(), fence(2, 1), at);
        let first = call(b"a", 100);
        assert_eq!(guard.admit(&first, "Sync", 100), Ok(Admission::New));
        for other in [call(b"b", 100), call(b"a", 101)] {
            assert_eq!(
                guard.admit(&other, "Sync", 101),
                Err(Refusal::Stale {
                    got: fence(2, 1),
                    seen: fence(2, 1)
                })
            );
        }
        assert_eq!(guard.admit(&first, "Sync", 102), Ok(Admission::Again));
    }
}
