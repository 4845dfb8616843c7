"""transformers + peft, in process: rows of several adapters in one batch by `adapter_names`.

Reads commands as JSON lines, answers with JSON lines, as peer_llama.py; "register" loads one adapter more.
"""

import json
import sys
import time

import peft
import torch
import transformers


class Peft:
    def __init__(self, model: str, adapters: list[str], threads: int, dtype: str, device: str) -> None:
        torch.set_num_threads(threads)
        self.device = device
        base = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).to(device)
        self.model = peft.PeftModel.from_pretrained(base, adapters[0], adapter_name="a0")
        for index, path in enumerate(adapters[1:], 1):
            self.model.load_adapter(path, adapter_name=f"a{index}")
        self.model.to(device).eval()
        self.extra = 0

    def names(self, adapters: list[int | None]) -> list[str]:
        return ["__base__" if adapter is None else f"a{adapter}" for adapter in adapters]

    def tensor(self, values: list) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def now(self) -> float:
        """The time, once all that was asked for is computed."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    @torch.inference_mode()
    def generate(self, streams: list, new_tokens: int) -> dict:
        longest = max(len(prompt) for _, prompt in streams)
        # On the left, as generation wants it.
        ids = self.tensor([[0] * (longest - len(prompt)) + prompt for _, prompt in streams])
        mask = self.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for _, prompt in streams])
        more = {}
        if any(adapter is not None for adapter, _ in streams):
            more["adapter_names"] = self.names([adapter for adapter, _ in streams])
        begun = self.now()
        with self.without_adapters(not more):
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                do_sample=False, eos_token_id=None, pad_token_id=0, **more,
            )
        seconds = self.now() - begun
        if out.shape[1] != longest + new_tokens:
            raise SystemExit(f"error: {out.shape[1] - longest} tokens in place of {new_tokens}")
        return {"seconds": seconds, "answers": out[:, longest:].tolist()}

    def without_adapters(self, wanted: bool):
        """No adapter at all is computed, where nobody asks for one."""
        import contextlib

        return self.model.disable_adapter() if wanted else contextlib.nullcontext()

    @torch.inference_mode()
    def time_prefill(self, adapter: int | None, prompt: list[int]) -> dict:
        ids = self.tensor([prompt])
        begun = self.now()
        self.model(input_ids=ids, adapter_names=self.names([adapter]), logits_to_keep=1)
        return {"seconds": self.now() - begun}

    @torch.inference_mode()
    def logprobs(self, adapter: int | None, tokens: list[int]) -> dict:
        logits = self.model(input_ids=self.tensor([tokens]), adapter_names=self.names([adapter])).logits[0, :-1]
        logs = logits.double().log_softmax(-1)
        return {"logprobs": logs.gather(1, self.tensor(tokens[1:])[:, None])[:, 0].tolist()}

    @torch.inference_mode()
    def sample(self, adapter: int, length: int, seed: int) -> dict:
        """Tokens drawn from the model's own distribution, and their log-probabilities."""
        torch.manual_seed(seed)
        tokens = [0]
        cache = None
        names = self.names([adapter])
        while len(tokens) < length:
            out = self.model(
                input_ids=self.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True, adapter_names=names
            )
            cache = out.past_key_values
            tokens.append(int(torch.multinomial(out.logits[0, -1].double().softmax(-1), 1)))
        return {"tokens": tokens} | self.logprobs(adapter, tokens)

    def register(self, path: str) -> dict:
        """Loads one adapter more, and takes it out again so that the next measurement finds the same."""
        self.extra += 1
        name = f"extra{self.extra}"
        begun = self.now()
        self.model.load_adapter(path, adapter_name=name)
        seconds = self.now() - begun
        self.model.delete_adapter(name)
        return {"seconds": seconds}


def main() -> None:
    start = json.loads(sys.argv[1])
    model = Peft(start["model"], start["adapters"], start["threads"], start["dtype"], start.get("device", "cpu"))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    print(json.dumps({"ready": True, "version": versions}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "generate":
                answer = model.generate(command["streams"], command["new_tokens"])
            case "prefill":
                answer = model.time_prefill(command["adapter"], command["prompt"])
            case "logprobs":
                answer = model.logprobs(command["adapter"], command["tokens"])
            case "sample":
                answer = model.sample(command["adapter"], command["length"], command["seed"])
            case "register":
                answer = model.register(command["path"])
            case other:
                raise SystemExit(f"error: unknown command {other}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
