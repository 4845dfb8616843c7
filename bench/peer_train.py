"""transformers + peft: trains what it is told to and prints what it saw as one JSON line."""

import json
import random
import sys
import time
from pathlib import Path

import torch
import transformers
from peft import PeftModel


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def batches(rows: list[list[int]], micro_batch: int, seed: int, device: str) -> list[Batch]:
    """Ids, mask and labels of a step's micro-batches, each padded to its longest row. Rows come as they come."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    found = []
    for start in range(0, len(order), micro_batch):
        chosen = [rows[index] for index in order[start:start + micro_batch]]
        longest = max(map(len, chosen))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in chosen])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in chosen])
        batch = (ids, mask, ids.masked_fill(mask == 0, -100))
        found.append(tuple(each.to(device) for each in batch))
    return found


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def main() -> None:
    told = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(told["threads"])
    torch.manual_seed(1)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        told["model"], dtype=getattr(torch, told["dtype"]), attn_implementation="sdpa"
    )
    base.config.use_cache = False
    device = told.get("device", "cpu")
    base.to(device)
    if told.get("checkpointing"):
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = PeftModel.from_pretrained(base, told["adapter"], is_trainable=True)
    model.to(device).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=told["learning_rate"], weight_decay=0.0)
    rows = told["rows"]
    targets = sum(len(row) - 1 for row in rows)
    losses, norms, ends = [], [], []
    for step in range(told["steps"]):
        loss_sum = 0.0
        for ids, mask, labels in batches(rows, told["micro_batch"], told["seed"] + step, device):
            # A whole batch without padding needs no mask: sdpa then takes its faster, causal way.
            more = {} if bool(mask.all()) else {"attention_mask": mask}
            logits = model(input_ids=ids, **more).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
            ) / targets
            del logits
            loss.backward()
            loss_sum += float(loss.detach())
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, told["clip"])))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_sum)
        if device != "cpu":
            torch.cuda.synchronize()
        ends.append(time.time())
    print(json.dumps({
        "losses": losses, "gradient_norms": norms, "ends": ends, "peak_bytes": peak_bytes(),
        "trainable": sum(parameter.numel() for parameter in parameters),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__,
                     "peft": __import__("peft").__version__},
    }))


if __name__ == "__main__":
    main()
