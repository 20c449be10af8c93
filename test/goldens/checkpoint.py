"""Writes checkpoint.golden.json: what PyTorch finds on the exact weights of the checkpoint that the shipped pack was made
from (the trainer wrote it; it is not in the repository).

    python test/goldens/checkpoint.py <checkpoint>

Per text: its token ids, the 20 largest logits after the last one, the likeliest token after every one, and which experts
were routed, a bit mask in hex per layer and position, expert 0 the lowest bit. Requirements: as for prompts.py.
"""

import json
import sys
from pathlib import Path

import torch
from ds_moe import DsMoe
from tokenizers import Tokenizer

TEXTS = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>The history of the bicycle begins in",
    "<|im_start|>user\nCount from 1 to 5.<|im_end|>\n<|im_start|>assistant\n1, 2,",
)
TOP = 20


class Recording(DsMoe):
    """Keeps which experts were on, layer by layer."""

    routed: list[list[str]]

    def gate(self, layer, source):
        g = super().gate(layer, source)
        self.routed.append([f"{sum(1 << e for e in row.nonzero().flatten().tolist()):x}" for row in g > 0])
        return g


@torch.inference_mode()
def main(directory: Path) -> None:
    model = Recording(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    lines = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        model.routed = []
        logits = model.logits(ids)
        top = logits[-1].topk(TOP)
        golden = {
            "ids": ids,
            "top": [[int(i), round(float(v), 5)] for v, i in zip(*top)],
            "likeliest": logits.argmax(-1).tolist(),
            "routed": model.routed,
        }
        lines.append(json.dumps(golden, separators=(",", ":")))
        print(f"{text!r}: {tokenizer.decode([golden['likeliest'][-1]])!r}", flush=True)
    joined = ",\n".join(lines)
    (Path(__file__).parent / "checkpoint.golden.json").write_text(f"[\n{joined}\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
