"""Writes q4.json: a small matrix, and what the packer makes of it and of the same matrix rounded by the trainer.

python tests/goldens/q4.py        needs Node 24 and the repository's npm workspaces
"""

import json
import subprocess
from pathlib import Path

import torch

from dsmoe_train.quantise import fake_quantise

HERE = Path(__file__).parent
ROWS, COLS = 8, 64


def main() -> None:
    torch.manual_seed(5)
    weight = torch.randn(ROWS, COLS) * torch.rand(ROWS, 1) * 0.1 + 0.01
    request = {
        "rows": ROWS,
        "cols": COLS,
        "weight": weight.flatten().tolist(),
        "rounded": fake_quantise(weight).flatten().tolist(),
    }
    script = str(HERE / "q4.ts")
    reply = subprocess.run(["node", script], input=json.dumps(request), capture_output=True, check=True, text=True)
    (HERE / "q4.json").write_text(json.dumps({**request, **json.loads(reply.stdout)}))


if __name__ == "__main__":
    main()
