"""Tokenisers of the common makes and chat templates of the common kinds, with what transformers
makes of lines and conversations."""

import hashlib
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lines import mixed_lines

SPECIAL = ["<|bos|>", "<|eos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
VOCABULARY = 512
# Lines of which the ids themselves are kept, for people who look for a difference.
SHOWN = 40
# Of each line's ids only this many digits of a hash are kept.
DIGITS = 16
# Where a regular expression's engine may give up: (what, how often, what follows).
LONG = [(" ", 100_000, ""), (" ", 100_000, "x"), ("a", 100_000, ""), ("\n", 100_000, " "), (" \t", 50_000, "é")]


def split(digits: str) -> str:
    """What Llama 3's and Qwen's tokenisers cut by; they differ in how many digits stay together."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


def byte_level(pattern: str, **model: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(mixed_lines(), trainer)
    return tokenizer


def begin_with(tokenizer: Tokenizer, token: str) -> None:
    number = tokenizer.token_to_id(token)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, number)]
    )


def llama_3() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(split(r"\p{N}{1,3}"), ignore_merges=True)
    begin_with(tokenizer, "<|bos|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|end|>")


def qwen() -> PreTrainedTokenizerFast:
    tokenizer = byte_level(split(r"\p{N}"))
    tokenizer.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def sentencepiece(tokenizer: Tokenizer, known: list[str], begin: str) -> Tokenizer:
    """As converted from SentencePiece: blanks are letters, and unknown letters are bytes."""
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=known + [f"<0x{byte:02X}>" for byte in range(256)],
        limit_alphabet=120,
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(mixed_lines(), trainer)
    begin_with(tokenizer, begin)
    # A byte is a token, but its name in a text is not.
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = [token for token in file["added_tokens"] if token["content"] in known]
    return Tokenizer.from_str(json.dumps(file))


def llama_2() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece(tokenizer, ["<unk>", "<s>", "</s>"], "<s>"),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def gemma() -> PreTrainedTokenizerFast:
    """No blank is put in front, and its cut by blanks comes after they have become letters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece(tokenizer, ["<pad>", "<eos>", "<bos>", "<unk>"], "<bos>"),
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


TOKENIZERS = {"llama-3": llama_3, "qwen": qwen, "llama-2": llama_2, "gemma": gemma}

# Ours, in the manner of the common ones. `generation` says who wrote what: its end token is trained.
TEMPLATES = {
    "generation": (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
        "{% else %}{{ m.content | trim }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    # A first turn of its own where there is none, and lines that are all block.
    "default-system": (
        "{% for message in messages %}\n"
        "    {%- if loop.first and messages[0]['role'] != 'system' %}\n"
        "        {{- '<|system|>\\nBe kind.<|end|>\\n' }}\n"
        "    {%- endif %}\n"
        "    {{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>' + '\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|assistant|>\\n' }}\n"
        "{%- endif %}\n"
    ),
    # A variable that changes, slices, filters, and lines that trim_blocks and lstrip_blocks take.
    "headers": (
        "{{- bos_token }}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set rest = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set system_message = '' %}\n"
        "    {%- set rest = messages %}\n"
        "{%- endif %}\n"
        "{{- '<|system|>\\n\\n' + system_message + '<|end|>' }}\n"
        "{%- if tools is not none and tools %}{{ tools | tojson }}{%- endif %}\n"
        "{% for message in rest %}\n"
        "    {% set content = '<|' ~ message.role ~ '|>\\n\\n' + message['content'] | trim + '<|end|>' %}\n"
        "{{ content }}\n"
        "{% endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|assistant|>\\n\\n' }}\n"
        "{%- endif %}\n"
    ),
    # Refuses what it was not trained on.
    "strict": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate: user, assistant, ' + m.role) }}{% endif %}"
        "{% if m.role == 'user' %}{{ '[ask] ' + m.content.strip() + ' [/ask]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + eos_token }}{% endif %}{% endfor %}"
    ),
    # Has no system turn, and a name of its own for the assistant.
    "renamed": (
        "{{ bos_token }}\n"
        "{%- if messages[0]['role'] == 'system' -%}\n"
        "    {%- if messages[0]['content'] is string -%}\n"
        "        {%- set first = messages[0]['content'] + '\\n\\n' -%}\n"
        "    {%- else -%}\n"
        "        {%- set first = messages[0]['content'][0]['text'] + '\\n\\n' -%}\n"
        "    {%- endif -%}\n"
        "    {%- set rest = messages[1:] -%}\n"
        "{%- else -%}\n"
        "    {%- set first = '' -%}\n"
        "    {%- set rest = messages -%}\n"
        "{%- endif -%}\n"
        "{%- for m in rest -%}\n"
        "    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n"
        "        {{ raise_exception('turns of user and assistant must alternate') }}\n"
        "    {%- endif -%}\n"
        "    {%- if (m['role'] == 'assistant') -%}\n"
        "        {%- set who = 'model' -%}\n"
        "    {%- else -%}\n"
        "        {%- set who = m['role'] -%}\n"
        "    {%- endif -%}\n"
        "    {{ '<turn>' + who + '\\n' + (first if loop.first else '') }}\n"
        "    {%- if m['content'] is string -%}\n"
        "        {{ m['content'] | trim }}\n"
        "    {%- elif m['content'] is iterable -%}\n"
        "        {%- for item in m['content'] if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endfor -%}\n"
        "    {%- endif -%}\n"
        "    {{ '<|end|>\\n' }}\n"
        "{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}\n"
        "    {{ '<turn>model\\n' }}\n"
        "{%- endif -%}\n"
    ),
    # Keeps the thinking of the last answer alone.
    "forgetful": (
        "{%- set ns = namespace(last=-1) %}\n"
        "{%- for message in messages[::-1] %}\n"
        "    {%- set index = (messages|length - 1) - loop.index0 %}\n"
        "    {%- if ns.last < 0 and message.role == 'user' and not message.content.startswith('<result>') %}\n"
        "        {%- set ns.last = index %}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- for message in messages %}\n"
        "    {%- set content = message.content %}\n"
        "    {%- if message.role == 'assistant' and '</think>' in content %}\n"
        "        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
        "        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
        "        {%- if loop.index0 > ns.last %}\n"
        "            {%- set content = '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content %}\n"
        "        {%- endif %}\n"
        "    {%- endif %}\n"
        "    {{- '<|' + message.role + '|>\\n' + content + '<|end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}\n"
    ),
}

CONVERSATIONS = [
    [("user", "What colour is it?"), ("assistant", "blå 🦀")],
    [
        ("system", " Be brief. "),
        ("user", "a\n\nb"),
        ("assistant", "\n\nfirst"),
        ("user", "報銷單"),
        ("assistant", "second"),
    ],
    [
        ("user", "  {{ 7 * 7 }} {% raw %} <b>&amp;</b> "),
        ("assistant", "<think>\nIs it?\n</think>\n\nIt's 49."),
        ("user", "And\tthen? \u00a0"),
        ("assistant", "<think>\nWell\n</think>\n\n50 \n"),
    ],
    [("user", "one"), ("user", "two"), ("assistant", "")],
]


def turns(conversation: list[tuple[str, str]]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in conversation]


def prefix_mask(tokenizer: PreTrainedTokenizerFast, messages: list[dict], text: str) -> list[int] | None:
    """Who wrote what, where the template does not say: from where a generation prompt ends to where the
    turn ends. None where a later turn changes an earlier one."""
    answers = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:number], add_generation_prompt=True)
        through = render(tokenizer, messages[: number + 1])
        if not through.startswith(before) or not text.startswith(through):
            return None
        answers.append(range(len(before), len(through)))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [int(any(start in answer for answer in answers)) for start, _ in offsets]


def render(tokenizer: PreTrainedTokenizerFast, messages: list[dict], **options: bool) -> str:
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def chat(tokenizer: PreTrainedTokenizerFast, messages: list[dict]) -> dict:
    """Text, ids and mask of a conversation, and ids of what it asks; or what the template says."""
    try:
        text = render(tokenizer, messages)
    except Exception as error:
        return {"messages": messages, "refused": str(error)}
    whole = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    if "{% generation %}" in tokenizer.chat_template:
        mask = list(whole["assistant_masks"])
    else:
        mask = prefix_mask(tokenizer, messages, text)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True)
    return {
        "messages": messages,
        "text": text,
        "tokens": list(whole["input_ids"]),
        "mask": mask,
        "prompt": list(prompt["input_ids"]),
    }


def fingerprint(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:DIGITS]


def lines_of(tokenizer: PreTrainedTokenizerFast, lines: list[str]) -> dict:
    ids = [tokenizer(line)["input_ids"] for line in lines]
    long = []
    for piece, times, end in LONG:
        made = tokenizer(piece * times + end)["input_ids"]
        long.append({"piece": piece, "times": times, "end": end, "ids": len(made), "hash": fingerprint(made)})
    return {"hashes": [fingerprint(line) for line in ids], "shown": ids[:SHOWN], "long": long}


def record_tokens(folder: Path, write_json) -> None:
    folder.mkdir(parents=True)
    lines = mixed_lines()
    write_json(folder / "lines.json", lines)
    for name, build in TOKENIZERS.items():
        tokenizer = build()
        tokenizer.save_pretrained(folder / name)
        write_json(folder / name / "ids.json", lines_of(tokenizer, lines))
        print(f"tokens: {name}, {len(lines)} lines", flush=True)
    tokenizer = llama_3()
    chats = {}
    for name, template in TEMPLATES.items():
        tokenizer.chat_template = template
        chats[name] = {
            "template": template,
            "chats": [chat(tokenizer, turns(conversation)) for conversation in CONVERSATIONS],
        }
        print(f"tokens: template {name}", flush=True)
    write_json(folder / "chats.json", chats)
