"""Needs Python alone, and no WordNet: `python3 -m unittest discover -s e2e/demo-data`."""

import collections
import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import wordnet

NOUNS = 2_000
TEST_ROWS = 50


def line(number, file, kind, gloss):
    """A line of a data file (wndb(5WN)) of a synset with one word."""
    return f"{number:08d} {file:02d} {kind} 01 word_{number} 0 000 | {gloss}  "


def dictionary(folder):
    """Data files in which every definition is one of its own."""
    licence = "  1 This is a licence.\n"
    for name, kind, count in (("noun", "n", NOUNS), ("verb", "v", 200), ("adj", "a", 200), ("adv", "r", 200)):
        lines = [line(n, wordnet.FIRST_NOUN_FILE + n % len(wordnet.TOPICS), kind,
                      f'{kind} number {n}; "an example of {n}"') for n in range(count)]
        (folder / f"data.{name}").write_text(licence + "\n".join(lines) + "\n", encoding="utf-8")


class Text(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        folder = Path(cls.folder.name)
        dictionary(folder)
        arguments = ["wordnet.py", "--dict", str(folder), "--out", str(folder / "text"),
                     "--train-rows", "500", "--test-rows", str(TEST_ROWS)]
        with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(io.StringIO()):
            wordnet.main()
        cls.synsets = list(wordnet.read(folder))
        cls.text = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "text").iterdir()}

    def rows(self, name):
        return [json.loads(row) for row in self.text[name].splitlines()]

    def test_buckets_are_those_of_the_dataset_builder(self):
        # crates/contract has the same: a Dataset with this seed tests on what the base model never saw.
        for name, bucket in (("n00001740", 17), ("v00001740", 55), ("a00001740", 3), ("é", 47)):
            self.assertEqual(wordnet.bucket({"id": name}), bucket, name)
        self.assertEqual((wordnet.SPLIT_SEED, wordnet.HELD_OUT_PERCENT), (7, 5))

    def test_a_line_is_read_as_it_is_written(self):
        self.assertEqual(len(self.synsets), NOUNS + 600)
        first = self.synsets[0]
        self.assertEqual((first["id"], first["words"]), ("n00000000", ["word 0"]))
        self.assertEqual((first["definition"], first["examples"]), ("n number 0", ["an example of 0"]))

    def test_pre_training_sees_nothing_of_what_is_held_out_and_no_topic(self):
        seen = self.text["pretrain"]
        held_out = [s for s in self.synsets if wordnet.bucket(s) >= 95]
        self.assertGreater(len(held_out), 60)
        for synset in self.synsets:
            told = f"{synset['definition']}\\n" in seen or f"{synset['definition']}\"" in seen
            self.assertEqual(told, synset not in held_out, synset)
        self.assertNotIn("Topic:", seen)
        self.assertTrue(any("messages" in row for row in self.rows("pretrain")))

    def test_rows_to_test_on_are_those_that_are_held_out(self):
        for name in ("topics", "topics-shuffled", "topics-long", "parts-of-speech"):
            rows = self.rows(name)
            tested = [row for row in rows if wordnet.bucket({"id": row["synset"]}) >= 95]
            self.assertEqual(len(tested), TEST_ROWS, name)
            self.assertEqual(len(rows), TEST_ROWS + 500 * 95 // 90, name)

    def test_topics_are_those_of_the_files_shuffled_throughout_or_followed_by_more(self):
        topics = {row["synset"]: row["completion"] for row in self.rows("topics")}
        shuffled = {row["synset"]: row["completion"] for row in self.rows("topics-shuffled")}
        long = {row["synset"]: row["completion"] for row in self.rows("topics-long")}
        for synset, topic in topics.items():
            self.assertEqual(topic, " " + wordnet.TOPICS[int(synset[1:]) % len(wordnet.TOPICS)])
            self.assertTrue(long[synset].startswith(topic + "\n") and len(long[synset]) > 100)
        count = collections.Counter
        self.assertEqual(count(shuffled.values()), count(topics.values()))
        same = sum(shuffled[synset] == topic for synset, topic in topics.items())
        self.assertLess(same, len(topics) / 10)


if __name__ == "__main__":
    unittest.main()
