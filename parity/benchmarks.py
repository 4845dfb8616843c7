"""Records what lm-evaluation-harness scores on tasks of six shapes: python parity/benchmarks.py OUT.json

Needs lm-eval==0.4.13 alone. The model is a table of random figures, the same every time: what is held
against ours is how figures and texts become scores. Each task is written down as a benchmark's lines,
with the log-likelihoods of its choices or the texts that were generated, and the harness's scores.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate

ROWS = 60
WORDS = "ice steam straße 北京 naïve St. don't receipt hotel x 12 Å approved".split()
CHOICE_METRICS = ["acc", "acc_norm", "acc_bytes"]

# Name, question of the harness, its choices, the column of the right one.
CHOICES = {
    "arc": ("Question: {{question}}\nAnswer:", "{{choices}}", "label"),
    "boolq": ("{{passage}}\nQuestion: {{question}}?\nAnswer:", ["no", "yes"], "label"),
    "hellaswag": ("{{question}}", "{{choices}}", "label"),
    "piqa": ("Question: {{question}}\nAnswer:", "{{[sol1, sol2]}}", "label"),
    "social_iqa": ("Q: {{passage}} {{question}}\nA:", "{{[a, b, c]}}", "label"),
}


class Table(LM):
    """A model whose answers are drawn by lot, and kept."""

    def __init__(self):
        super().__init__()
        self.rng = random.Random(7)
        self.scored = []
        self.generated = []
        self.answers = []

    def loglikelihood(self, requests):
        for request in requests:
            context, continuation = request.args
            # Longer ones are less probable, but not by as much as they are longer.
            value = -self.rng.uniform(0.5, 1.5) * len(continuation.encode()) ** 0.8
            self.scored.append((request.doc_id, context, continuation, value))
        return [(value, False) for *_, value in self.scored]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        texts = []
        for request in requests:
            context, settings = request.args
            aliases = self.answers[request.doc_id]
            alias = self.rng.choice(aliases)
            text = " " + self.rng.choice(
                [alias, alias.upper() + "!", alias + " or so", "no idea", alias.replace(".", "")]
            )
            text += self.rng.choice(["", "\nQuestion: more", "\n\n"])
            self.generated.append((request.doc_id, context, text))
            for end in settings["until"]:
                text = text.split(end)[0]
            texts.append(text)
        return texts


def words(rng, most):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, most)))


def rows(rng, name):
    made = []
    for _ in range(ROWS):
        row = {"question": words(rng, 8), "passage": words(rng, 12)}
        choices = [words(rng, 6) for _ in range(4)]
        row |= {"choices": choices, "label": rng.randrange(2 if name in ("boolq", "piqa") else 3)}
        row |= dict(zip(["sol1", "sol2"], choices)) | dict(zip("abc", choices))
        row["aliases"] = [words(rng, 4) for _ in range(3)]
        made.append(row)
    return made


def task(name, file, **settings):
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "num_fewshot": 0,
    } | settings


def evaluated(name, model, config):
    answer = simple_evaluate(model=model, tasks=[config], bootstrap_iters=0, verbosity="ERROR")
    results = answer["results"][name]
    return {key.split(",")[0]: value for key, value in results.items() if "," in key}


def choice_task(rng, folder, name):
    file = folder / f"{name}.jsonl"
    table = rows(rng, name)
    file.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    text, choices, label = CHOICES[name]
    model = Table()
    scores = evaluated(
        name,
        model,
        task(
            name,
            file,
            output_type="multiple_choice",
            doc_to_text=text,
            doc_to_choice=choices,
            doc_to_target=label,
            metric_list=[{"metric": metric} for metric in CHOICE_METRICS],
        ),
    )
    lines, values = [], []
    for number, row in enumerate(table):
        asked = [entry for entry in model.scored if entry[0] == number]
        assert len({entry[1] for entry in asked}) == 1
        assert all(entry[2].startswith(" ") for entry in asked)
        lines.append(
            {
                "context": asked[0][1],
                "choices": [entry[2][1:] for entry in asked],
                "answer": row[label],
            }
        )
        values.append([entry[3] for entry in asked])
    expected = {metric: scores[metric] for metric in CHOICE_METRICS}
    return {"task": name, "lines": lines, "logLikelihoods": values, "expected": expected}


def answer_task(rng, folder):
    name = "triviaqa"
    file = folder / f"{name}.jsonl"
    table = rows(rng, name)
    file.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    model = Table()
    model.answers = [row["aliases"] for row in table]
    until = ["\n"]
    scores = evaluated(
        name,
        model,
        task(
            name,
            file,
            output_type="generate_until",
            doc_to_text="Question: {{question}}?\nAnswer:",
            doc_to_target="{{aliases}}",
            generation_kwargs={"until": until, "do_sample": False, "temperature": 0.0},
            filter_list=[
                {
                    "name": "remove_whitespace",
                    "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}],
                }
            ],
            metric_list=[
                {
                    "metric": "exact_match",
                    "aggregation": "mean",
                    "higher_is_better": True,
                    "ignore_case": True,
                    "ignore_punctuation": True,
                }
            ],
        ),
    )
    lines = [
        {
            "context": context,
            "answers": table[number]["aliases"],
            "until": until,
            "ignoreCase": True,
            "ignorePunctuation": True,
        }
        for number, context, _ in model.generated
    ]
    texts = [text for *_, text in model.generated]
    expected = {"exact_match": scores["exact_match"]}
    return {"task": name, "lines": lines, "generated": texts, "expected": expected}


def main(out):
    rng = random.Random(7)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tasks = [choice_task(rng, folder, name) for name in CHOICES]
        tasks.append(answer_task(rng, folder))
    with open(out, "w", encoding="utf-8") as file:
        json.dump(tasks, file, ensure_ascii=False, indent=0)
        file.write("\n")


main(sys.argv[1])
