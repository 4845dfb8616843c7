//! How a load that goes on until it is told otherwise is told: by an annotation of its pod, which the kubelet
//! mirrors into a file within a second. That needs no open port, no shell in the image and no token in the pod, and
//! the pod stays until its summary was read.

use std::path::Path;
use std::time::Duration;

/// The annotation that ends the load, with whatever value.
pub const STOP: &str = "graftwork.dev/stop-load";
/// Folder and file of the annotations in the load's pod.
pub const FOLDER: &str = "/control";
/// The file in [`FOLDER`].
pub const FILE: &str = "annotations";

const EVERY: Duration = Duration::from_millis(200);

/// Returns once `file` holds the annotation.
pub async fn told(file: &Path) {
    loop {
        // The kubelet replaces the file in one step; before its first version there is none.
        if std::fs::read_to_string(file).is_ok_and(|annotations| is_told(&annotations)) {
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Whether annotations as the downward API writes them, `key="value"` a line, hold [`STOP`].
fn is_told(annotations: &str) -> bool {
    annotations
        .lines()
        .filter_map(|line| line.split_once('='))
        .any(|(key, _)| key == STOP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_annotation_itself_ends_a_load() {
        assert!(!is_told(""));
        assert!(!is_told(
            "note=\"graftwork.dev/stop-load\"\ngraftwork.dev/stop-loads=\"1\""
        ));
        assert!(is_told(
            "kubernetes.io/config.source=\"api\"\ngraftwork.dev/stop-load=\"\""
        ));
    }
}
