"""Writes ggml-blocks.json: random blocks of GGML's types and what the Python package makes of them.

    pip install numpy gguf==0.19.0
    python test/goldens/ggml_blocks.py
"""

import json
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, dequantize

BLOCK_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "Q4_0": 18, "Q4_1": 20, "Q8_0": 34, "Q6_K": 210}
# Where a type's half-precision numbers start; random bytes could be infinite there.
HALVES = {"F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q6_K": [208]}

random = np.random.default_rng(1)
cases = []
for name, size in BLOCK_BYTES.items():
    blocks = random.integers(0, 256, (3, size), dtype=np.uint8)
    for at in HALVES.get(name, []):
        blocks[:, at : at + 2] = random.normal(0, 0.01, (3, 1)).astype(np.float16).view(np.uint8)
    if name in ("F32", "BF16"):
        blocks = random.normal(0, 1, (3, 1)).astype(np.float32).view(np.uint8)[:, -size:]
    kind = GGMLQuantizationType[name]
    values = dequantize(blocks, kind).astype(np.float32).ravel()
    cases.append({"type": int(kind), "name": name, "bytes": blocks.tobytes().hex(), "floats": values.tobytes().hex()})

Path(__file__).with_name("ggml-blocks.json").write_text(json.dumps(cases, indent=1) + "\n")
