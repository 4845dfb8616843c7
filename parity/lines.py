"""A thousand lines of many scripts, the same on every machine: what tokenisers are compared on."""

import random

WORDS = {
    "latin": "the claim's receipt isn't valid naïve façade Ærøskøbing straße coöperate WE'LL you're".split(),
    "greek": "ελληνικά λέξη πρόταση".split(),
    "cyrillic": "счёт оплата ёжик объявление".split(),
    "han": ["漢字", "报销单", "東京都", "，", "。"],
    "kana": ["カタカナ", "ひらがな", "ﾊﾝｶｸ"],
    "hangul": ["한국어", "영수증"],
    "arabic": ["فاتورة", "مصاريف", "ﷺ"],
    "devanagari": ["हिन्दी", "किताब", "क्षि"],
    "thai": ["ภาษาไทย", "ใบเสร็จ"],
    "emoji": ["🦀", "👩🏽‍🚀", "🇸🇪", "❤️"],
    "number": ["0", "12", "345", "6789", "3.1415", "1,000,000", "٣٤", "½"],
    "code": ["fn main() {", "}", "x += 1;", "<|user|>", "</s>", "\\n", "a_b-c", "https://example.com/?q=1"],
    "marks": ["e\u0301", "e", "\u0301", "\u200b", "\ufeff", "\u00a0", "\u2028", "\x00", "\x7f"],
}
SPACES = [" ", " ", " ", "  ", "   ", "\t", "\n", "\r\n", " \n ", ""]


def mixed_lines(count: int = 1000, seed: int = 7) -> list[str]:
    """Lines of one to thirty words, half of them of one script, and a few that break careless code."""
    rng = random.Random(seed)
    scripts = list(WORDS)
    lines = ["", " ", "\n", "  leading", "trailing  ", "a" * 300, " " * 300, "\n" * 40, "é" * 65]
    while len(lines) < count:
        own = rng.sample(scripts, 1 if rng.random() < 0.5 else 4)
        words = [rng.choice(WORDS[rng.choice(own)]) for _ in range(rng.randint(1, 30))]
        lines.append("".join(word + rng.choice(SPACES) for word in words))
    return lines
