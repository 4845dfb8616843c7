//! What stands beside a place in a text. Places are bytes at characters' boundaries.

/// The character before `at`.
pub fn before(text: &str, at: usize) -> Option<char> {
    text.get(..at)?.chars().next_back()
}

/// The character at `at`.
pub fn after(text: &str, at: usize) -> Option<char> {
    text.get(at..)?.chars().next()
}

/// Whether a character belongs to a word or a number.
pub fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Whether something may begin at `at`: nothing of a word stands before it, and none of `joins`.
pub fn begins(text: &str, at: usize, joins: &[char]) -> bool {
    before(text, at).is_none_or(|letter| !is_word(letter) && !joins.contains(&letter))
}

/// Whether something may end at `at`: what follows is no part of a word, nor one of `joins` with more
/// of a word behind it.
pub fn ends(text: &str, at: usize, joins: &[char]) -> bool {
    let Some(next) = after(text, at) else {
        return true;
    };
    if is_word(next) {
        return false;
    }
    let behind = after(text, at + next.len_utf8());
    !(joins.contains(&next) && behind.is_some_and(is_word))
}

/// Bytes of the longest beginning of `text` whose characters all fit, of at most `limit` characters.
pub fn run(text: &str, limit: usize, fits: impl Fn(char) -> bool) -> usize {
    text.chars()
        .take(limit)
        .take_while(|letter| fits(*letter))
        .map(char::len_utf8)
        .sum()
}

/// The same from the end.
pub fn run_back(text: &str, limit: usize, fits: impl Fn(char) -> bool) -> usize {
    text.chars()
        .rev()
        .take(limit)
        .take_while(|letter| fits(*letter))
        .map(char::len_utf8)
        .sum()
}

/// Places at which a character begins that `starts` and that no word runs into.
pub fn starts<'a>(
    text: &'a str,
    starts: impl Fn(char) -> bool + 'a,
) -> impl Iterator<Item = usize> + 'a {
    let mut last = None;
    text.char_indices().filter_map(move |(at, letter)| {
        let free = last.is_none_or(|last| !is_word(last));
        last = Some(letter);
        (free && starts(letter)).then_some(at)
    })
}
