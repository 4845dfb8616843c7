#!/usr/bin/env python3
"""Makes the demo's text from WordNet's data files (Debian: `apt-get install wordnet-base`).

    wordnet.py --out DIR [--dict /usr/share/wordnet] [--train-rows 20000] [--test-rows 2000]

Nothing here is random: the same data files give the same bytes. No line of the text is part of this
repository; it is made from the installed package where it is needed.

For pre-training (`trainer pretrain`):
    pretrain.jsonl      definitions and examples of all parts of speech, as Text and as Chat rows.
                        A synset's topic (its lexicographer file) is never named.
    held-out.jsonl      the same texts of the synsets that pre-training never sees.
For the task "a noun's definition -> its topic" (Completion rows with the column `synset`):
    topics.jsonl            rows to train, validate and test on
    topics-shuffled.jsonl   the same with the topics dealt out anew: there is nothing to learn
    topics-long.jsonl       the same with a long text after the topic's line
    parts-of-speech.jsonl   a second task: a definition -> its part of speech

A synset is held out where the dataset builder's hash split of its identifier, with SPLIT_SEED, falls
into the last HELD_OUT_PERCENT buckets. A Dataset with `groupColumn: synset`, that seed and a test
share of HELD_OUT_PERCENT (or less) therefore tests on definitions that the base model never saw.
"""

import argparse
import hashlib
import json
import re
import struct
from pathlib import Path

SPLIT_SEED = 7
HELD_OUT_PERCENT = 5
PARTS = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
FILES = ("noun", "verb", "adj", "adv")
# Names of the noun lexicographer files 03-28 (lexnames(5WN)); `Tops` holds the roots of all others.
TOPICS = (
    "tops act animal artifact attribute body cognition communication event feeling food group "
    "location motive object person phenomenon plant possession process quantity relation shape "
    "state substance time"
).split()
FIRST_NOUN_FILE = 3
# Synsets of one dictionary page: about 450 tokens, so that late positions of the context are trained.
PAGE = 12


def number(*parts):
    """A number of 64 bits that depends on nothing but `parts`."""
    text = "\x00".join(str(part) for part in parts)
    return struct.unpack("<Q", hashlib.sha256(text.encode()).digest()[:8])[0]


def bucket(synset):
    """The dataset builder's bucket, 0 to 99 (contract crate, `HashSplit::split_of`)."""
    key = struct.pack("<Q", SPLIT_SEED) + synset["id"].encode()
    return struct.unpack("<Q", hashlib.sha256(key).digest()[:8])[0] % 100


def read(folder):
    """Every synset of the data files (format: wndb(5WN)), in file order."""
    for name in FILES:
        for line in (folder / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue  # the licence
            data, _, gloss = line.partition(" | ")
            fields = data.split(" ")
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            gloss = " ".join(gloss.split())
            definition = re.split(r';?\s*"', gloss, maxsplit=1)[0].strip(" ;")
            if not definition:
                continue
            yield {
                "id": name[0] + fields[0],
                "part": PARTS[fields[2]],
                "file": int(fields[1]),
                # An adjective's word may carry a marker of its position: `(a)`, `(p)`, `(ip)`.
                "words": [re.sub(r"\((a|p|ip)\)$", "", w).replace("_", " ") for w in words],
                "definition": definition,
                "examples": [e.strip() for e in re.findall(r'"([^"]+)"', gloss)],
            }


def entry(synset):
    """A dictionary's entry."""
    lines = [f"{synset['words'][0]} ({synset['part']}): {synset['definition']}"]
    lines += [f"Example: {example}" for example in synset["examples"]]
    return "\n".join(lines)


def reverse_entry(synset):
    """The word is sought."""
    words = ", ".join(synset["words"])
    return f"Definition: {synset['definition']}\nPart of speech: {synset['part']}\nWord: {words}"


def chat(synset):
    """One question and its answer."""
    word, definition = synset["words"][0], synset["definition"]
    question, answer = (
        (f"Define: {word}", definition),
        (f"What does \"{word}\" mean as {'an' if synset['part'][0] == 'a' else 'a'} "
         f"{synset['part']}?", definition),
        (f"Which word means: {definition}?", word),
    )[number("question", synset["id"]) % 3]
    return {"messages": [{"role": "user", "content": question},
                         {"role": "assistant", "content": answer}]}


def pretraining_rows(synsets):
    """Each synset as an entry and as a reverse entry, a quarter of them in a chat, a third on a
    page of their neighbours in the alphabet."""
    rows = []
    for synset in synsets:
        rows.append((("entry", synset["id"]), {"text": entry(synset)}))
        rows.append((("reverse", synset["id"]), {"text": reverse_entry(synset)}))
        if number("chat", synset["id"]) % 4 == 0:
            rows.append((("chat", synset["id"]), chat(synset)))
    paged = sorted((s for s in synsets if number("page", s["id"]) % 3 == 0),
                   key=lambda s: (s["words"][0].lower(), s["id"]))
    for start in range(0, len(paged), PAGE):
        page = paged[start : start + PAGE]
        rows.append((("page", page[0]["id"]), {"text": "\n\n".join(map(entry, page))}))
    rows.sort(key=lambda row: number("row", *row[0]))
    return [row for _, row in rows]


def first(synsets, count, purpose):
    """`count` of the synsets, drawn by hash."""
    return sorted(synsets, key=lambda s: number(purpose, s["id"]))[:count]


def question(synset, asked):
    return f"Definition: {synset['definition']}\n{asked}:"


def topic(synset):
    return TOPICS[synset["file"] - FIRST_NOUN_FILE]


def topic_rows(synsets, answer):
    return [{"prompt": question(s, "Topic"), "completion": f" {answer(s)}", "synset": s["id"]}
            for s in synsets]


def long_answer(synset):
    """The topic's line, then some forty tokens that no caller asked for: the same for every row, so
    that it is learnt at once and the topic is what is left to learn."""
    return topic(synset) + "\n" + " ".join(["This answer goes on, although nobody asked."] * 4)


def shuffled_topics(synsets):
    """The topics of `synsets`, dealt out anew among all of them."""
    dealt = sorted(synsets, key=lambda s: number("shuffle", s["id"]))
    return {s["id"]: topic(d) for s, d in zip(sorted(synsets, key=lambda s: s["id"]), dealt)}


def write(path, rows):
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--dict", type=Path, default=Path("/usr/share/wordnet"))
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--train-rows", type=int, default=20_000)
    arguments.add_argument("--test-rows", type=int, default=2_000)
    options = arguments.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    synsets = list(read(options.dict))
    held_out = [s for s in synsets if bucket(s) >= 100 - HELD_OUT_PERCENT]
    unseen = {s["definition"].lower() for s in held_out}
    seen = [s for s in synsets
            if bucket(s) < 100 - HELD_OUT_PERCENT and s["definition"].lower() not in unseen]
    write(options.out / "pretrain.jsonl", pretraining_rows(seen))
    write(options.out / "held-out.jsonl",
          [{"text": form(s)} for s in first(held_out, 1_000, "perplexity")
           for form in (entry, reverse_entry)])

    # One definition, one row: two senses with the same words would make two right answers.
    nouns = {s["definition"].lower(): s for s in seen if s["part"] == "noun"}
    tests = {s["definition"].lower(): s for s in held_out if s["part"] == "noun"}
    # The builder keeps 5 % of the rows for validation; what is asked for is left to train on.
    train_rows = options.train_rows * 95 // (95 - 5)
    chosen = first(nouns.values(), train_rows, "topics") + first(
        tests.values(), options.test_rows, "topics")
    chosen.sort(key=lambda s: number("topics order", s["id"]))
    dealt = shuffled_topics(chosen)
    write(options.out / "topics.jsonl", topic_rows(chosen, topic))
    write(options.out / "topics-shuffled.jsonl", topic_rows(chosen, lambda s: dealt[s["id"]]))
    write(options.out / "topics-long.jsonl", topic_rows(chosen, long_answer))

    parts = {s["definition"].lower(): s for s in seen}
    part_tests = {s["definition"].lower(): s for s in held_out}
    chosen = first(parts.values(), train_rows, "parts") + first(
        part_tests.values(), options.test_rows, "parts")
    chosen.sort(key=lambda s: number("parts order", s["id"]))
    write(options.out / "parts-of-speech.jsonl",
          [{"prompt": question(s, "Part of speech"), "completion": f" {s['part']}",
            "synset": s["id"]} for s in chosen])


if __name__ == "__main__":
    main()
