//! What a base model is: configuration and content digest. Hashing a large one takes long, so a digest is kept for as
//! long as names, sizes and times of its files stay the same.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use graftwork_contract::proto::store::v1::{DescribeBaseReply, Problem};
use graftwork_model::base::base_digest;
use graftwork_model::config::LlamaConfig;

use crate::problem::{of_base, of_config};

/// What a digest was computed of.
type Fingerprint = Vec<(PathBuf, u64, Option<SystemTime>)>;

/// Digests that were computed before.
#[derive(Debug, Clone, Default)]
pub struct BaseModels(Arc<Mutex<HashMap<PathBuf, (Fingerprint, String)>>>);

impl BaseModels {
    /// Describes the model in a folder. Reads all of it where it is new.
    pub fn describe(&self, folder: &Path) -> DescribeBaseReply {
        match self.read(folder) {
            Ok((config, digest)) => DescribeBaseReply {
                digest,
                hidden_size: config.hidden_size as u32,
                layers: config.num_hidden_layers as u32,
                vocabulary: config.vocab_size as u32,
                maximum_positions: config.max_position_embeddings as u32,
                parameters: config.parameters() as u64,
                model_type: "llama".to_owned(),
                ..DescribeBaseReply::default()
            },
            Err(problem) => DescribeBaseReply { problem: Some(problem), ..DescribeBaseReply::default() },
        }
    }

    /// Configuration and digest of the model in a folder.
    ///
    /// # Errors
    /// Why it can't be used.
    pub fn read(&self, folder: &Path) -> Result<(LlamaConfig, String), Problem> {
        let config = LlamaConfig::load(folder).map_err(|error| of_config(&error))?;
        let fingerprint = fingerprint(folder);
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(folder).cloned();
        if let Some((of, digest)) = known
            && of == fingerprint
        {
            return Ok((config, digest));
        }
        let digest = base_digest(folder).map_err(|error| of_base(&error))?;
        let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        models.insert(folder.to_path_buf(), (fingerprint, digest.clone()));
        Ok((config, digest))
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
