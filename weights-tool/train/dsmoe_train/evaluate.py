"""What a checkpoint is worth at every share it serves: perplexity and distance to its teacher on held-out text, zero-shot
tasks, the active share it really takes (on text and while it writes), and how well its routing suits a cache.

Results go to `output`: evaluation.json, table.md, curves as SVG. The share curve and the routing profile also go into the
checkpoint's config.json, from where `weights-tool pack` takes them into the manifest.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .checkpoint import load_checkpoint
from .config import ConfigError, Evaluate
from .data import TokenFile
from .distributed import find_device
from .files import write_json, write_whole
from .generate import write_greedily
from .locality import locality
from .model import Model
from .plots import plot_curve
from .prepare import chat_template, load_tokenizer
from .quantise import q4
from .share import draw_available
from .zeroshot import TASKS, average, correct_items, load_task, paired_bootstrap

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUESTIONS = (
    "What is gravity?", "Write a short poem about the sea.", "Give me three tips for sleeping better.",
    "What is the capital of France?", "Explain what a browser does in two sentences.", "How do I boil an egg?",
    "Write a function that reverses a string.", "Why is the sky blue?",
)  # fmt: skip
"""Answered greedily, to see which share a chat takes."""
ANSWER_TOKENS = 128


def evaluate(config: Evaluate) -> str:
    """Returns the table."""
    device = find_device(config.device)
    model = _load(config.checkpoint, config, device)
    if config.quantised:
        _round_weights(model)
    teacher = _load(config.teacher, config, device) if config.teacher else None
    served = model.config.shares
    shares = config.shares or served
    unknown = [share for share in shares if share not in served]
    if unknown:
        raise ConfigError(f"{config.checkpoint} serves the shares {served}, not {unknown}")
    texts = {name: _held_out(directory, config, model.config.vocab) for name, directory in config.texts.items()}
    suite = _suite(config, model.config.context)
    teacher_right = {} if teacher is None else _answers(teacher, suite, 0, config, "teacher")
    results, profile_LN = [], None
    for share in shares:
        level = served.index(share)
        result: dict = {"share": share, "texts": {}}
        for name, ids_BT in texts.items():
            on = [] if model.gates() else None
            result["texts"][name] = on_text(model, teacher, ids_BT, level, config, on)
            if on:
                on_LBTN = torch.cat(on, 1)
                result["texts"][name]["locality"] = locality(on_LBTN)
                if share == model.config.default_share and profile_LN is None:
                    profile_LN = on_LBTN.float().mean((1, 2))
        if suite:
            right = _answers(model, suite, level, config, f"share {share:g}")
            result["tasks"] = {task: float(r.mean()) for task, r in right.items()} | {"average": average(right)}
            if teacher is not None:
                result["tasks"]["of_teacher"] = average(right) / average(teacher_right)
                result["tasks"]["intervals"] = paired_bootstrap(right, teacher_right, config.seed)
        if model.gates():
            result["chat_share"] = chat_share(model, Path(config.checkpoint), level)
        results.append(result)
    return _report(config, model, results, teacher_right, profile_LN)


def _load(directory: str, config: Evaluate, device: torch.device) -> Model:
    return load_checkpoint(directory, DTYPES[config.dtype]).to(device).requires_grad_(False)


@torch.no_grad()
def _round_weights(model: Model) -> None:
    for block in model.layers:
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2 and "router" not in name:
                parameter.copy_(q4(parameter).dequantise())


# ---- Held-out text --------------------------------------------------------------------------------------------------


def _held_out(directory: str, config: Evaluate, vocab: int) -> Tensor:
    """Sequences spread evenly over the held-out split, [B, T + 1]."""
    file = TokenFile(directory, "held_out", vocab)
    span = config.tokens + 1
    count = min(config.sequences, len(file) // span)
    if count < 1:
        raise ConfigError(f"{directory} holds out less than one sequence of {config.tokens} + 1 tokens")
    starts = np.linspace(0, len(file) - span, count).astype(int)
    return torch.from_numpy(np.stack([file.read(int(start), span) for start in starts]))


@torch.no_grad()
def on_text(model: Model, teacher: Model | None, ids_BT: Tensor, level: int, config: Evaluate, on: list[Tensor] | None) -> dict:
    """Perplexity, KL(teacher ‖ model), agreement on the likeliest token, and active share of every layer.

    on: receives which experts were routed, [L, B, T, N] per batch
    """
    device, vocab_chunk = model.inv_freq.device, 2048
    rng = np.random.default_rng(config.seed)
    sums = {"nll": 0.0, "kl": 0.0, "agree": 0.0}
    tokens, both, guessed, routed_ = 0, 0, 0, 0
    for part in ids_BT.split(max(1, config.batch_tokens // config.tokens)):
        part = part.to(device)
        ids, target_X = part[:, :-1], part[:, 1:].flatten()
        available = None
        if config.resident < 1 and model.gates():
            shape = (model.config.layers, len(part), model.config.routing.experts)
            available = torch.from_numpy(draw_available(rng, *shape, 1.0, config.resident, most=config.resident)).to(device)
        reference = None if teacher is None else teacher(ids, lambda *parts: parts).head

        def head(x_BTD: Tensor, head_VD: Tensor, reference=reference, target_X=target_X) -> None:
            x_XD = x_BTD.flatten(0, 1)
            for rows in torch.arange(len(x_XD), device=device).split(vocab_chunk):
                log_p = F.log_softmax(F.linear(x_XD[rows], head_VD.to(x_XD.dtype)).float(), -1)
                sums["nll"] -= log_p.gather(-1, target_X[rows, None]).sum().item()
                if reference is not None:
                    t_XD, t_VD = reference[0].flatten(0, 1)[rows], reference[1]
                    log_t = F.log_softmax(F.linear(t_XD, t_VD.to(t_XD.dtype)).float(), -1)
                    sums["kl"] += (log_t.exp() * (log_t - log_p)).sum().item()
                    sums["agree"] += (log_t.argmax(-1) == log_p.argmax(-1)).sum().item()

        level_B = torch.full((len(part),), level, device=device)
        output = model(ids, head, level_B=level_B, available_LBN=available, keep=True)
        tokens += target_X.numel()
        if on is not None:
            on.append(torch.stack([routed.g_BTN > 0 for routed in output.ffn]))
            if model.config.routing.source == "own":
                guess, real = _next_layer_guess(model, output.ffn_input, level_B, output.ffn)
                both, guessed, routed_ = both + (guess & real).sum(), guessed + guess.sum(), routed_ + real.sum()
    result = {"perplexity": math.exp(sums["nll"] / tokens), "tokens": tokens}
    if teacher is not None:
        result |= {"kl": max(0.0, sums["kl"] / tokens), "agreement": sums["agree"] / tokens}
    if on is not None:
        layer_share = torch.cat(on, 1).float().mean((1, 2, 3))
        result |= {
            "active_share": layer_share.mean().item(),
            "layer_share": [round(s, 4) for s in layer_share.tolist()],
        }
        if model.config.routing.source == "own":
            result["next_layer"] = {"recall": float(both / routed_), "precision": float(both / max(guessed, 1))}
    return result


def _next_layer_guess(model: Model, ffn_input: list[Tensor], level_B: Tensor, routed: list) -> tuple[Tensor, Tensor]:
    """What each layer's gate would have said of the input of the layer before, and what it said of its own."""
    guess = [gate(h, level_B).g_BTN > 0 for gate, h in zip(model.gates()[1:], ffn_input[:-1], strict=True)]
    return torch.stack(guess), torch.stack([r.g_BTN > 0 for r in routed[1:]])


@torch.no_grad()
def chat_share(model: Model, home: Path, level: int) -> float | None:
    """Active share while the model answers greedily; None without a chat template."""
    template = chat_template(home)
    if template is None:
        return None
    tokenizer = load_tokenizer(str(home / "tokenizer.json"))
    render = lambda q: template.render(messages=[{"role": "user", "content": q}], add_generation_prompt=True)
    prompts = [tokenizer.encode(render(question), add_special_tokens=False).ids for question in QUESTIONS]
    tokens = min(model.config.context, max(map(len, prompts)) + ANSWER_TOKENS)
    ids_BT = torch.from_numpy(write_greedily(model, prompts, tokens, level)).to(model.inv_freq.device)
    ends = set(model.config.eos_tokens)
    answer_BT = torch.zeros(ids_BT.shape, dtype=torch.bool, device=ids_BT.device)
    for row, (ids, prompt) in enumerate(zip(ids_BT.tolist(), prompts, strict=True)):
        end = next((i for i in range(len(prompt), tokens) if ids[i] in ends), tokens)
        answer_BT[row, len(prompt) - 1 : max(end, len(prompt))] = True
    level_B = torch.full((len(prompts),), level, device=ids_BT.device)
    output = model(ids_BT, lambda *_: None, level_B=level_B)
    return torch.stack([(routed.g_BTN > 0)[answer_BT].float().mean() for routed in output.ffn]).mean().item()


# ---- Tasks ----------------------------------------------------------------------------------------------------------


def _suite(config: Evaluate, context: int) -> dict[str, list]:
    if not config.suite:
        return {}
    tokenizer = load_tokenizer(str(Path(config.checkpoint) / "tokenizer.json"))
    return {task: load_task(config.suite, task, tokenizer, context, config.items, config.seed) for task in TASKS}


def _answers(model: Model, suite: dict[str, list], level: int, config: Evaluate, name: str) -> dict[str, np.ndarray]:
    return {
        task: correct_items(model, task, items, level, config.batch_tokens)
        for task, items in tqdm(suite.items(), desc=name, disable=not suite)
    }


# ---- Report ---------------------------------------------------------------------------------------------------------


def _report(
    config: Evaluate, model: Model, results: list[dict], teacher_right: dict[str, np.ndarray], profile_LN: Tensor | None
) -> str:
    output = Path(config.output)
    teacher_tasks = {task: float(r.mean()) for task, r in teacher_right.items()}
    if teacher_tasks:
        teacher_tasks["average"] = average(teacher_right)
    settings = config.model_dump(mode="json")
    write_json(output / "evaluation.json", {"settings": settings, "teacher": teacher_tasks, "shares": results})
    table = make_table(results)
    write_whole(output / "table.md", lambda path: path.write_text(table + "\n"))
    for label, curves in _curves(results).items():
        plot_curve(curves, "active share", label, output / f"{label.replace(' ', '-')}.svg")
    for name in config.texts:
        layers = {f"{r['share']:g}": list(enumerate(r["texts"][name].get("layer_share", []))) for r in results}
        if any(layers.values()):
            plot_curve(layers, "layer", "active share", output / f"layers-{name}.svg")
    if config.texts and config.teacher and config.resident == 1:
        _record(Path(config.checkpoint), results, profile_LN)
    return table


def _curves(results: list[dict]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Quality → name of a line → (active share, value): what there is to draw."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for result in results:
        for name, text in result["texts"].items():
            active = text.get("active_share", result["share"])
            for label in ("perplexity", "kl"):
                if label in text:
                    curves.setdefault(label, {}).setdefault(name, []).append((active, text[label]))
            for label, value in _locality_columns(text).items():
                curves.setdefault(label, {}).setdefault(name, []).append((active, value))
        if "tasks" in result:
            active = result.get("chat_share") or result["share"]
            for task in (*TASKS, "average"):
                curves.setdefault("zero-shot", {}).setdefault(task, []).append((active, result["tasks"][task]))
    return curves


def _locality_columns(text: dict) -> dict[str, float]:
    """What a cache of half the experts would find, and which part of them 32 tokens touch."""
    if "locality" not in text:
        return {}
    # Of three capacities the second is half of the experts.
    hits = sorted(text["locality"]["lru_hits"].items(), key=lambda item: int(item[0]))
    columns = {"cache hits": hits[len(hits) // 2][1]}
    if "touched_in_32_tokens" in text["locality"]:
        columns["touched in 32"] = text["locality"]["touched_in_32_tokens"]
    return columns


def make_table(results: list[dict]) -> str:
    """Markdown, one row per share and text."""
    titles = ["share", "text", *COLUMNS, "chat active", "zero-shot", "of teacher"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for result in results:
        tasks = result.get("tasks", {})
        of_teacher = ""
        if "of_teacher" in tasks:
            low, high = tasks["intervals"]["of_teacher"]
            of_teacher = f"{tasks['of_teacher']:.1%} ({low:.1%} to {high:.1%})"
        zero_shot = f"{tasks['average']:.4f}" if tasks else ""
        chat = f"{result['chat_share']:.3f}" if result.get("chat_share") is not None else ""
        for name, text in result["texts"].items() or [("", {})]:
            known = {"active": text.get("active_share"), **text, **_locality_columns(text)}
            cells = [f"{known[key]:{form}}" if known.get(key) is not None else "" for key, form in COLUMNS.items()]
            row = [f"{result['share']:g}", name, *cells, chat, zero_shot, of_teacher]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


COLUMNS = {
    "active": ".3f", "perplexity": ".3f", "kl": ".4f", "agreement": ".4f", "cache hits": ".3f", "touched in 32": ".3f"
}  # fmt: skip


def _record(checkpoint: Path, results: list[dict], profile_LN: Tensor | None) -> None:
    """`quality` and `profile` of config.json (docs/pack-format.md)."""
    fields = json.loads((checkpoint / "config.json").read_text())
    fields["quality"] = [
        {"share": r["share"], "text": name, "perplexity": text["perplexity"], "kl": text["kl"]}
        for r in results
        for name, text in r["texts"].items()
    ]
    if profile_LN is not None:
        fields["profile"] = [[round(p, 4) for p in row] for row in profile_LN.tolist()]
    write_json(checkpoint / "config.json", fields)
