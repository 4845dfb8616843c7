"""Needs Python alone: `python3 -m unittest discover -s e2e/clients`."""

import json
import unittest
from pathlib import Path

import lm_eval_benchmark

RECORDED = Path(__file__).parents[2] / "trainer-image/trainer/tests/fixtures/benchmarks.json"


class Rules(unittest.TestCase):
    def test_are_those_of_lm_eval_for_the_same_figures_and_texts(self):
        recorded = json.loads(RECORDED.read_text())
        self.assertEqual(len(recorded), 6)
        for task in recorded:
            lines = task["lines"]
            if "logLikelihoods" in task:
                found = lm_eval_benchmark.choice_scores(lines, task["logLikelihoods"])
            else:
                right = [lm_eval_benchmark.is_right(line, text) for line, text in zip(lines, task["generated"])]
                found = {"exact_match": sum(right) / len(right)}
            self.assertEqual(found, task["expected"], task["task"])
            # Neither all right nor all wrong: another rule would be seen.
            self.assertTrue(all(0 < value < 1 for value in found.values()))

    def test_a_choices_likelihood_is_of_the_tokens_behind_the_context(self):
        asked = []

        def ask(path, body):
            asked.append((path, body["prompt"]))
            if path == "/tokenize":
                return {"count": 3}
            return {"choices": [{"logprobs": {"token_logprobs": [None, -9.0, -9.0, -1.0, -0.5]}}]}

        line = {"context": "Sky? ", "choices": ["red", "blue"], "answer": 1, "delimiter": ""}
        self.assertEqual(lm_eval_benchmark.likelihoods_of(line, ask), [-1.5, -1.5])
        expected = [("/tokenize", "Sky?"), ("/v1/completions", "Sky? red"), ("/v1/completions", "Sky? blue")]
        self.assertEqual(asked, expected)

    def test_lines_that_a_task_can_not_ask_together_are_refused(self):
        lines = [{"context": "x", "answers": ["y"]}, {"context": "x", "answers": ["y"], "until": ["."]}]
        with self.assertRaisesRegex(SystemExit, "until"):
            lm_eval_benchmark.task(lines, {}, 8)


if __name__ == "__main__":
    unittest.main()
