"""A benchmark's questions, by the rules of a run's `benchmark/NAME` and as tasks of lm_eval: for lm_eval_score.py.

Lines have `context` with `choices` and `answer`, or with `answers`: docs/training.md, Benchmarks.
"""

import json
import string
import sys

CHOICE_METRICS = {"acc": lambda choice: 1, "acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}


def only(lines, key, usual):
    """What all lines say, since a task of lm_eval says it once."""
    found = {json.dumps(line.get(key, usual)) for line in lines}
    if len(found) > 1:
        sys.exit(f"error: the lines differ in {key}: give each value a file of its own")
    return json.loads(found.pop())


def first_highest(values):
    return max(range(len(values)), key=lambda index: (values[index], -index))


def choice_scores(lines, likelihoods):
    """acc, and the same per character and per byte of a choice."""
    found = {}
    for name, length in CHOICE_METRICS.items():
        right = 0
        for line, values in zip(lines, likelihoods):
            even = [value / length(choice) for value, choice in zip(values, line["choices"])]
            right += first_highest(even) == line["answer"]
        found[name] = right / len(lines)
    return found


def likelihoods_of(line, ask):
    """Of each choice behind the context, whose last white space is the choice's; `ask` posts to an endpoint."""
    given = ask("/tokenize", {"prompt": line["context"].rstrip()})["count"]
    found = []
    for choice in line["choices"]:
        whole = line["context"] + line.get("delimiter", " ") + choice
        answer = ask("/v1/completions", {"prompt": whole, "echo": True, "max_tokens": 0, "logprobs": 0})
        found.append(sum(answer["choices"][0]["logprobs"]["token_logprobs"][given:]))
    return found


def evened(text, line):
    text = text.strip()
    if line.get("ignoreCase"):
        text = text.lower()
    if line.get("ignorePunctuation"):
        text = text.translate(str.maketrans("", "", string.punctuation))
    return text


def is_right(line, generated):
    """Whether what stands before the first end is one of the answers."""
    for end in line.get("until", ["\n"]):
        generated = generated.split(end)[0]
    return evened(generated, line) in {evened(answer, line) for answer in line["answers"]}


def ours(lines, ask, new_tokens):
    """By our own rules, asked for directly."""
    if "choices" in lines[0]:
        return choice_scores(lines, [likelihoods_of(line, ask) for line in lines])
    right = 0
    for line in lines:
        answer = ask("/v1/completions", {"prompt": line["context"], "temperature": 0, "max_tokens": new_tokens})
        right += is_right(line, answer["choices"][0]["text"])
    return {"exact_match": right / len(lines)}


def task(lines, shared, new_tokens):
    """The rows and the settings of a task of lm_eval that asks the same, and the names of its metrics."""
    settings = shared | {"task": "benchmark", "doc_to_text": "{{context}}"}
    if "choices" in lines[0]:
        rows = [{key: line[key] for key in ("context", "choices", "answer")} for line in lines]
        return rows, settings | {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "target_delimiter": only(lines, "delimiter", " "),
            "metric_list": [{"metric": metric} for metric in CHOICE_METRICS],
        }, list(CHOICE_METRICS)
    rows = [{key: line[key] for key in ("context", "answers")} for line in lines]
    rule = {
        "metric": "exact_match",
        "aggregation": "mean",
        "higher_is_better": True,
        "ignore_case": only(lines, "ignoreCase", False),
        "ignore_punctuation": only(lines, "ignorePunctuation", False),
    }
    until = only(lines, "until", ["\n"])
    steps = [{"function": "remove_whitespace"}, {"function": "take_first"}]
    return rows, settings | {
        "output_type": "generate_until",
        "doc_to_target": "{{answers}}",
        "generation_kwargs": {"until": until, "max_gen_toks": new_tokens, "temperature": 0, "do_sample": False},
        "filter_list": [{"name": "remove_whitespace", "filter": steps}],
        "metric_list": [rule],
    }, ["exact_match"]
