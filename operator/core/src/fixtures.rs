//! Values that tests of several modules start from.

use jiff::Timestamp;

use crate::settings::Settings;

/// An installation with a CPU and a GPU profile.
pub fn settings() -> Settings {
    serde_json::from_value(serde_json::json!({
        "images": {"trainer": "registry/trainer:1", "inference": "registry/inference:1"},
        "computeProfiles": {
            "default": {"resources": {"requests": {"cpu": "500m"}}},
            "nvidia-l40s": {
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
                "nodeSelector": {"accelerator": "l40s"},
                "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                "runtimeClassName": "nvidia",
                "spot": {
                    "nodeSelector": {"capacity": "spot"},
                    "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]
                },
                "images": {"trainer": "registry/trainer:1-cuda89"}
            }
        }
    }))
    .unwrap()
}

/// A time, `seconds` after an arbitrary start.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_760_000_000 + seconds).unwrap()
}
