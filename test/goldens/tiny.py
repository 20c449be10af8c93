"""Writes tiny.golden.json: the logits of tiny packs after a few tokens, by PyTorch.

    node test/goldens/tiny.ts <directory>
    pip install torch==2.13.0 numpy safetensors==0.8.0
    python test/goldens/tiny.py <directory>
"""

import json
import sys
from pathlib import Path

import torch
from ds_moe import DsMoe


@torch.inference_mode()
def main(directory: Path) -> None:
    cases = json.loads((directory / "cases.json").read_text())
    lines = []
    for name in cases["names"]:
        logits = DsMoe(directory / name).logits(cases["tokens"])
        golden = {
            "name": name,
            "likeliest": logits.argmax(-1).tolist(),
            "logits": [round(float(logit), 5) for logit in logits[-1]],
        }
        lines.append(json.dumps(golden, separators=(",", ":")))
    Path(__file__).with_name("tiny.golden.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
