//! Token ids of byte-level tokenizers, several times faster than their whole pipeline gives them.
//!
//! The tokenizers crate keeps for each byte of a text where it comes from, through each of its stages. Here a text is
//! cut by the same expression, and each word is asked of the same model, but once: words come again. What cuts a text is
//! an automaton without going back, which has no text that it gives up on.
//!
//! Only pipelines are taken whose every part is known here: no normalizer, or NFC and a text that is in it; GPT-2's
//! expression, or one `Split` by an expression that ends like its; added tokens that take no blanks beside them. For
//! others, the crate's own way is the only one.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};
use regex_automata::{Input, meta};
use serde::Deserialize;
use tokenizers::{Model as _, Tokenizer};
use unicode_normalization::is_nfc;

use crate::cuts::BYTE_LEVEL;
use crate::token_bytes::stand_in_of_bytes;

/// How expressions end that leave the last of several blanks to the word behind them.
const BLANKS: &str = r"|\s+(?!\S)|\s+";
/// Words that are kept, and the longest of them, in bytes.
const KEPT_WORDS: usize = 1 << 16;
const LONGEST_WORD: usize = 64;
/// What every pipeline is tried with before it is used.
const SAMPLES: [&str; 6] = [
    "It's 2024's 1234567 things,  isn't IT'S?  Yes: 3.14!\n\n\n  next\tline \r\n end   ",
    "na\u{ef}ve \u{6f22}\u{5b57}\u{3000}\u{3000}\u{1f980}\u{1f980} \u{645}\u{631}\u{62d}\u{628}\u{627} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{661}\u{662}\u{663}\u{664} \u{bd}x\u{b2}",
    "\n \n  \t\u{a0} x \u{2028}\u{85}y    ",
    "#include <a.h>\r\nfn f(x: &mut [u8]) -> Option<()> { /* ... */ }",
    " leading and trailing ",
    "",
];

/// A token and the bytes of the text that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub id: u32,
    pub start: usize,
    pub end: usize,
}

/// Added tokens, which are found before anything is cut.
struct Added {
    finder: AhoCorasick,
    ids: Vec<u32>,
}

/// The words that one thread has met.
#[derive(Default)]
struct Known {
    cutting: Option<meta::Cache>,
    /// Where each one's tokens are.
    words: HashMap<Box<str>, (u32, u32)>,
    /// Ids, and how many bytes each stands for.
    tokens: Vec<(u32, u32)>,
    /// Those of a word that is not kept.
    long: Vec<(u32, u32)>,
}

/// The pipeline of one tokenizer.
pub(super) struct Words {
    /// Those of a text as it is, then those of a normalized one.
    added: Vec<Added>,
    is_nfc: bool,
    /// Two patterns: all of the expression but its end, and blanks.
    cut: meta::Regex,
    /// Whether offsets leave the blanks of a token out; with it, whether the first one may keep its own.
    trims: Option<bool>,
    /// Special tokens before and behind a text; none: they are not the same for all.
    around: Option<(Vec<u32>, Vec<u32>)>,
    stand_ins: [char; 256],
    /// As many as there were threads at one time.
    known: Mutex<Vec<Known>>,
}

impl fmt::Debug for Words {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Words").finish_non_exhaustive()
    }
}

/// The parts of a `tokenizer.json`.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Normalizer>,
    pre_tokenizer: PreTokenizer,
    post_processor: Option<PostProcessor>,
    model: Kind,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "as the file has them")]
struct AddedToken {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    #[serde(rename = "special")]
    _special: bool,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Normalizer {
    #[serde(rename = "NFC")]
    Nfc {},
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum PreTokenizer {
    Sequence {
        pretokenizers: Vec<PreTokenizer>,
    },
    Split {
        pattern: Pattern,
        behavior: String,
        invert: bool,
    },
    ByteLevel {
        add_prefix_space: bool,
        #[serde(rename = "trim_offsets")]
        _trim_offsets: bool,
        #[serde(default = "yes")]
        use_regex: bool,
    },
}

#[derive(Deserialize)]
enum Pattern {
    Regex(String),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
enum PostProcessor {
    Sequence {
        processors: Vec<PostProcessor>,
    },
    ByteLevel {
        add_prefix_space: bool,
        trim_offsets: bool,
    },
    TemplateProcessing {},
}

#[derive(Deserialize)]
struct Kind {
    /// Older files leave it out.
    r#type: Option<String>,
    dropout: Option<f32>,
}

const fn yes() -> bool {
    true
}

impl Words {
    /// That of a `tokenizer.json`, where it is one that is known here and gives what the crate gives.
    pub fn of(file: &str, tokenizer: &Tokenizer) -> Option<Self> {
        let file: File = serde_json::from_str(file).ok()?;
        if file.model.r#type.is_some_and(|kind| kind != "BPE") || file.model.dropout.is_some() {
            return None;
        }
        if !file.added_tokens.iter().all(is_plain) {
            return None;
        }
        let mut added = Vec::new();
        for normalized in [false, true] {
            let tokens = file.added_tokens.iter();
            let tokens = tokens.filter(|token| token.normalized == normalized);
            added_tokens(tokens, &mut added)?;
        }
        let words = Self {
            added,
            is_nfc: file.normalizer.is_some(),
            cut: cut(&file.pre_tokenizer)?,
            trims: match &file.post_processor {
                None => None,
                Some(processor) => trims(processor).ok()?,
            },
            around: around(tokenizer),
            stand_ins: stand_in_of_bytes(),
            known: Mutex::default(),
        };
        let agrees = |text: &&str| words.agrees(tokenizer, text);
        SAMPLES.iter().all(agrees).then_some(words)
    }

    fn agrees(&self, tokenizer: &Tokenizer, text: &str) -> bool {
        let theirs = tokenizer.encode(text, false);
        let (Ok(theirs), Some(ours)) = (theirs, self.encode(tokenizer, text)) else {
            return false;
        };
        let offsets = theirs.get_offsets().iter();
        let theirs = theirs.get_ids().iter().zip(offsets);
        let theirs = theirs.map(|(id, (start, end))| Placed {
            id: *id,
            start: *start,
            end: *end,
        });
        theirs.eq(ours)
    }

    /// Tokens of a text with the offsets that the crate gives them, in bytes; `None` where it has to be asked itself.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Option<Vec<Placed>> {
        let mut tokens = Vec::with_capacity(text.len() / 4 + 4);
        self.each(tokenizer, text, |placed| tokens.push(placed))?;
        for (index, token) in tokens.iter_mut().enumerate() {
            self.adjust(text, index, token);
        }
        Some(tokens)
    }

    /// Their ids alone; with `add_special_tokens`, with what the tokenizer puts around a text.
    pub fn ids(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        add_special_tokens: bool,
    ) -> Option<Vec<u32>> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 8);
        let (before, behind) = match &self.around {
            _ if !add_special_tokens => (&[][..], &[][..]),
            Some((before, behind)) => (before.as_slice(), behind.as_slice()),
            None => return None,
        };
        ids.extend(before);
        self.each(tokenizer, text, |placed| ids.push(placed.id))?;
        ids.extend(behind);
        Some(ids)
    }

    /// From bytes to whole characters, and without blanks where the tokenizer leaves them out.
    fn adjust(&self, text: &str, index: usize, token: &mut Placed) {
        let bytes = text.as_bytes().get(token.start..token.end);
        let is_blank = |byte: &&u8| **byte == b' ';
        let bytes = bytes.unwrap_or_default().iter();
        let mut leading = bytes.clone().take_while(is_blank).count();
        let trailing = bytes.rev().take_while(is_blank).count();
        token.start = text.floor_char_boundary(token.start);
        token.end = text.ceil_char_boundary(token.end);
        let Some(keeps_first) = self.trims else {
            return;
        };
        if keeps_first && leading == 1 && (index == 0 || token.start == 0) {
            leading = 0;
        }
        token.start = (token.start + leading).min(token.end);
        token.end = token.end.saturating_sub(trailing).max(token.start);
    }

    fn each(&self, tokenizer: &Tokenizer, text: &str, mut take: impl FnMut(Placed)) -> Option<()> {
        if self.is_nfc && !text.is_ascii() && !is_nfc(text) {
            return None;
        }
        let mut known = {
            let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            all.pop().unwrap_or_default()
        };
        let done = self.pieces(tokenizer, &mut known, (text, 0), &self.added, &mut take);
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(known);
        done
    }

    /// Cuts a part of the text, which begins at `offset`, at the added tokens, and what is between them into words.
    fn pieces(
        &self,
        tokenizer: &Tokenizer,
        known: &mut Known,
        (part, offset): (&str, usize),
        added: &[Added],
        take: &mut impl FnMut(Placed),
    ) -> Option<()> {
        let Some((first, others)) = added.split_first() else {
            return self.words(tokenizer, known, (part, offset), take);
        };
        let mut begin = 0;
        for found in first.finder.find_iter(part) {
            let before = part.get(begin..found.start())?;
            self.pieces(tokenizer, known, (before, offset + begin), others, take)?;
            take(Placed {
                id: *first.ids.get(found.pattern().as_usize())?,
                start: offset + found.start(),
                end: offset + found.end(),
            });
            begin = found.end();
        }
        let rest = part.get(begin..)?;
        self.pieces(tokenizer, known, (rest, offset + begin), others, take)
    }

    fn words(
        &self,
        tokenizer: &Tokenizer,
        known: &mut Known,
        (part, offset): (&str, usize),
        take: &mut impl FnMut(Placed),
    ) -> Option<()> {
        let mut begin = 0;
        while begin < part.len() {
            let cutting = known.cutting.get_or_insert_with(|| self.cut.create_cache());
            let found = self
                .cut
                .search_with(cutting, &Input::new(part).range(begin..));
            let end = match found {
                // What no pattern takes is a word by itself.
                None => part.len(),
                Some(found) if found.start() > begin => found.start(),
                Some(found) if found.pattern().as_usize() == 0 => found.end(),
                Some(found) => before_last_blank(part, begin, found.end()),
            };
            let word = part.get(begin..end)?;
            let mut start = offset + begin;
            for (id, bytes) in self.tokens(tokenizer, known, word)? {
                let end = start + *bytes as usize;
                take(Placed {
                    id: *id,
                    start,
                    end,
                });
                start = end;
            }
            begin = end;
        }
        Some(())
    }

    fn tokens<'a>(
        &self,
        tokenizer: &Tokenizer,
        known: &'a mut Known,
        word: &str,
    ) -> Option<&'a [(u32, u32)]> {
        if let Some((start, end)) = known.words.get(word) {
            return known.tokens.get(*start as usize..*end as usize);
        }
        if known.words.len() >= KEPT_WORDS {
            known.words.clear();
            known.tokens.clear();
        }
        let spelt: String = word
            .bytes()
            .filter_map(|byte| self.stand_ins.get(usize::from(byte)).copied())
            .collect();
        let is_kept = word.len() <= LONGEST_WORD;
        let into = if is_kept {
            &mut known.tokens
        } else {
            known.long.clear();
            &mut known.long
        };
        let start = into.len();
        for token in tokenizer.get_model().tokenize(&spelt).ok()? {
            let spelt = spelt.get(token.offsets.0..token.offsets.1)?;
            let bytes = u32::try_from(spelt.chars().count()).ok()?;
            into.push((token.id, bytes));
        }
        if is_kept {
            let place = (u32::try_from(start).ok()?, u32::try_from(into.len()).ok()?);
            known.words.insert(word.into(), place);
        }
        into.get(start..)
    }
}

/// Blanks from `begin` to `end`: the last one belongs to what is not blank behind them, but where it is the only one.
fn before_last_blank(part: &str, begin: usize, end: usize) -> usize {
    if end == part.len() {
        return end;
    }
    let blanks = part.get(begin..end).unwrap_or_default();
    match blanks.char_indices().next_back() {
        Some((last, _)) if last > 0 => begin + last,
        _ => end,
    }
}

/// Whether it is found wherever its text stands, takes nothing beside it and has no blanks at its ends.
fn is_plain(token: &AddedToken) -> bool {
    !token.single_word
        && !token.lstrip
        && !token.rstrip
        && !token.content.is_empty()
        && is_nfc(&token.content)
        && token.content.trim() == token.content
}

/// Adds what finds these, where there are any.
fn added_tokens<'a>(
    tokens: impl Iterator<Item = &'a AddedToken>,
    added: &mut Vec<Added>,
) -> Option<()> {
    let (contents, ids): (Vec<&str>, Vec<u32>) = tokens
        .map(|token| (token.content.as_str(), token.id))
        .unzip();
    if ids.is_empty() {
        return Some(());
    }
    let finder = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(contents)
        .ok()?;
    added.push(Added { finder, ids });
    Some(())
}

/// The expression of a pre-tokenizer.
fn cut(pre_tokenizer: &PreTokenizer) -> Option<meta::Regex> {
    let expression = match pre_tokenizer {
        PreTokenizer::ByteLevel {
            add_prefix_space: false,
            use_regex: true,
            ..
        } => BYTE_LEVEL,
        PreTokenizer::Sequence { pretokenizers } => match pretokenizers.as_slice() {
            [
                PreTokenizer::Split {
                    pattern: Pattern::Regex(expression),
                    behavior,
                    invert: false,
                },
                PreTokenizer::ByteLevel {
                    add_prefix_space: false,
                    use_regex: false,
                    ..
                },
            ] if behavior == "Isolated" => expression,
            _ => return None,
        },
        _ => return None,
    };
    let words = expression.strip_suffix(BLANKS)?;
    let cut = meta::Regex::builder().build_many(&[words, r"\s+"]).ok()?;
    // An empty word has no end.
    (!cut.is_match("")).then_some(cut)
}

/// What a tokenizer puts around every text.
fn around(tokenizer: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    let ids = |text: &str, special: bool| {
        let encoding = tokenizer.encode_fast(text, special).ok()?;
        Some(encoding.get_ids().to_vec())
    };
    let (plain, whole) = (ids("a", false)?, ids("a", true)?);
    let place = whole.windows(plain.len()).position(|part| part == plain)?;
    let (before, rest) = whole.split_at_checked(place)?;
    let behind = rest.get(plain.len()..)?;
    let is_fixed = |text: &str| {
        let expected = [before, &ids(text, false)?, behind].concat();
        (ids(text, true)? == expected).then_some(())
    };
    SAMPLES
        .iter()
        .all(|text| is_fixed(text).is_some())
        .then(|| (before.to_vec(), behind.to_vec()))
}

/// Whether offsets are trimmed, and how.
///
/// # Errors
/// They are twice.
fn trims(processor: &PostProcessor) -> Result<Option<bool>, ()> {
    match processor {
        PostProcessor::TemplateProcessing {} => Ok(None),
        PostProcessor::ByteLevel {
            add_prefix_space,
            trim_offsets,
        } => Ok(trim_offsets.then_some(*add_prefix_space)),
        PostProcessor::Sequence { processors } => {
            let mut found = None;
            for processor in processors {
                match (trims(processor)?, found) {
                    (Some(_), Some(_)) => return Err(()),
                    (Some(keeps_first), None) => found = Some(keeps_first),
                    (None, _) => {}
                }
            }
            Ok(found)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn file(name: &str) -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../parity/fixtures/tokens");
        std::fs::read_to_string(folder.join(name).join("tokenizer.json")).unwrap()
    }

    fn changed(name: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut value: Value = serde_json::from_str(&file(name)).unwrap();
        change(&mut value);
        value.to_string()
    }

    fn words(file: &str) -> (Tokenizer, Option<Words>) {
        let tokenizer: Tokenizer = file.parse().unwrap();
        let words = Words::of(file, &tokenizer);
        (tokenizer, words)
    }

    /// GPT-2's expression, Llama 3's, Qwen's, and Llama 3's with offsets that leave blanks out, twice.
    static KNOWN: LazyLock<Vec<(Tokenizer, Words)>> = LazyLock::new(|| {
        let trimming = |keeps_first: bool| {
            changed("llama-3", |value| {
                let byte_level = json!({
                    "type": "ByteLevel", "add_prefix_space": keeps_first, "trim_offsets": true, "use_regex": true,
                });
                let template = value["post_processor"].take();
                value["post_processor"] =
                    json!({"type": "Sequence", "processors": [byte_level, template]});
            })
        };
        let gpt_2 = changed("llama-3", |value| {
            value["pre_tokenizer"] = value
                .pointer("/pre_tokenizer/pretokenizers/1")
                .unwrap()
                .clone();
            value["pre_tokenizer"]["use_regex"] = json!(true);
        });
        let files = [
            gpt_2,
            file("llama-3"),
            file("qwen"),
            trimming(true),
            trimming(false),
        ];
        let known = files.iter().map(|file| {
            let (tokenizer, words) = words(file);
            (tokenizer, words.expect("it is known"))
        });
        known.collect()
    });

    fn part() -> impl Strategy<Value = String> {
        let special = KNOWN[0].0.get_added_vocabulary().get_added_tokens_decoder();
        let special: Vec<String> = special.values().map(|it| it.content.clone()).collect();
        prop_oneof![
            "\\PC{0,6}",
            "[ \t\r\n\u{a0}\u{3000}]{1,4}",
            "[a-zA-Z]{1,9}",
            "[0-9\u{661}\u{bd}\u{2167}]{1,5}",
            "'(s|T|re|VE|m|ll|D|x)",
            "[\u{300}-\u{330}\u{1100}-\u{11ff}e]{1,4}",
            prop::sample::select(special),
            any::<char>().prop_map(String::from),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]
        #[test]
        fn tokens_and_offsets_of_any_text_are_those_of_the_whole_pipeline(
            parts in prop::collection::vec(part(), 0..24)
        ) {
            let text = parts.concat();
            for (tokenizer, words) in KNOWN.iter() {
                let is_taken = words.encode(tokenizer, &text).is_some();
                prop_assert!(is_taken == (!words.is_nfc || is_nfc(&text)));
                prop_assert!(!is_taken || words.agrees(tokenizer, &text), "{text:?}");
                if is_taken {
                    let theirs = tokenizer.encode_fast(text.as_str(), true).unwrap();
                    prop_assert_eq!(words.ids(tokenizer, &text, true).unwrap(), theirs.get_ids());
                }
            }
        }
    }

    #[test]
    fn words_that_are_known_give_the_same_tokens_again_and_when_there_are_too_many() {
        let (tokenizer, words) = &KNOWN[1];
        let many: String = (0..KEPT_WORDS + 10).map(|n| format!(" w{n:x}q")).collect();
        let text = format!("{many} {} again", "long".repeat(100));
        let theirs = tokenizer.encode_fast(text.as_str(), false).unwrap();
        for _ in 0..2 {
            assert_eq!(
                words.ids(tokenizer, &text, false).unwrap(),
                theirs.get_ids()
            );
        }
        let known = words.known.lock().unwrap();
        assert!(known.iter().all(|known| known.words.len() <= KEPT_WORDS));
    }

    #[test]
    fn what_is_not_known_here_is_left_to_the_whole_pipeline() {
        let is_known = |file: &str| words(file).1.is_some();
        assert!(!is_known(&file("gemma")));
        assert!(!is_known(&file("llama-2")));
        let other = |pointer: &'static str, other: Value| {
            let file = changed("llama-3", |value| {
                *value.pointer_mut(pointer).unwrap() = other;
            });
            is_known(&file)
        };
        assert!(!other("/added_tokens/0/lstrip", json!(true)));
        assert!(!other("/added_tokens/0/single_word", json!(true)));
        assert!(!other("/normalizer", json!({"type": "NFKC"})));
        assert!(!other("/normalizer", json!({"type": "Lowercase"})));
        let split = "/pre_tokenizer/pretokenizers/0";
        for (field, value) in [
            ("pattern", json!({"Regex": r"\p{L}+|\s+"})),
            ("pattern", json!({"String": " "})),
            ("behavior", json!("MergedWithPrevious")),
            ("invert", json!(true)),
        ] {
            let file = changed("llama-3", |it| {
                it.pointer_mut(split).unwrap()[field] = value;
            });
            assert!(!is_known(&file), "{field}");
        }
        assert!(!other(
            "/pre_tokenizer/pretokenizers/1/add_prefix_space",
            json!(true)
        ));
        assert!(!other("/model/dropout", json!(0.1)));
    }
}
