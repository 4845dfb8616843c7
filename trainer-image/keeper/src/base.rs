//! What a base model is: configuration and content digest. Hashing a large one takes long, so what
//! was found is kept for as long as names, sizes and times of its files stay the same, and of many
//! questions about one folder only the first one reads it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use graftwork_contract::proto::store::v1::{DescribeBaseReply, Problem};
use graftwork_model::base::{base_digest, check_base};
use graftwork_model::config::LlamaConfig;
use graftwork_model::tokenizer::TextTokenizer;

use crate::problem::{Failure, of_base, of_tokenizer};

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
/// What was found in one folder; locked while it is being read.
type Finding = Arc<Mutex<Option<(Fingerprint, Base)>>>;

/// Models that were looked at before.
#[derive(Debug, Clone, Default)]
pub struct BaseModels(Arc<Mutex<HashMap<PathBuf, Finding>>>);

impl BaseModels {
    /// Configuration and digest of the model in a folder. Reads all of it where it is new; problems
    /// are not kept, because they show in headers and small files.
    ///
    /// # Errors
    /// Why it can't be used: [`Failure::Base`] with its problem, or a volume that fails.
    pub fn read(&self, folder: &Path) -> Result<Base, Failure> {
        let finding = {
            let mut folders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(folders.entry(folder.to_path_buf()).or_default())
        };
        let mut finding = finding.lock().unwrap_or_else(PoisonError::into_inner);
        let now = fingerprint(folder);
        if let Some((of, base)) = finding.as_ref()
            && *of == now
        {
            return Ok(base.clone());
        }
        let config = check_base(folder).map_err(|error| of_base(&error))?;
        TextTokenizer::load(folder).map_err(|error| of_tokenizer(&error))?;
        let digest = base_digest(folder).map_err(|error| of_base(&error))?;
        let base = Base { config, digest };
        *finding = Some((now, base.clone()));
        Ok(base)
    }
}

/// As an answer.
pub fn reply(result: Result<Base, Problem>) -> DescribeBaseReply {
    match result {
        Ok(Base { config, digest }) => DescribeBaseReply {
            digest,
            hidden_size: config.hidden_size as u32,
            layers: config.num_hidden_layers as u32,
            vocabulary: config.vocab_size as u32,
            maximum_positions: config.max_position_embeddings as u32,
            parameters: config.parameters() as u64,
            model_type: "llama".to_owned(),
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
            // It is there, and reading it fails.
            std::fs::create_dir(dir.path().join(file)).unwrap();
            let failure = BaseModels::default().read(dir.path()).unwrap_err();
            let Failure::Unavailable(message) = failure else {
                panic!("{failure:?}");
            };
            assert!(message.contains(file), "{message}");
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
