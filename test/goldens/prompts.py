"""Writes prompts.golden.json and prompts.golden.bin: what the shipped model answers to prompts.json, by PyTorch.

    npm run weights-tool -- unpack models/smollm2-135m-dsmoe --out <directory>
    pip install torch==2.13.0 numpy safetensors==0.8.0 tokenizers==0.23.3
    python test/goldens/prompts.py <directory>

The JSON holds for each prompt its token ids, the 64 tokens of a greedy continuation and the 50 largest logits after the
prompt; the binary holds, prompt after prompt, every 8th of those logits as little-endian float32.
"""

import json
import sys
from pathlib import Path

import torch
from ds_moe import DsMoe
from tokenizers import Tokenizer

GREEDY = 64
TOP = 50
STRIDE = 8


@torch.inference_mode()
def main(directory: Path) -> None:
    here = Path(__file__).parent
    model = DsMoe(directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    goldens, sampled = [], []
    for prompt in json.loads((here / "prompts.json").read_text()):
        ids = tokenizer.encode(prompt["text"], add_special_tokens=False).ids
        logits = model.logits(ids, last=True)[0]
        top = logits.topk(TOP)
        greedy = [int(top.indices[0])]
        while len(greedy) < GREEDY:
            greedy.append(int(model.logits(ids + greedy, last=True)[0].argmax()))
        sampled.append(logits[::STRIDE])
        goldens.append(
            {
                "name": prompt["name"],
                "ids": ids,
                "greedy": greedy,
                "top": [[int(i), round(float(v), 5)] for v, i in zip(*top)],
            }
        )
        print(f"{prompt['name']}: {tokenizer.decode(greedy)!r}", flush=True)
    lines = ",\n".join(json.dumps(golden, separators=(",", ":")) for golden in goldens)
    (here / "prompts.golden.json").write_text(f'{{"stride":{STRIDE},"prompts":[\n{lines}\n]}}\n')
    torch.stack(sampled).float().numpy().astype("<f4").tofile(here / "prompts.golden.bin")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
