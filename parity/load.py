"""Loads with peft an adapter that we have written and compares logits with ours.

    python load.py ADAPTER LOGITS.json

ADAPTER is the folder. The JSON file names the `base` model's folder and holds rows of `tokens` and, of every
row, our `logits` with the adapter, `[tokens][vocabulary]`.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

# Of the logits' range, in f32.
BAR = 1e-4


def check_loaded(model: PeftModel, folder: Path) -> None:
    """peft only warns of a tensor that it looks for and does not find, and of one that is too many."""
    written = load_file(folder / "adapter_model.safetensors")
    loaded = {
        name.replace(".default.", "."): value for name, value in model.state_dict().items() if "lora_" in name
    }
    if written.keys() != loaded.keys():
        raise SystemExit(f"{folder}: peft has other tensors: {sorted(written.keys() ^ loaded.keys())}")
    for name, value in written.items():
        if not torch.equal(value.float(), loaded[name].float()):
            raise SystemExit(f"{folder}: peft has other values in {name}")


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    folder, ours = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    base = AutoModelForCausalLM.from_pretrained(ours["base"], dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, folder).eval()
    check_loaded(model, folder)
    worst, effect = 0.0, 0.0
    with torch.no_grad():
        for tokens, row in zip(ours["tokens"], ours["logits"], strict=True):
            ids, got = torch.tensor([tokens]), torch.tensor(row)
            expected = model(input_ids=ids, use_cache=False).logits[0]
            with model.disable_adapter():
                bare = model(input_ids=ids, use_cache=False).logits[0]
            size = expected.max() - expected.min()
            worst = max(worst, ((got - expected).abs().max() / size).item())
            effect = max(effect, ((bare - expected).abs().max() / size).item())
    if not effect > 100 * BAR:
        raise SystemExit(f"{folder}: the adapter changes logits by {effect:.1e} of their range only")
    if not worst <= BAR:
        raise SystemExit(f"{folder}: our logits differ by {worst:.1e} of their range, the bar is {BAR:.0e}")
    print(f"{folder}: {len(ours['tokens'])} rows, logits differ by {worst:.1e} of their range", flush=True)


if __name__ == "__main__":
    main()
