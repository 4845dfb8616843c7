"""llama.cpp, in process: one adapter set per decode, as its API has it.

Reads commands as JSON lines, answers with JSON lines: {"do": "generate" | "prefill" | "logprobs", ...}.
"""

import ctypes
import json
import sys
import time

import llama_cpp
import numpy


class Llama:
    def __init__(self, model: str, adapters: list[str], threads: int, streams: int, context: int) -> None:
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), settings)
        if not self.model:
            raise SystemExit(f"error: llama.cpp can't load {model}")
        self.adapters = [llama_cpp.llama_adapter_lora_init(self.model, path.encode()) for path in adapters]
        if not all(self.adapters):
            raise SystemExit("error: llama.cpp can't load an adapter")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = streams * context
        settings.n_batch = settings.n_ubatch = 512
        settings.n_seq_max = streams
        settings.n_threads = settings.n_threads_batch = threads
        # One buffer for all sequences: the faster way for many short ones.
        settings.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit("error: llama.cpp can't make a context")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def use(self, adapter: int | None) -> None:
        if adapter is None:
            status = llama_cpp.llama_set_adapters_lora(self.context, None, 0, None)
        else:
            one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self.adapters[adapter])
            status = llama_cpp.llama_set_adapters_lora(self.context, one, 1, (ctypes.c_float * 1)(1.0))
        if status != 0:
            raise SystemExit(f"error: llama_set_adapters_lora gives {status}")

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, sequence, whether its logits are wanted)."""
        self.batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            self.batch.token[index] = token
            self.batch.pos[index] = position
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = sequence
            self.batch.logits[index] = wanted
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status != 0:
            raise SystemExit(f"error: llama_decode gives {status}")

    def logits(self, index: int) -> numpy.ndarray:
        found = llama_cpp.llama_get_logits_ith(self.context, index)
        return numpy.ctypeslib.as_array(found, shape=(self.vocabulary,))

    def prefill(self, sequences: list[tuple[int, list[int]]]) -> dict[int, int]:
        """Prompts of sequences of one adapter, packed into full batches: each one's next token."""
        rows = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in sequences for position, token in enumerate(prompt)
        ]
        found = {}
        for start in range(0, len(rows), 512):
            piece = rows[start:start + 512]
            self.decode(piece)
            for index, (_, _, sequence, wanted) in enumerate(piece):
                if wanted:
                    found[sequence] = int(self.logits(index).argmax())
        return found

    def generate(self, streams: list, new_tokens: int) -> dict:
        """All streams greedy: of each adapter's rows one decode a step."""
        self.clear()
        groups: dict[int | None, list[int]] = {}
        for sequence, (adapter, _) in enumerate(streams):
            groups.setdefault(adapter, []).append(sequence)
        answers: list[list[int]] = [[] for _ in streams]
        begun = time.perf_counter()
        for adapter, members in groups.items():
            self.use(adapter)
            for sequence, token in self.prefill([(member, streams[member][1]) for member in members]).items():
                answers[sequence].append(token)
        first = time.perf_counter() - begun
        for step in range(1, new_tokens):
            for adapter, members in groups.items():
                self.use(adapter)
                self.decode([
                    (answers[member][-1], len(streams[member][1]) + step - 1, member, True) for member in members
                ])
                for index, member in enumerate(members):
                    answers[member].append(int(self.logits(index).argmax()))
        return {"seconds": time.perf_counter() - begun, "prefill_seconds": first, "answers": answers}

    def time_prefill(self, adapter: int | None, prompt: list[int]) -> dict:
        self.clear()
        self.use(adapter)
        begun = time.perf_counter()
        self.prefill([(0, prompt)])
        return {"seconds": time.perf_counter() - begun}

    def logprobs(self, adapter: int | None, tokens: list[int]) -> dict:
        """Log-probability of every token but the first, teacher forced."""
        self.clear()
        self.use(adapter)
        self.decode([(token, position, 0, True) for position, token in enumerate(tokens)])
        found = []
        for index, token in enumerate(tokens[1:]):
            row = self.logits(index).astype(numpy.float64)
            top = row.max()
            found.append(float(row[token] - top - numpy.log(numpy.exp(row - top).sum())))
        return {"logprobs": found}


def main() -> None:
    start = json.loads(sys.argv[1])
    llama = Llama(start["model"], start["adapters"], start["threads"], start["streams"], start["context"])
    info = llama_cpp.llama_print_system_info().decode().strip()
    print(json.dumps({"ready": True, "version": llama_cpp.__version__, "info": info}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "generate":
                answer = llama.generate(command["streams"], command["new_tokens"])
            case "prefill":
                answer = llama.time_prefill(command["adapter"], command["prompt"])
            case "logprobs":
                answer = llama.logprobs(command["adapter"], command["tokens"])
            case other:
                raise SystemExit(f"error: unknown command {other}")
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
