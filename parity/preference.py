"""What TRL makes of preference pairs: loss, reference, gradients and a few steps of DPO."""

import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

BETA = 0.1
STEPS = 20
# Tokens of each pair's prompt, chosen and rejected answer.
LENGTHS = [(5, 7, 12), (9, 14, 3), (3, 1, 6), (17, 8, 8)]


def pairs(alphabet: list[int], seed: int) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> list[int]:
        return [alphabet[i] for i in torch.randint(0, len(alphabet), (count,), generator=generator)]

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    return [dict(zip(names, map(some, lengths))) for lengths in LENGTHS]


def trainer(model, lora: LoraConfig, tokenizer) -> DPOTrainer:
    """TRL's, with an adapter on the model; its reference is the bare model. Its data set is not used."""
    texts = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
    with tempfile.TemporaryDirectory() as folder:
        return DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=folder, beta=BETA, loss_type="sigmoid", max_length=None, bf16=False, use_cpu=True,
                report_to=[], gradient_checkpointing=False, disable_dropout=True,
            ),
            train_dataset=texts,
            processing_class=tokenizer,
            peft_config=lora,
        )


def record(model, lora, tokenizer, made: list[dict], parameters_of, start: dict, rate: float, decay: float):
    """`start` are the adapter's first values. Returns what is kept as JSON, and gradients by name."""
    dpo = trainer(model, lora, tokenizer)
    adapted = dpo.model
    batch = DataCollatorForPreference(pad_token_id=tokenizer.eos_token_id)(made)

    def loss() -> torch.Tensor:
        return dpo.compute_loss(adapted, batch)

    adapted.train()
    fresh = loss().item()
    chosen, rejected = dpo.compute_ref_log_probs(adapted, batch)
    parameters = parameters_of(adapted)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    loss().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, weight_decay=decay)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    losses.append(loss().item())
    kept = {"pairs": made, "beta": BETA, "fresh": fresh, "references": (chosen - rejected).tolist(), "losses": losses}
    return kept, gradients
