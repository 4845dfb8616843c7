"""Records what torch, transformers and peft compute on tiny models, as fixtures for our tests.

    python record.py FOLDER

Each case becomes a folder: `base/` (the model), `adapter/` (LoRA with non-zero B, as peft writes it),
`trained/` (the same after training), `expected.safetensors` (logits with and without the adapter,
gradients, norms) and `expected.json` (rows, losses, versions). `tokens.json` holds token ids.
"""

import json
import shutil
import sys
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

from lines import mixed_lines
from models import VOCABULARY, Case, build_model, build_tokenizer, cases, save_model

STEPS = 100
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 0.01
# Longer than the sliding windows, of different lengths, none a multiple of a block of 16.
LENGTHS = [41, 9, 23, 30]
CONVERSATIONS = [
    [{"role": "user", "content": "What colour is it?"}, {"role": "assistant", "content": "blå 🦀"}],
    [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "\n\nfirst"},
        {"role": "user", "content": "報銷單"},
        {"role": "assistant", "content": "second"},
    ],
]


def rows(case: Case) -> list[dict]:
    """Token ids with a mask: two of three tokens are targets, and never the first.

    They are few different ones, so that a hundred steps are enough to learn something.
    """
    generator = torch.Generator().manual_seed(100 + case.seed)
    alphabet = torch.randperm(VOCABULARY, generator=generator)[:24]
    made = []
    for length in LENGTHS:
        tokens = alphabet[torch.randint(0, len(alphabet), (length,), generator=generator)].tolist()
        made.append({"tokens": tokens, "mask": [i > 0 and i % 3 != 1 for i in range(length)]})
    return made


def logits(model: torch.nn.Module, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def mean_loss(model: torch.nn.Module, batch: list[dict]) -> torch.Tensor:
    """Mean negative log-likelihood over all targets of the batch, one row at a time."""
    total, targets = torch.zeros(()), 0
    for row in batch:
        chosen = [i for i, wanted in enumerate(row["mask"]) if wanted]
        predicted = logits(model, row["tokens"])[[i - 1 for i in chosen]]
        wanted = torch.tensor([row["tokens"][i] for i in chosen])
        total = total + torch.nn.functional.cross_entropy(predicted, wanted, reduction="sum")
        targets += len(chosen)
    return total / targets


def lora_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """Trained parameters by the names of peft's files."""
    named = {
        name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return dict(sorted(named.items()))


def adapt(model: torch.nn.Module, case: Case) -> PeftModel:
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM", **case.lora)
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(200 + case.seed)
    with torch.no_grad():
        for parameter in lora_parameters(adapted).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted


def train(model: PeftModel, batch: list[dict]) -> list[float]:
    """Full-batch AdamW at a constant rate: the loss before each step, and after the last."""
    parameters = lora_parameters(model).values()
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = mean_loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(mean_loss(model, batch).item())
    return losses


def record_case(case: Case, folder: Path) -> None:
    model = build_model(case)
    save_model(model, case, folder / "base")
    batch = rows(case)
    expected = {}
    with torch.no_grad():
        expected["logits.base"] = logits(model, batch[0]["tokens"])
    adapted = adapt(model, case)
    adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        expected["logits.adapter"] = logits(adapted, batch[0]["tokens"])
    mean_loss(adapted, batch).backward()
    for name, parameter in lora_parameters(adapted).items():
        if not parameter.grad.abs().max() > 0:
            raise SystemExit(f"{case.name}: {name} has no gradient")
        expected[f"gradient.{name}"] = parameter.grad.clone()
    losses = train(adapted, batch)
    if not losses[-1] <= 0.7 * losses[0]:
        raise SystemExit(f"{case.name}: the loss fell from {losses[0]} to {losses[-1]} only")
    adapted.save_pretrained(folder / "trained")
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    write_json(
        folder / "expected.json",
        {
            "rows": batch,
            "losses": losses,
            "learningRate": LEARNING_RATE,
            "weightDecay": WEIGHT_DECAY,
            "versions": versions(),
        },
    )
    print(f"{case.name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, {len(expected) - 2} gradients")


def record_tokens(folder: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder / "tokenizer")
    lines = mixed_lines()
    chats = []
    for messages in CONVERSATIONS:
        whole = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True)
        chats.append(
            {
                "messages": messages,
                "text": tokenizer.apply_chat_template(messages, tokenize=False),
                "tokens": list(whole["input_ids"]),
                "mask": list(whole["assistant_masks"]),
                "prompt": list(prompt["input_ids"]),
            }
        )
    ids = [tokenizer(line)["input_ids"] for line in lines]
    write_json(folder / "tokens.json", {"lines": lines, "ids": ids, "chats": chats, "versions": versions()})
    print(f"tokens: {len(lines)} lines, {sum(map(len, ids))} ids")


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    # One thread: the order of sums, and with it the last digits, stay the same.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(out, ignore_errors=True)
    for case in cases():
        folder = out / case.name
        folder.mkdir(parents=True)
        record_case(case, folder)
    record_tokens(out)


if __name__ == "__main__":
    main()
