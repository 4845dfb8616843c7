"""Seeded text: words of syllables, as often as words are (Zipf), and the tokenizer that is trained on it."""

import itertools
import json
import random
from pathlib import Path

ONSETS = ["", *"b br c ch d f g gr h j k l m n p qu r s st t v w z".split()]
NUCLEI = "a ai e ea i o oo u é".split()
CODAS = ["", "", *"l n nd r s t x".split()]
SPECIAL = ["<s>", "</s>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endif %}{% endfor %}"
)


class Lexicon:
    """Twice as many words as there are tokens: common ones become single tokens, rare ones several."""

    def __init__(self, vocabulary: int, seed: int = 1) -> None:
        numbers = random.Random(seed)
        words: dict[str, None] = {}
        while len(words) < 2 * vocabulary:
            count = numbers.choices([1, 2, 3, 4], [2, 5, 4, 1])[0]
            words["".join(
                numbers.choice(ONSETS) + numbers.choice(NUCLEI) + numbers.choice(CODAS) for _ in range(count)
            )] = None
        self.words = list(words)
        self.cumulative = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(self.words))))

    def draw(self, numbers: random.Random, count: int) -> list[str]:
        return numbers.choices(self.words, cum_weights=self.cumulative, k=count)

    def sentence(self, numbers: random.Random) -> str:
        words = self.draw(numbers, numbers.randint(4, 24))
        if numbers.random() < 0.2:
            words.insert(numbers.randrange(len(words)), str(numbers.randrange(10**6)))
        words[0] = words[0].capitalize()
        return " ".join(words) + numbers.choice([".", ".", ".", "?", "!", ";"])

    def paragraph(self, numbers: random.Random, sentences: int) -> str:
        return " ".join(self.sentence(numbers) for _ in range(sentences))

    def write_tokenizer(self, folder: Path, vocabulary: int) -> None:
        """Byte-level BPE with `<s>` before a text, as Llama 3's."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        numbers = random.Random(2)
        text = (self.paragraph(numbers, 20) for _ in range(vocabulary // 4))
        # Each word once more: rare words have merges too, and the vocabulary is full.
        tokenizer.train_from_iterator(itertools.chain(text, (" " + word for word in self.words)), trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
            "chat_template": CHAT_TEMPLATE,
        }, indent=1) + "\n")


def rows_of_length(folder: Path, lengths: list[int], vocabulary: int, seed: int) -> tuple[list[str], list[list[int]]]:
    """Texts that have exactly so many tokens with `<s>` and `</s>` around them, and their ids."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = [
        " " + word for word in Lexicon(vocabulary).words
        if len(tokenizer.encode(" " + word, add_special_tokens=False).ids) == 1
    ]
    numbers = random.Random(seed)
    texts, ids = [], []
    for length in lengths:
        text = "".join(numbers.choices(words, k=length - 2))
        tokens = tokenizer.encode(text).ids + [1]
        if len(tokens) != length:
            raise RuntimeError(f"a row has {len(tokens)} tokens in place of {length}")
        texts.append(text)
        ids.append(tokens)
    return texts, ids
