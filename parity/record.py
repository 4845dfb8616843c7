"""Records what torch, transformers, peft and TRL compute on tiny models, as fixtures for our tests.

    python record.py FOLDER

Each case becomes a folder: `base/` (the model), `adapter/` (LoRA with non-zero B, as peft writes it),
`trained/` (the same after training), `expected.safetensors` (logits with and without the adapter,
gradients) and `expected.json` (rows, losses). Beside them `preference/` (DPO on the first case's model and
adapter), `gguf/` (a base in blocks, beside transformers and llama.cpp), `tokens/` (tokenisers, lines, conversations) and `versions.json`.
"""

import copy
import json
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import datasets
import peft
import tokenizers
import torch
import transformers
import trl
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

import gguf_base
import preference
from models import VOCABULARY, Case, build_model, cases, save_model
from tokens import llama_3, record_tokens

STEPS = 100
# Higher ones train faster and amplify rounding until no two programs agree: see `check_sensitivity`.
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.01
# Longer than the sliding windows, of different lengths, none a multiple of a block of 16.
LENGTHS = [41, 9, 23, 30]


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


def values(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in lora_parameters(model).items()}


def lora_config(case: Case) -> LoraConfig:
    made = dict(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM") | copy.deepcopy(case.lora)
    return LoraConfig(**made)


def adapt(model: torch.nn.Module, case: Case) -> PeftModel:
    adapted = get_peft_model(model, lora_config(case))
    generator = torch.Generator().manual_seed(200 + case.seed)
    with torch.no_grad():
        for parameter in lora_parameters(adapted).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return adapted


def save_adapter(model: PeftModel, folder: Path) -> None:
    model.save_pretrained(folder)
    # An empty model card.
    (folder / "README.md").unlink()


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


def check_sensitivity(case: Case, batch: list[dict], losses: list[float], deltas: dict) -> None:
    """The same in f64 stays within a fifth of our tests' bars: else what is recorded is rounding."""
    adapted = adapt(build_model(case), case).double()
    before = values(adapted)
    exact = train(adapted, batch)
    worst = max(abs(a - b) for a, b in zip(losses, exact))
    after = values(adapted)
    apart = max(
        ((deltas[name] - (after[name] - before[name])).norm() / deltas[name].norm()).item() for name in deltas
    )
    if worst > 2e-3 or apart > 2e-3:
        raise SystemExit(f"{case.name}: f64 has other losses by {worst:.1e} and deltas by {apart:.1e}")


def record_case(case: Case, folder: Path) -> None:
    model = build_model(case)
    save_model(model, case, folder / "base")
    batch = rows(case)
    expected = {}
    with torch.no_grad():
        expected["logits.base"] = logits(model, batch[0]["tokens"])
    adapted = adapt(model, case)
    save_adapter(adapted, folder / "adapter")
    with torch.no_grad():
        expected["logits.adapter"] = logits(adapted, batch[0]["tokens"])
    mean_loss(adapted, batch).backward()
    for name, parameter in lora_parameters(adapted).items():
        if not parameter.grad.abs().max() > 0:
            raise SystemExit(f"{case.name}: {name} has no gradient")
        expected[f"gradient.{name}"] = parameter.grad.clone()
    before = values(adapted)
    losses = train(adapted, batch)
    if not losses[-1] <= 0.7 * losses[0]:
        raise SystemExit(f"{case.name}: the loss fell from {losses[0]} to {losses[-1]} only")
    deltas = {name: after - before[name] for name, after in values(adapted).items()}
    check_sensitivity(case, batch, losses, deltas)
    save_adapter(adapted, folder / "trained")
    save_tensors(expected, folder)
    run = {"rows": batch, "losses": losses, "learningRate": LEARNING_RATE, "weightDecay": WEIGHT_DECAY}
    write_json(folder / "expected.json", run)
    print(f"{case.name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, {len(deltas)} gradients", flush=True)


def record_preference(case: Case, folder: Path) -> None:
    folder.mkdir()
    start = values(adapt(build_model(case), case))
    alphabet = sorted(set(rows(case)[0]["tokens"]))
    made = preference.pairs(alphabet, 300 + case.seed)
    kept, gradients = preference.record(
        build_model(case), lora_config(case), llama_3(), made, lora_parameters, start, LEARNING_RATE, WEIGHT_DECAY
    )
    for name, gradient in gradients.items():
        if not gradient.abs().max() > 0:
            raise SystemExit(f"preference: {name} has no gradient")
    losses = kept["losses"]
    if not losses[-1] <= 0.7 * losses[0]:
        raise SystemExit(f"preference: the loss fell from {losses[0]} to {losses[-1]} only")
    save_tensors({f"gradient.{name}": gradient for name, gradient in gradients.items()}, folder)
    kept |= {"case": case.name, "learningRate": LEARNING_RATE, "weightDecay": WEIGHT_DECAY}
    write_json(folder / "expected.json", kept)
    print(f"preference: loss {kept['fresh']:.6f} fresh, {losses[0]:.4f} -> {losses[-1]:.4f}", flush=True)


def record_gguf(folder: Path) -> None:
    tensors, expected = gguf_base.record(folder)
    save_tensors(tensors, folder)
    write_json(folder / "expected.json", expected)


def save_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    if os.environ.get("PYTHONHASHSEED") != "0":
        # peft keeps names in sets, whose order it writes.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"})
    out = Path(sys.argv[1])
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # One thread: the order of sums, and with it the last digits, stay the same.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    shutil.rmtree(out, ignore_errors=True)
    for case in cases():
        folder = out / case.name
        folder.mkdir(parents=True)
        record_case(case, folder)
    record_preference(cases()[0], out / "preference")
    record_gguf(out / "gguf")
    record_tokens(out / "tokens", write_json)
    used = ("torch", "transformers", "peft", "trl", "tokenizers", "gguf", "llama-cpp-python")
    write_json(out / "versions.json", {name: version(name) for name in used})


if __name__ == "__main__":
    main()
