//! Errors on one line, as every program tells them.

use std::error::Error;

/// An error and its causes, `: ` between them. What is said already is not said again.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Told(&'static str, Option<Box<Told>>);

    impl std::fmt::Display for Told {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Told {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn every_cause_is_told_once() {
        let full = Told("no space left", None);
        let repeats = Told("write rows: no space left", Some(Box::new(full)));
        let outer = Told("publish", Some(Box::new(repeats)));
        assert_eq!(causes(&outer), "publish: write rows: no space left");
        assert_eq!(causes(&Told("alone", None)), "alone");
    }
}
