//! What a base model is: configuration and content digest. Hashing a large one takes long, so what
//! was found is kept for as long as names, sizes and times of its files stay the same. Of many
//! questions about one folder one reads it, and the others wait without a turn.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use graftwork_contract::proto::store::v1::{DescribeBaseReply, Problem};
use graftwork_model::base::{base_digest, check_base};
use graftwork_model::config::LlamaConfig;
use graftwork_model::kv::{KV_BLOCK_TOKENS, KvPool};
use graftwork_model::lora::Module;
use graftwork_model::tokenizer::TextTokenizer;
use tokio::sync::Notify;

use crate::problem::{Failure, of_base, of_tokenizer};
use crate::turns::{Call, Turn};

/// A base model that can be used.
#[derive(Debug, Clone)]
pub struct Base {
    /// Shape and constants.
    pub config: LlamaConfig,
    /// Over its source files.
    pub digest: String,
}

/// What a finding was made of.
type Fingerprint = Vec<(PathBuf, u64, Option<SystemTime>)>;
/// A claim, and a path on it.
type Name = (String, String);

/// Models that were looked at before, and who looks at one now.
#[derive(Debug, Clone, Default)]
pub struct BaseModels {
    findings: Arc<Mutex<HashMap<PathBuf, (Fingerprint, Base)>>>,
    readers: Arc<Readers>,
}

/// Folders that are being read.
#[derive(Debug, Default)]
struct Readers {
    names: Mutex<HashSet<Name>>,
    ended: Notify,
}

impl Readers {
    fn has(&self, name: &Name) -> bool {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.contains(name)
    }

    fn begin(self: &Arc<Self>, name: &Name) -> Option<Reading> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.clone()).then(|| Reading {
            name: name.clone(),
            readers: Arc::clone(self),
        })
    }
}

/// The only leave to read a folder, until it is dropped; with the caller's turn, if it needs one.
#[derive(Debug)]
#[must_use = "another one may read where it is dropped"]
pub struct Leave {
    // Dropped first: who waited for the turn may begin at once.
    _reading: Reading,
    _turn: Option<Turn>,
}

#[derive(Debug)]
struct Reading {
    name: Name,
    readers: Arc<Readers>,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let names = &self.readers.names;
        let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&self.name);
        drop(names);
        self.readers.ended.notify_waiters();
    }
}

impl BaseModels {
    /// Waits until nobody else reads `path` of `claim`, and for a turn of `call` if there is one.
    /// Nobody waits for a folder with a turn, nor for a turn with a folder: a volume that hangs holds
    /// up those who ask about it, and one turn.
    pub async fn leave(&self, claim: &str, path: &str, call: Option<&Call>) -> Leave {
        let name = (claim.to_owned(), path.to_owned());
        loop {
            // Before the look: an end between the look and the wait is not missed.
            let ended = self.readers.ended.notified();
            if self.readers.has(&name) {
                ended.await;
                continue;
            }
            let turn = match call {
                Some(call) => Some(call.turn().await),
                None => None,
            };
            // Somebody may have been faster; then the turn goes back.
            if let Some(reading) = self.readers.begin(&name) {
                return Leave {
                    _reading: reading,
                    _turn: turn,
                };
            }
        }
    }

    /// Configuration and digest of the model in a folder. Reads all of it where it is new; problems
    /// are not kept, because they show in headers and small files.
    ///
    /// # Errors
    /// Why it can't be used: [`Failure::Base`] with its problem, or a volume that fails.
    pub fn read(&self, folder: &Path) -> Result<Base, Failure> {
        let now = fingerprint(folder);
        {
            let findings = self.findings.lock();
            let findings = findings.unwrap_or_else(PoisonError::into_inner);
            if let Some((of, base)) = findings.get(folder)
                && *of == now
            {
                return Ok(base.clone());
            }
        }
        let config = check_base(folder).map_err(|error| of_base(&error))?;
        TextTokenizer::load(folder).map_err(|error| of_tokenizer(&error))?;
        let digest = base_digest(folder).map_err(|error| of_base(&error))?;
        let base = Base { config, digest };
        let findings = self.findings.lock();
        let mut findings = findings.unwrap_or_else(PoisonError::into_inner);
        findings.insert(folder.to_path_buf(), (now, base.clone()));
        Ok(base)
    }
}

/// As an answer.
pub fn reply(result: Result<Base, Problem>) -> DescribeBaseReply {
    match result {
        Ok(Base { config, digest }) => DescribeBaseReply {
            digest,
            hidden_size: config.hidden_size as u32,
            maximum_positions: config.max_position_embeddings as u32,
            target_modules: Module::ALL.map(|module| module.name().to_owned()).to_vec(),
            key_value_block_bytes: KvPool::block_bytes(&config) as u64,
            key_value_block_tokens: KV_BLOCK_TOKENS as u32,
            ..DescribeBaseReply::default()
        },
        Err(problem) => DescribeBaseReply {
            problem: Some(problem),
            ..DescribeBaseReply::default()
        },
    }
}

fn fingerprint(folder: &Path) -> Fingerprint {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Fingerprint = entries
        .filter_map(|entry| {
            let metadata = std::fs::metadata(entry.path()).ok()?;
            Some((entry.path(), metadata.len(), metadata.modified().ok()))
        })
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use graftwork_model::fixture::{TinyShape, write_tiny_base};

    use super::*;

    #[test]
    fn a_finding_is_kept_until_a_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let models = BaseModels::default();
        let first = models.read(dir.path()).unwrap().digest;
        assert_eq!(first, base_digest(dir.path()).unwrap());

        // The same length and time: only a finding that was kept can miss it.
        let path = dir.path().join("model.safetensors");
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(modified).unwrap();
        assert_eq!(models.read(dir.path()).unwrap().digest, first);

        file.set_modified(modified + std::time::Duration::from_secs(1))
            .unwrap();
        let second = models.read(dir.path()).unwrap().digest;
        assert_ne!(second, first);
        assert_eq!(second, base_digest(dir.path()).unwrap());
    }

    #[test]
    fn a_model_is_described_with_the_modules_that_adapters_may_change() {
        let dir = tempfile::tempdir().unwrap();
        write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
        let described = reply(Ok(BaseModels::default().read(dir.path()).unwrap()));
        let modules = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        assert_eq!(described.target_modules, modules);
    }

    fn problem(folder: &Path) -> Problem {
        match BaseModels::default().read(folder) {
            Err(Failure::Base(problem)) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_volume_that_fails_says_nothing_about_the_model() {
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            let dir = tempfile::tempdir().unwrap();
            write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
            std::fs::remove_file(dir.path().join(file)).unwrap();
            // Nothing is mapped at address 0: reading it is an input/output error.
            std::os::unix::fs::symlink("/proc/self/mem", dir.path().join(file)).unwrap();
            let failure = BaseModels::default().read(dir.path()).unwrap_err();
            let Failure::Unavailable(message) = failure else {
                panic!("{failure:?}");
            };
            assert!(message.contains(file), "{message}");
        }
    }

    #[test]
    fn a_folder_in_a_files_place_is_the_models_fault() {
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            let dir = tempfile::tempdir().unwrap();
            write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
            std::fs::remove_file(dir.path().join(file)).unwrap();
            std::fs::create_dir(dir.path().join(file)).unwrap();
            let problem = problem(dir.path());
            assert_eq!(problem.reason, "BaseModelInvalid", "{}", problem.message);
            assert!(problem.message.contains(file), "{}", problem.message);
        }
    }

    #[test]
    fn every_file_that_is_needed_is_asked_for() {
        for (file, word) in [
            ("config.json", "config.json"),
            ("model.safetensors", "model.safetensors"),
            ("tokenizer.json", "tokenizer.json"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write_tiny_base(dir.path(), &TinyShape::default(), 1).unwrap();
            std::fs::remove_file(dir.path().join(file)).unwrap();
            let problem = problem(dir.path());
            assert_eq!(problem.reason, "BaseModelNotFound", "{}", problem.message);
            assert!(problem.message.contains(word), "{}", problem.message);
        }
    }

    #[test]
    fn another_architecture_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"model_type": "mamba", "architectures": ["MambaForCausalLM"]}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let problem = problem(dir.path());
        assert_eq!(problem.reason, "BaseModelUnsupported");
        assert!(problem.message.contains("mamba"), "{}", problem.message);
    }
}
