"""Recall and precision of a detector of personal data, by type.

The command on this script's command line reads {"text": ...} a line and answers {"findings": [{"type", "start",
"end"}]} with offsets in bytes. Positives are values of Faker, in several locales, at a random place of a sentence of
Faker's in the same locale. Negatives are what looks alike: order numbers, versions, hashes, dates, amounts.

A positive is found where findings of its type cover it. A finding is right where it overlaps a value of its type. The
exit code is 1 where a type is below the bars.
"""

import base64
import json
import random
import subprocess
import sys

from faker import Faker

PER_TYPE = 900
NEGATIVES = 6000
RECALL, PRECISION = 0.995, 0.98

SEED = 20261121
dice = random.Random(SEED)


def locale(name):
    fake = Faker(name)
    fake.seed_instance(SEED)
    return fake


def spaced_card(fake):
    number = fake.credit_card_number(card_type="visa16")
    return " ".join(number[at : at + 4] for at in range(0, 16, 4))


def web_token(fake):
    part = lambda value: base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
    signature = base64.urlsafe_b64encode(fake.binary(32)).decode().rstrip("=")
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': fake.user_name(), 'exp': 1})}.{signature}"


def private_key(fake):
    body = base64.b64encode(fake.binary(360)).decode()
    lines = "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
    # Put together here, so that no scanner takes this file for a leak.
    title = "PRIVATE" + " KEY-----"
    return f"-----BEGIN {title}\n{lines}\n-----END {title}"


def letters(fake, count):
    return fake.password(length=count, special_chars=False)


# Each type: locales, and ways to make a value. A way may give (prefix, value): the prefix is part of the text alone.
TYPES = {
    "email": (
        "en_US de_DE fr_FR sv_SE es_ES it_IT pl_PL ja_JP".split(),
        [lambda f: f.email(), lambda f: f.company_email(), lambda f: f.ascii_free_email()],
    ),
    "phone": (
        "en_US en_GB de_DE fr_FR sv_SE es_ES it_IT nl_NL pl_PL".split(),
        [lambda f: f.phone_number()],
    ),
    "paymentCard": (
        ["en_US"],
        [lambda f: f.credit_card_number(), spaced_card],
    ),
    "iban": (
        "en_GB de_DE fr_FR es_ES it_IT nl_NL pl_PL fi_FI".split(),
        [lambda f: f.iban()],
    ),
    "ipAddress": (
        ["en_US"],
        [lambda f: f.ipv4_public(), lambda f: f.ipv4_private(), lambda f: f.ipv6()],
    ),
    "nationalId": (
        "en_US sv_SE pl_PL fi_FI no_NO pt_BR it_IT fr_FR tr_TR nl_BE de_CH".split(),
        [lambda f: f.ssn()],
    ),
    "secret": (
        ["en_US"],
        [
            lambda f: ("api_key=", letters(f, 32)),
            lambda f: ('"client_secret": "', letters(f, 24)),
            lambda f: ("Authorization: Bearer ", letters(f, 40)),
            lambda f: ("token: ", f.sha256()),
            lambda f: "AKIA" + f.lexify("?" * 16, letters="ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"),
            lambda f: "ghp_" + letters(f, 36),
            lambda f: "xoxb-" + f.numerify("############-") + letters(f, 24),
            lambda f: ("aws_secret_access_key = ", letters(f, 40)),
            lambda f: ("AccountKey=", base64.b64encode(f.binary(64)).decode()),
            lambda f: "github_pat_" + letters(f, 22) + "_" + letters(f, 59),
            lambda f: "glpat-" + letters(f, 20),
            lambda f: "sk_live_" + letters(f, 24),
            lambda f: "AIza" + letters(f, 35),
            lambda f: "GOCSPX-" + letters(f, 28),
            web_token,
            private_key,
        ],
    ),
}
SPANISH = [lambda f: f.nif(), lambda f: f.nie()]


def looks_alike(fake):
    digits = lambda count: fake.numerify("%" + "#" * (count - 1))
    return dice.choice(
        [
            lambda: f"order {digits(10)}",
            lambda: f"order number {digits(9)}",
            lambda: f"invoice {digits(8)}",
            lambda: f"Order no. {digits(16)}",
            lambda: f"ticket #{digits(7)}",
            lambda: f"ORD-{digits(10)}",
            lambda: f"tracking {digits(12)}",
            lambda: f"version {fake.numerify('%.#.#.#')}",
            lambda: f"v{fake.numerify('%.##.###')}",
            lambda: f"release {fake.numerify('%#.#.####')}-rc1",
            lambda: f"commit {fake.sha1()}",
            lambda: f"sha256:{fake.sha256()}",
            lambda: f"md5 {fake.md5()}",
            lambda: fake.uuid4(),
            lambda: fake.isbn13(),
            lambda: f"ISBN {fake.isbn10()}",
            lambda: fake.date(),
            lambda: fake.iso8601(),
            lambda: fake.date(pattern="%d/%m/%Y"),
            lambda: f"{fake.pricetag()}",
            lambda: f"EAN {fake.ean13()}",
            lambda: f"{dice.randint(1, 10**6):,} rows",
            lambda: f"epoch {dice.randint(1_600_000_000, 1_800_000_000)}",
            lambda: f"{dice.randint(1_600_000_000_000, 1_800_000_000_000)}",
            lambda: f"SKU {fake.bothify('??-####-??')}",
            lambda: f"build {digits(11)}",
            lambda: f"{fake.numerify('%##')} kB in {fake.numerify('%##')} ms",
            lambda: fake.mac_address(),
            lambda: f"{fake.latitude()}, {fake.longitude()}",
            lambda: f"@{fake.user_name()}",
            lambda: f"{fake.word()}@{fake.numerify('%.#.#')}",
            lambda: f"logo@{dice.choice('23')}x.png",
            lambda: f"{fake.word()}::{fake.word()}",
            lambda: f"page {dice.randint(1, 999)} of {dice.randint(1000, 9999)}",
        ]
    )()


def planted(fake, prefix, value):
    """A sentence with the value in it, and the value's place in bytes."""
    words = fake.sentence(nb_words=10).rstrip(".").split(" ")
    at = dice.randint(0, len(words))
    before = " ".join(words[:at])
    before += (" " if before else "") + prefix
    after = dice.choice([" ", ", ", ". "]) + " ".join(words[at:]) if words[at:] else dice.choice(["", "."])
    start = len(before.encode())
    return before + value + after, start, start + len(value.encode())


def rows():
    for name, (locales, ways) in TYPES.items():
        makers = [(locale(it), ways) for it in locales]
        if name == "nationalId":
            makers.append((locale("es_ES"), SPANISH))
        for number in range(PER_TYPE):
            fake, ways_here = makers[number % len(makers)]
            value = ways_here[number // len(makers) % len(ways_here)](fake)
            prefix, value = value if isinstance(value, tuple) else ("", value)
            yield name, *planted(fake, prefix, value)
    fake = locale("en_US")
    for _ in range(NEGATIVES):
        text, _, _ = planted(fake, "", looks_alike(fake))
        yield None, text, 0, 0


def main():
    every = list(rows())
    lines = "".join(json.dumps({"text": text}) + "\n" for _, text, _, _ in every)
    answer = subprocess.run(sys.argv[1:], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout
    answers = [json.loads(line)["findings"] for line in answer.splitlines()]
    assert len(answers) == len(every), f"{len(answers)} answers to {len(every)} lines"

    positives, found, right, wrong = ({name: 0 for name in TYPES} for _ in range(4))
    examples = {name: [] for name in TYPES}
    for (name, text, start, end), findings in zip(every, answers):
        if name:
            covered = start
            for it in findings:
                if it["type"] == name and it["start"] <= covered:
                    covered = max(covered, it["end"])
            positives[name] += 1
            found[name] += covered >= end
            if covered < end:
                examples[name].append("missed: " + text)
        for it in findings:
            fits = it["type"] == name and it["start"] < end and start < it["end"]
            (right if fits else wrong)[it["type"]] += 1
            if not fits:
                examples[it["type"]].append("wrong: " + text)

    low = False
    print(f"{'type':<12} {'positives':>9} {'recall':>8} {'precision':>9}")
    for name in TYPES:
        recall = found[name] / positives[name]
        precision = right[name] / max(1, right[name] + wrong[name])
        below = recall < RECALL or precision < PRECISION
        low |= below
        print(f"{name:<12} {positives[name]:>9} {recall:>8.2%} {precision:>9.2%}{'  below the bar' if below else ''}")
    if low:
        # Everything here is made up: nobody's data is printed.
        for name, texts in examples.items():
            for text in texts[:8]:
                print(f"{name}: {text}", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
