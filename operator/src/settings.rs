//! The settings file.

use std::path::Path;

use graftwork_api::amount::value;
use graftwork_contract::address::Guard;
use graftwork_contract::store::Place;
use graftwork_contract::uri::Endpoint;
use graftwork_operator_core::settings::{Settings, StoreSettings};
use k8s_openapi::api::core::v1::ResourceRequirements;

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No file.
    #[error("settings file {path} can't be read (--settings names another)")]
    Read {
        /// Where it should be.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Not what it should be.
    #[error("settings file {path} is not valid: {source}")]
    Parse {
        /// Where it is.
        path: String,
        /// Field and problem.
        source: serde_yaml_ng::Error,
    },
    /// Times that can't work together.
    #[error("settings file {path}: {problem}")]
    Value {
        /// Where it is.
        path: String,
        /// Field, value, limit.
        problem: String,
    },
}

/// Reads a settings file (JSON or YAML).
///
/// # Errors
/// See [`SettingsError`].
pub fn load(path: &Path) -> Result<Settings, SettingsError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
        path: name.clone(),
        source,
    })?;
    let settings: Settings =
        serde_yaml_ng::from_str(&text).map_err(|source| SettingsError::Parse {
            path: name.clone(),
            source,
        })?;
    check(&settings).map_err(|problem| SettingsError::Value {
        path: name,
        problem,
    })?;
    Ok(settings)
}

fn check(settings: &Settings) -> Result<(), String> {
    let lease = settings.leader_election;
    if lease.retry_seconds == 0
        || lease.renew_deadline_seconds <= lease.retry_seconds
        || lease.lease_seconds <= lease.renew_deadline_seconds
    {
        return Err(format!(
            "leaderElection: retrySeconds {} < renewDeadlineSeconds {} < leaseSeconds {} must rise from at least 1",
            lease.retry_seconds, lease.renew_deadline_seconds, lease.lease_seconds
        ));
    }
    Guard::parse(&settings.data_sources.allow)
        .map_err(|error| format!("dataSources.allow: {error}"))?;
    if let Some(hub) = &settings.data_sources.hub_endpoint {
        let read = Endpoint::parse(hub);
        let read = read.map_err(|error| format!("dataSources.hubEndpoint: {hub} {error}"))?;
        if !read.is_encrypted {
            return Err(format!(
                "dataSources.hubEndpoint: {hub} is not https: write https://HOST"
            ));
        }
    }
    check_store(&settings.store)?;
    if settings.compute_profiles.is_empty() {
        return Err("computeProfiles: at least one profile is needed, such as default".to_owned());
    }
    check_resources("keeper", &settings.keeper.resources)?;
    check_resources("datasetBuilder", &settings.dataset_builder.resources)?;
    for (name, profile) in &settings.compute_profiles {
        check_resources(&format!("computeProfiles.{name}"), &profile.resources)?;
    }
    Ok(())
}

/// The API server refuses such a pod, and whoever applies a run learns of it.
fn check_resources(of: &str, resources: &ResourceRequirements) -> Result<(), String> {
    for (name, asked) in resources.requests.iter().flatten() {
        let limits = resources.limits.as_ref();
        let Some(limit) = limits.and_then(|limits| limits.get(name)) else {
            continue;
        };
        if let Some((request, most)) = value(&asked.0).zip(value(&limit.0))
            && request > most
        {
            return Err(format!(
                "{of}.resources.requests.{name}: {} is above {of}.resources.limits.{name}, which is {}",
                asked.0, limit.0
            ));
        }
    }
    Ok(())
}

fn check_store(store: &StoreSettings) -> Result<(), String> {
    let Some(url) = &store.url else {
        let of_buckets = [
            ("secretName", store.secret_name.is_some()),
            ("serviceAccountName", store.service_account_name.is_some()),
            ("allow", !store.allow.is_empty()),
        ];
        let said = of_buckets.iter().find(|(_, is_said)| *is_said);
        return said.map_or(Ok(()), |(name, _)| {
            Err(format!(
                "store.{name}: only a store in a bucket has one; name the bucket in store.url"
            ))
        });
    };
    Place::parse(url).map_err(|error| format!("store.url: {url:?} {error}"))?;
    Guard::parse(&store.allow).map_err(|error| format!("store.allow: {error}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str) -> Result<Settings, SettingsError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        load(file.path())
    }

    const GOOD: &str = "images: {trainer: t, inference: i}\ncomputeProfiles: {default: {}}\n";

    #[test]
    fn yaml_and_json_are_read_with_defaults() {
        let settings = load_text(GOOD).unwrap();
        assert_eq!(settings.leader_election.lease_seconds, 15);
        let json = serde_json::to_string(&settings).unwrap();
        assert_eq!(load_text(&json).unwrap(), settings);
    }

    #[test]
    fn problems_name_the_field() {
        for (text, words) in [
            ("images: {trainer: t}\n", "inference"),
            (
                "images: {trainer: t, inference: i}\ncomputeProfile: {}\n",
                "computeProfile",
            ),
            (
                "images: {trainer: t, inference: i}\ncomputeProfiles: {}\n",
                "computeProfiles",
            ),
            (
                &format!(
                    "{GOOD}keeper: {{resources: {{requests: {{memory: 2Gi}}, limits: {{memory: 1024Mi}}}}}}\n"
                ),
                "keeper.resources.requests.memory: 2Gi is above keeper.resources.limits.memory, which is 1024Mi",
            ),
            (
                "images: {trainer: t, inference: i}\ncomputeProfiles: {large: {resources: {requests: {cpu: 8}, limits: \
                 {cpu: 500m}}}}\n",
                "computeProfiles.large.resources.requests.cpu: 8 is above",
            ),
            (
                &format!("{GOOD}leaderElection: {{leaseSeconds: 5}}\n"),
                "leaseSeconds 5",
            ),
            (
                &format!("{GOOD}dataSources: {{allow: [10.0.0.0/33]}}\n"),
                "dataSources.allow: \"10.0.0.0/33\"",
            ),
            (
                &format!("{GOOD}dataSources: {{hubEndpoint: http://hub.example.com}}\n"),
                "dataSources.hubEndpoint: http://hub.example.com is not https",
            ),
            (
                &format!("{GOOD}dataSources: {{hubEndpoint: https://hub.example.com/x}}\n"),
                "dataSources.hubEndpoint: https://hub.example.com/x has a path",
            ),
            (
                &format!("{GOOD}store: {{url: https://example.com/a}}\n"),
                "store.url: \"https://example.com/a\" is not s3://",
            ),
            (
                &format!("{GOOD}store: {{secretName: keys}}\n"),
                "store.secretName: only a store in a bucket has one",
            ),
            (
                &format!("{GOOD}store: {{url: s3://models, allow: [10.0.0.0/33]}}\n"),
                "store.allow: \"10.0.0.0/33\"",
            ),
        ] {
            let message = load_text(text).unwrap_err().to_string();
            assert!(message.contains(words), "{message}");
        }
        assert!(
            load(Path::new("/nowhere"))
                .unwrap_err()
                .to_string()
                .contains("/nowhere")
        );
    }
}
