"""Records what rouge-score makes of pairs of texts: python parity/rouge.py OUT.json

Needs rouge-score==0.1.2 alone. The same pairs every time.
"""

import json
import random
import sys

from rouge_score import rouge_scorer

WORDS = (
    "the a claim of for hotel taxi paid on 12 03 2026 receipt missing approved rejected because "
    "Über naïve don't e-mail İstanbul ΑΒΓ straße 北京 100% 3.50 EUR x1 K Å".split()
)


def text(rng, length):
    glue = [" ", " ", " ", "  ", "\n", ", ", "-", "_", "."]
    return "".join(rng.choice(WORDS) + rng.choice(glue) for _ in range(length))


def main(out):
    rng = random.Random(7)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    pairs = []
    for number in range(500):
        expected = text(rng, rng.randrange(0, 12))
        if number % 3 == 0:
            words = expected.split(" ")
            kept = [word for word in words if rng.random() < 0.7]
            answer = " ".join(kept).upper()
        else:
            answer = text(rng, rng.randrange(0, 12))
        score = scorer.score(expected, answer)["rougeL"].fmeasure
        pairs.append([expected, answer, score])
    with open(out, "w", encoding="utf-8") as file:
        json.dump(pairs, file, ensure_ascii=False, indent=0)
        file.write("\n")


main(sys.argv[1])
