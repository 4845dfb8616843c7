//! What is said of a panic: its place, and never its message, which may quote somebody's rows.

use std::sync::{Mutex, PoisonError};

/// Where the last one was.
static PLACE: Mutex<Option<String>> = Mutex::new(None);

/// Logs the places of panics from now on, in place of their messages.
pub fn hide_messages() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, "internal error");
        *PLACE.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }));
}

/// What to tell of the last one.
pub fn last() -> String {
    let place = PLACE.lock().unwrap_or_else(PoisonError::into_inner).take();
    place.map_or_else(
        || "internal error".to_owned(),
        |place| format!("internal error at {place}"),
    )
}
