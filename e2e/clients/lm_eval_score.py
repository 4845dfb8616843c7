"""Scores rows twice, and compares: with lm_eval over `local-completions`, and by our own rules, asked for directly.

    lm_eval_score.py URL MODEL TOKENIZER ROWS [LIMIT] [SCORE]

`make lm-eval` installs what it needs and calls it.

ROWS are JSONL with `prompt` and `completion`, or a benchmark's file (lm_eval_benchmark.py); TOKENIZER is the base
model's folder. Our rules are those of a run's metrics: exact_match is greedy, at most 32 new tokens, the first lines of
answer and completion, trimmed, are equal; the log-likelihood is the sum over the completion's tokens. Ends with an error
where the two differ, or where SCORE, what a run says of these rows in its status (exact_match; of a benchmark
benchmark/NAME), is another one.
"""

import json
import math
import sys
import tempfile
import urllib.request

import lm_eval_benchmark

NEW_TOKENS = 32


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def first_line(text):
    return (text.splitlines() or [""])[0].strip()


def ours(url, model, rows):
    """(exact match, mean log-likelihood of a completion)"""
    matches, likelihoods = [], []
    for row in rows:
        asked = {"model": model, "prompt": row["prompt"], "temperature": 0, "max_tokens": NEW_TOKENS}
        text = post(url, "/v1/completions", asked)["choices"][0]["text"]
        matches.append(first_line(text) == first_line(row["completion"]))
        prompt = post(url, "/tokenize", {"model": model, "prompt": row["prompt"]})["count"]
        whole = {"model": model, "prompt": row["prompt"] + row["completion"], "echo": True, "max_tokens": 0, "logprobs": 0}
        tokens = post(url, "/v1/completions", whole)["choices"][0]["logprobs"]["token_logprobs"]
        likelihoods.append(sum(tokens[prompt:]))
    return sum(matches) / len(rows), sum(likelihoods) / len(rows)


def from_file(name):
    return {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": name}}, "test_split": "test"}


def evaluate(endpoint, tasks):
    """What lm_eval says of tasks over an endpoint: its URL, the model, its tokenizer's folder, its context."""
    import lm_eval

    url, model, tokenizer, context = endpoint
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": model,
            "base_url": f"{url}/v1/completions",
            "tokenizer": tokenizer,
            "tokenizer_backend": "huggingface",
            # As the engine begins every text.
            "add_bos_token": True,
            "max_length": context,
            "num_concurrent": 8,
        },
        tasks=tasks,
        bootstrap_iters=0,
    )["results"]


def write_lines(file, rows):
    for row in rows:
        file.write(json.dumps(row) + "\n")
    file.flush()


def with_lm_eval(endpoint, rows):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        # First lines alone are compared: lm_eval has no rule for that.
        write_lines(file, [{**row, "target": first_line(row["completion"])} for row in rows])
        shared = from_file(file.name) | {"doc_to_text": "{{prompt}}", "target_delimiter": ""}
        tasks = [
            {
                **shared,
                "task": "rows_exact_match",
                "doc_to_target": "{{target}}",
                "output_type": "generate_until",
                "generation_kwargs": {"until": ["\n"], "max_gen_toks": NEW_TOKENS, "temperature": 0},
                "metric_list": [{"metric": "exact_match", "regexes_to_ignore": [r"^\s+", r"\s+$"]}],
            },
            {
                **shared,
                "task": "rows_likelihood",
                "doc_to_target": "{{completion}}",
                "output_type": "loglikelihood",
                "metric_list": [{"metric": "perplexity"}],
            },
        ]
        results = evaluate(endpoint, tasks)
    # `perplexity` is over rows: the exponential of the mean log-likelihood, negated.
    return results["rows_exact_match"]["exact_match,none"], -math.log(results["rows_likelihood"]["perplexity,none"])


def score_benchmark(endpoint, lines, expected):
    url, model, *_ = endpoint
    mine = lm_eval_benchmark.ours(lines, lambda path, body: post(url, path, {"model": model, **body}), NEW_TOKENS)
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        rows, task, metrics = lm_eval_benchmark.task(lines, from_file(file.name), NEW_TOKENS)
        write_lines(file, rows)
        found = evaluate(endpoint, [task])["benchmark"]
    # A filter's name stands behind the metric's.
    theirs = {key.split(",")[0]: value for key, value in found.items() if "," in key}
    print(f"{len(lines)} questions  ours      lm_eval")
    for metric in metrics:
        print(f"{metric:<13}{mine[metric]:.4f}    {theirs[metric]:.4f}")
    for metric in metrics:
        assert abs(mine[metric] - theirs[metric]) < 1e-9, f"{metric} differs"
    # As many digits as a status has.
    assert not expected or abs(mine[metrics[0]] - float(expected)) < 1e-4, f"the run says {expected}"


def main(url, model, tokenizer, path, limit="100", expected=""):
    with open(path) as file:
        rows = [json.loads(line) for line in file if line.strip()][: int(limit or sys.maxsize)]
    cards = {card["id"]: card for card in json.load(urllib.request.urlopen(url + "/v1/models"))["data"]}
    # A router does not say it: what fits the rows is enough.
    endpoint = (url, model, tokenizer, cards[model].get("max_model_len", 2048))
    if "context" in rows[0]:
        score_benchmark(endpoint, rows, expected)
        return
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in rows]
    matches, likelihood = ours(url, model, rows)
    their_matches, their_likelihood = with_lm_eval(endpoint, rows)
    print(f"{len(rows)} rows      ours      lm_eval")
    print(f"exact_match    {matches:.4f}    {their_matches:.4f}")
    print(f"log-likelihood {likelihood:.4f}  {their_likelihood:.4f}")
    # An answer whose first line ends at another kind of line break than \n would be the only difference.
    assert abs(matches - their_matches) < 1e-9, "exact_match differs"
    # As many digits as a status has.
    assert not expected or abs(matches - float(expected)) < 1e-4, f"the run says {expected}"
    assert math.isclose(likelihood, their_likelihood, rel_tol=1e-4), "the log-likelihood differs"


if __name__ == "__main__":
    main(*sys.argv[1:])
