"""Pictures of a run and of an evaluation, as SVG."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "dsmoe"  # the same data gives the same file

LOSSES = ("loss", "lm", "kl", "residual", "ffn_error", "mutual_information", "switch", "locality")


def plot_run(log: Path, directory: Path, use_LN: Tensor) -> None:
    """Loss curves, active share per layer, and how often each expert is used."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    directory.mkdir(parents=True, exist_ok=True)
    for stage in dict.fromkeys(line["stage"] for line in lines):
        of_stage = [line for line in lines if line["stage"] == stage]
        steps = [line["step"] for line in of_stage]
        names = [name for name in LOSSES if name in of_stage[0]]
        figure, axes = plt.subplots(len(names), squeeze=False, sharex=True, figsize=(7, 1.8 * len(names)))
        for axis, name in zip(axes[:, 0], names, strict=True):
            axis.plot(steps, [line[name] for line in of_stage])
            axis.set_ylabel(name)
        axes[-1, 0].set_xlabel(f"{stage}: step")
        _save(figure, directory / f"loss-{stage}.svg")
        for key in (key for key in of_stage[-1] if key.startswith("share_")):
            _share_picture(of_stage, key, directory / f"{key.replace('_', '-')}-{stage}.svg")
    if use_LN.any():
        _heat_map(use_LN.cpu().numpy(), directory / "experts.svg")


def _share_picture(lines: list[dict], key: str, path: Path) -> None:
    rows = [line for line in lines if key in line and None not in line[key]]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(7, 3.2))
    shares = np.array([row[key] for row in rows])
    for layer in range(shares.shape[1]):
        colour = plt.get_cmap("viridis")(layer / max(1, shares.shape[1] - 1))
        axis.plot([row["step"] for row in rows], shares[:, layer], color=colour, linewidth=0.8)
    axis.set(xlabel="step", ylabel="active share per layer (dark: first)", ylim=(0, 1.02), title=key.replace("_", " "))
    _save(figure, path)


def _heat_map(use_LN: np.ndarray, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7, 4))
    # Experts in order of use: their numbers mean nothing, how uneven a layer is does.
    image = axis.imshow(-np.sort(-use_LN, axis=1), aspect="auto", vmin=0, vmax=1, cmap="viridis")
    axis.set(xlabel="expert, most used first", ylabel="layer", title="how often an expert is routed")
    figure.colorbar(image)
    _save(figure, path)


def plot_curve(rows: dict[str, list[tuple[float, float]]], across: str, up: str, path: Path) -> None:
    """One line per name, through its (across, up)."""
    figure, axis = plt.subplots(figsize=(6, 3.6))
    for name, points in rows.items():
        axis.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
    axis.set(xlabel=across, ylabel=up)
    axis.legend()
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
