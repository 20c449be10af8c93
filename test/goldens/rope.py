"""Writes rope.json: rotary frequencies as the transformers library (4.57.6) computes them.

    pip install torch==2.13.0 transformers==4.57.6
    python test/goldens/rope.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

CASES = [
    # name, theta, headDim, rope_scaling as config.json states it
    ("SmolLM2", 100000.0, 64, {"rope_type": "default"}),
    ("linear, older key", 10000.0, 64, {"type": "linear", "factor": 4.0}),
    (
        "Llama 3.2 1B",
        500000.0,
        64,
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ),
    (
        "YaRN x 4",
        1000000.0,
        128,
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    ),
    (
        "YaRN x 40 with mscale",
        10000.0,
        64,
        {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
        },
    ),
    (
        "YaRN, not truncated, own attention factor",
        150000.0,
        64,
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
            "attention_factor": 1.2,
        },
    ),
]


def golden(name, theta, head_dim, scaling):
    config = SimpleNamespace(
        rope_theta=theta,
        head_dim=head_dim,
        hidden_size=head_dim,
        num_attention_heads=1,
        max_position_embeddings=131072,
        rope_scaling=scaling,
    )
    kind = scaling.get("rope_type", scaling.get("type"))
    inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return {
        "name": name,
        "theta": theta,
        "headDim": head_dim,
        "scaling": scaling,
        "invFreq": [float(f"{f:.7g}") for f in inv_freq.tolist()],
        "ropeScale": scale,
    }


if __name__ == "__main__":
    out = Path(__file__).with_suffix(".json")
    out.write_text(json.dumps([golden(*case) for case in CASES]) + "\n")
