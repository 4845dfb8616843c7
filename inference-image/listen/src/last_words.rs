//! What a process leaves for whoever asks why it ended.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

/// Writes why the process ends to the file that the kubelet reads, at most `limit` bytes of it. Outside a pod there
/// is no such file, and none is made. That it can't be written is only logged: the error goes to stderr, too.
pub fn leave(file: &Path, words: &str, limit: usize) {
    let opened = OpenOptions::new().write(true).truncate(true).open(file);
    let written = match opened {
        Ok(mut opened) => opened.write_all(cut(words, limit).as_bytes()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = written {
        tracing::warn!(file = %file.display(), %error, "cannot write the termination message");
    }
}

/// The beginning of a text, of whole characters.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or(0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_cut_at_a_character() {
        assert_eq!(cut("no model", 4096), "no model");
        assert_eq!(cut("no model", 2), "no");
        assert_eq!(cut("zwölf", 3), "zw");
        assert_eq!(cut("", 5), "");
    }
}
