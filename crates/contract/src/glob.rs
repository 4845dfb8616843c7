//! Patterns of paths: `*` for any characters of one part, `**` for any number of folders. Parsed by
//! the operator, which names the field, and matched by the dataset builder.

/// Most stars in a pattern.
const MAXIMUM_STARS: usize = 16;

/// A pattern of paths, relative to a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(Vec<String>);

/// A pattern that can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGlob {
    /// `**` beside something else.
    #[error("** stands for folders: write it between slashes")]
    Folders,
    /// `**` at the end.
    #[error("a pattern names files: it can't end in **")]
    NoFile,
    /// More stars than anybody needs.
    #[error("a pattern has at most 16 stars")]
    Stars,
}

/// Whether a path is a pattern.
pub fn is_pattern(path: &str) -> bool {
    path.contains('*')
}

impl Glob {
    /// Reads a pattern, whose parts are separated by `/`.
    ///
    /// # Errors
    /// See [`InvalidGlob`].
    pub fn parse(pattern: &str) -> Result<Self, InvalidGlob> {
        let parts: Vec<String> = pattern.split('/').map(str::to_owned).collect();
        if pattern.matches('*').count() > MAXIMUM_STARS {
            return Err(InvalidGlob::Stars);
        }
        if parts.iter().any(|part| part.contains("**") && part != "**") {
            return Err(InvalidGlob::Folders);
        }
        if parts.last().is_some_and(|part| part == "**") {
            return Err(InvalidGlob::NoFile);
        }
        Ok(Self(parts))
    }

    /// Whether a file's path matches. Names that begin with a point match no star.
    pub fn matches(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').collect();
        // `ends[i]`: the parts of the pattern so far match the first `i` parts of the path.
        let mut ends = vec![false; path.len() + 1];
        if let Some(first) = ends.first_mut() {
            *first = true;
        }
        for part in &self.0 {
            ends = if part == "**" {
                after_folders(&ends, &path)
            } else {
                after_part(&ends, &path, part)
            };
        }
        ends.last() == Some(&true)
    }

    /// The folder that all matches are in: the parts before the first star, without the file's name.
    pub fn folder(&self) -> String {
        let fixed = self.0.iter().take_while(|part| !is_pattern(part)).count();
        let folders = self.0.get(..fixed.min(self.0.len() - 1));
        folders.unwrap_or_default().join("/")
    }
}

fn after_part(ends: &[bool], path: &[&str], part: &str) -> Vec<bool> {
    let matched = ends
        .iter()
        .zip(path)
        .map(|(end, name)| *end && matches_part(part, name));
    std::iter::once(false).chain(matched).collect()
}

fn after_folders(ends: &[bool], path: &[&str]) -> Vec<bool> {
    let mut reached = false;
    let mut next = Vec::with_capacity(ends.len());
    for (index, end) in ends.iter().enumerate() {
        // A hidden folder is passed by nobody.
        let hidden = index.checked_sub(1).and_then(|before| path.get(before));
        reached = *end || (reached && !hidden.is_some_and(|name| name.starts_with('.')));
        next.push(reached);
    }
    next
}

/// Whether a name matches a part with stars: each literal piece is found after the one before.
fn matches_part(part: &str, name: &str) -> bool {
    let Some((head, rest)) = part.split_once('*') else {
        return part == name;
    };
    if head.is_empty() && name.starts_with('.') {
        return false;
    }
    let Some(mut left) = name.strip_prefix(head) else {
        return false;
    };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in middle.split('*') {
        let Some((_, after)) = left.split_once(piece).filter(|_| !piece.is_empty()) else {
            if piece.is_empty() {
                continue;
            }
            return false;
        };
        left = after;
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn stars_match_within_a_part_and_two_of_them_folders() {
        for (pattern, path, matches) in [
            ("a.jsonl", "a.jsonl", true),
            ("*.jsonl", "a.jsonl", true),
            ("*.jsonl", "a.csv", false),
            ("*.jsonl", "x/a.jsonl", false),
            ("*.jsonl", ".a.jsonl", false),
            ("*/a.jsonl", "x/a.jsonl", true),
            ("*/a.jsonl", "x/y/a.jsonl", false),
            ("**/a.jsonl", "a.jsonl", true),
            ("**/a.jsonl", "x/y/a.jsonl", true),
            ("**/a.jsonl", "x/.y/a.jsonl", false),
            ("x/**/y/*.csv", "x/y/a.csv", true),
            ("x/**/y/*.csv", "x/1/2/y/a.csv", true),
            ("x/**/y/*.csv", "x/1/2/a.csv", false),
            ("part-*-of-*.csv", "part-1-of-9.csv", true),
            ("part-*-of-*.csv", "part-1-9.csv", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a**", "a", false),
            ("*", "a", true),
        ] {
            let glob = Glob::parse(pattern);
            let matched = glob.as_ref().is_ok_and(|glob| glob.matches(path));
            assert_eq!(matched, matches, "{pattern} {path} {glob:?}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        assert_eq!(Glob::parse("a/b**/c"), Err(InvalidGlob::Folders));
        assert_eq!(Glob::parse("a/**"), Err(InvalidGlob::NoFile));
        assert_eq!(Glob::parse(&"*".repeat(17)), Err(InvalidGlob::Stars));
    }

    #[test]
    fn matches_are_looked_for_in_the_folder_before_the_first_star() {
        for (pattern, folder) in [
            ("a/b/*.csv", "a/b"),
            ("a/*/c.csv", "a"),
            ("*.csv", ""),
            ("a/b.csv", "a"),
            ("a/**/c.csv", "a"),
        ] {
            assert_eq!(Glob::parse(pattern).unwrap().folder(), folder);
        }
    }

    proptest! {
        #[test]
        fn a_part_matches_as_a_slow_reference_says(part in "[ab*]{0,8}", name in "[ab]{0,8}") {
            fn slow(part: &[u8], name: &[u8]) -> bool {
                match part.split_first() {
                    None => name.is_empty(),
                    Some((b'*', rest)) => (0..=name.len()).any(|at| slow(rest, &name[at..])),
                    Some((letter, rest)) => name.first() == Some(letter) && slow(rest, &name[1..]),
                }
            }
            prop_assert_eq!(matches_part(&part, &name), slow(part.as_bytes(), name.as_bytes()));
        }

        #[test]
        fn no_pattern_and_no_path_make_it_panic(pattern in ".{0,24}", path in ".{0,24}") {
            if let Ok(glob) = Glob::parse(&pattern) {
                glob.matches(&path);
                glob.folder();
            }
        }
    }
}
