"""Tiny random models of the real architectures, in the folders that transformers itself writes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCABULARY = 512
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=0,
    eos_token_id=[1, 2],
    attn_implementation="eager",
)
# Of the four components one is fast, one between and two are slow.
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=256,
)
STRETCHED = SHAPE | dict(max_position_embeddings=2048)


@dataclass
class Case:
    """One model and the adapter that is trained on it."""

    name: str
    config: Any
    seed: int
    # Keyword arguments of peft.LoraConfig.
    lora: dict = field(default_factory=lambda: dict(target_modules=LINEAR))
    # Of save_pretrained; a small one makes shards.
    shard: str = "1GB"
    dtype: torch.dtype = torch.float32


def cases() -> list[Case]:
    return [
        Case("llama", LlamaConfig(**SHAPE), 1),
        Case(
            "llama-3.1",
            LlamaConfig(**STRETCHED, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
            12,
            lora=dict(
                target_modules=LINEAR,
                use_rslora=True,
                lora_alpha=3,
                rank_pattern={"down_proj": 2, r"layers\.1\.self_attn\..*": 6},
                alpha_pattern={"mlp.up_proj": 3},
                exclude_modules=["gate_proj"],
            ),
        ),
        Case(
            "llama-bias",
            LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3),
            3,
            lora=dict(target_modules=r".*\.(?:q|v)_proj"),
            dtype=torch.bfloat16,
        ),
        Case(
            "mistral",
            MistralConfig(**SHAPE, sliding_window=7, head_dim=12),
            4,
            lora=dict(
                target_modules=["q_proj", "mlp.up_proj"],
                layers_to_transform=[0, 2],
                layers_pattern="layers",
            ),
            dtype=torch.bfloat16,
        ),
        Case("qwen2", Qwen2Config(**SHAPE), 5, lora=dict(target_modules="all-linear"), dtype=torch.float16),
        Case(
            "qwen2-window",
            Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=7, max_window_layers=1),
            6,
            dtype=torch.bfloat16,
        ),
        Case("qwen3", Qwen3Config(**SHAPE, head_dim=12, tie_word_embeddings=True), 7, shard="40KB"),
        # The layer between the two with a window sees everything, by another rotary embedding.
        Case(
            "gemma3",
            Gemma3TextConfig(
                **SHAPE, head_dim=12, query_pre_attn_scalar=20, sliding_window=7, sliding_window_pattern=2
            ),
            10,
            lora=dict(target_modules=LINEAR, lora_alpha=2),
            dtype=torch.bfloat16,
        ),
    ]


def build_model(case: Case) -> torch.nn.Module:
    """Weights large enough that attention looks at something; biases and norms away from 0 and 1.

    Embedding and output are larger still, or a normed hidden state could not tell tokens apart and no
    training would lower the loss by much. What is stored in half precision is rounded first: both sides then compute on the same numbers.
    """
    torch.manual_seed(case.seed)
    model = AutoModelForCausalLM.from_config(case.config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(15.0 if "embed_tokens" in name or "lm_head" in name else 4.0)
            parameter.copy_(parameter.to(case.dtype).to(torch.float32))
    return model.eval()


def save_model(model: torch.nn.Module, case: Case, folder: Path) -> None:
    stored = AutoModelForCausalLM.from_config(case.config, dtype=case.dtype)
    stored.load_state_dict(model.state_dict())
    stored.save_pretrained(folder, max_shard_size=case.shard)
