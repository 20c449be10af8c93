"""A run on disk, so that it goes on as if it had never stopped: on the same hardware, the step after a restart has the same
bits. All randomness of a step comes from (seed, stage, step), so beyond weights and optimiser only positions are kept."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch

from .config import ConfigError, TrainConfig
from .files import write_whole

NAME = "snapshot.pt"


@dataclass
class Snapshot:
    config: str
    """The settings of the run, as JSON, without [run]: a run goes on only under the same."""
    student: str
    """The student's ModelConfig, as JSON: an upcycled one is not derived again."""
    target_LS: torch.Tensor
    stage: str
    step: int
    """Steps of the stage that are done."""
    model: dict
    """The model's state_dict."""
    optimiser: dict
    """By parameter name; empty between stages."""
    alpha_L: torch.Tensor | None
    taken: list[int]
    """The data stream's position."""
    use_LN: torch.Tensor
    rng: dict[str, torch.Tensor]
    """torch's generators on process 0; the trainer draws nothing from them, a change to it might."""


def fingerprint(config: TrainConfig) -> str:
    return config.model_dump_json(exclude={"run"})


def save_snapshot(directory: Path, snapshot: Snapshot) -> None:
    write_whole(directory / NAME, lambda path: torch.save(vars(snapshot), path))


def load_snapshot(directory: Path, config: TrainConfig) -> Snapshot | None:
    """None: a new run."""
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        snapshot = Snapshot(**torch.load(path, map_location="cpu", weights_only=True))
    except (EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path} is no snapshot that this version can read: delete it to start over") from error
    if snapshot.config != fingerprint(config):
        raise ConfigError(
            f"{path} is of a run with other settings (all but [run] must be the same): choose another run.directory, "
            "or delete it to start over"
        )
    return snapshot


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
