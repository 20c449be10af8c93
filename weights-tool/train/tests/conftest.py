import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest
import torch

from dsmoe_train.model import Model, initialise
from dsmoe_train.model_config import ModelConfig, Routing

torch.set_num_threads(1)

TINY = dict(vocab=96, hidden=32, layers=2, heads=4, kv_heads=2, head_dim=8, ffn_units=160, context=64)


def tiny_config(routing: dict | None = None, **changes) -> ModelConfig:
    return ModelConfig(**{**TINY, "routing": Routing(**(routing or {})), **changes})


def tiny_model(routing: dict | None = None, *, seed: int = 0, **changes) -> Model:
    model = Model(tiny_config(routing, **changes))
    # Wider than a training start, so that gates differ and errors show.
    initialise(model, seed, std=0.15)
    return model


def tiny_ids(sequences: int = 3, tokens: int = 16, seed: int = 1, vocab: int = 96) -> torch.Tensor:
    return torch.randint(0, vocab, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


CLAMPED = dict(experts=4, shared_units=32, gate="clamped_linear", source="previous")
SOFTMAX = dict(experts=5, gate="softmax")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
