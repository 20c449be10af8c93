"""Writing text: many sequences at a time, one token a step, keys and values in a cache of fixed size. On a GPU the step is a
CUDA graph, captured once per cache length and replayed.

`generate` lets a teacher write training text from prompts; `write_greedily` continues prompts for an evaluation.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from .checkpoint import load_checkpoint
from .config import ConfigError, Generate
from .data import ShardWriter, write_index
from .distributed import find_device
from .model import Model
from .parts import Linear, rotate
from .prepare import load_tokenizer

LENGTHS = 4
"""Cache lengths that a step is captured for: attending to a quarter of the cache is enough in the first quarter."""


class Writer:
    """Continues B sequences of up to T tokens."""

    def __init__(self, model: Model, sequences: int, tokens: int, level: int, seed: int = 0):
        self.model, self.tokens = model, tokens
        config, self.device = model.config, model.inv_freq.device
        cache = (config.layers, sequences, config.kv_heads, tokens, config.head_dim)
        self.key_LBKTE = torch.zeros(cache, device=self.device, dtype=model.dtype)
        self.value_LBKTE = torch.zeros_like(self.key_LBKTE)
        self.text_BT = torch.zeros(sequences, tokens, device=self.device, dtype=torch.long)
        self.given_BT = torch.full_like(self.text_BT, -1)
        self.position = torch.zeros(1, device=self.device, dtype=torch.long)
        self.level_B = torch.full((sequences,), level, device=self.device)
        self.temperature_B1 = torch.ones(sequences, 1, device=self.device)
        self.min_p_B1 = torch.zeros(sequences, 1, device=self.device)
        self.cos_TE, self.sin_TE = model.rope(tokens)
        self.lengths = [-(-tokens * (i + 1) // LENGTHS) for i in range(LENGTHS)]
        torch.manual_seed(seed)
        self.steps: dict[int, Callable[[], None]] = {}

    @torch.no_grad()
    def write(self, prompts: list[list[int]], temperatures: np.ndarray, min_p: np.ndarray) -> np.ndarray:
        """[B, T]. Temperature 0: the likeliest token. A prompt is kept as it is."""
        self.given_BT.fill_(-1)
        for row, prompt in enumerate(prompts):
            self.given_BT[row, : len(prompt)] = torch.tensor(prompt[: self.tokens], device=self.device)
        self.temperature_B1.copy_(torch.from_numpy(temperatures)[:, None])
        self.min_p_B1.copy_(torch.from_numpy(min_p)[:, None])
        self.text_BT[:, 0] = self.given_BT[:, 0]
        self.position.zero_()
        for step in range(self.tokens - 1):
            self._replay(next(length for length in self.lengths if step < length))
        return self.text_BT.cpu().numpy()

    def _replay(self, length: int) -> None:
        if length not in self.steps:
            self.steps[length] = self._capture(length)
        self.steps[length]()

    def _capture(self, length: int) -> Callable[[], None]:
        if self.device.type != "cuda":
            return lambda: self._step(length)
        # A step changes its own inputs: what capturing and warming up do to them is undone.
        kept = [tensor.clone() for tensor in (self.position, self.text_BT)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(length)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(length)
        self.position.copy_(kept[0])
        self.text_BT.copy_(kept[1])
        return graph.replay

    def _step(self, length: int) -> None:
        """Reads the token at the position, writes the one after it."""
        token_B1 = self.text_BT.index_select(1, self.position)
        x_B1D, head_VD = self._decode(token_B1, length)
        logits_BV = F.linear(x_B1D[:, 0], head_VD.to(x_B1D.dtype)).float()
        next_B = self._sample(logits_BV)
        after = (self.position + 1).clamp(max=self.tokens - 1)
        given_B = self.given_BT.index_select(1, after)[:, 0]
        next_B = torch.where(given_B >= 0, given_B, next_B)
        self.text_BT.index_copy_(1, after, next_B[:, None])
        self.position.add_(1)

    def _sample(self, logits_BV: Tensor) -> Tensor:
        """Gumbel's trick: argmax of p / Exp(1) is a draw from p."""
        p_BV = F.softmax(logits_BV / self.temperature_B1.clamp(min=1e-4), -1)
        p_BV = torch.where(p_BV < self.min_p_B1 * p_BV.amax(-1, keepdim=True), 0.0, p_BV)
        noise_BV = torch.empty_like(p_BV).exponential_()
        noise_BV = torch.where(self.temperature_B1 > 0, noise_BV, 1.0)
        return (p_BV / noise_BV).argmax(-1)

    def _decode(self, token_B1: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The model's forward for one token each, reading and extending the cache; the last hidden state and the head."""
        model = self.model
        rope = self.cos_TE[self.position], self.sin_TE[self.position]
        visible_T = torch.arange(length, device=self.device) <= self.position
        x_B1D = model.embed_tokens(token_B1).to(model.dtype)
        previous_B1D = x_B1D
        for layer, block in enumerate(model.layers):
            x_B1D = x_B1D + self._attend(layer, block, block.input_layernorm(x_B1D), rope, visible_T)
            h_B1D = block.post_attention_layernorm(x_B1D)
            g_B1N = None
            if block.gate is not None:
                g_B1N = block.gate(previous_B1D if block.reads_previous else h_B1D, self.level_B).g_BTN
            x_B1D = x_B1D + block.mlp(h_B1D, g_B1N)
            previous_B1D = h_B1D
        head = model.embed_tokens if model.lm_head is None else model.lm_head
        return model.norm(x_B1D), head.weight

    def _attend(self, layer: int, block, h_B1D: Tensor, rope: tuple[Tensor, Tensor], visible_T: Tensor) -> Tensor:
        attention = block.self_attn
        q_BH1E, k_BK1E, v_BK1E = (
            attention.qkv_proj(h_B1D)
            .unflatten(-1, (-1, attention.head_dim))
            .transpose(1, 2)
            .split([attention.heads, attention.kv_heads, attention.kv_heads], 1)
        )
        self.key_LBKTE[layer].index_copy_(2, self.position, rotate(k_BK1E, *rope))
        self.value_LBKTE[layer].index_copy_(2, self.position, v_BK1E.contiguous())
        keys, values = (cache[layer][:, :, : len(visible_T)] for cache in (self.key_LBKTE, self.value_LBKTE))
        # One token each, so the query heads of a key/value head can stand in for its tokens. (Told of the groups instead, and
        # with a mask, CUDA has only its slowest kernel, which copies the cache for every query head.)
        q_BKGE = rotate(q_BH1E, *rope).reshape(len(q_BH1E), attention.kv_heads, -1, attention.head_dim)
        o_BKGE = F.scaled_dot_product_attention(q_BKGE, keys, values, attn_mask=visible_T[None, None, None])
        o_B1HE = o_BKGE.flatten(1, 2)[:, None]
        if attention.gate is not None:
            g_B1N = attention.gate(h_B1D, self.level_B).g_BTN
            o_B1HE = o_B1HE * g_B1N.to(o_B1HE.dtype).repeat(1, 1, attention.kv_heads)[..., None]
        return attention.o_proj(o_B1HE.flatten(-2))


def write_greedily(model: Model, prompts: list[list[int]], tokens: int, level: int) -> np.ndarray:
    """The likeliest continuation of every prompt, [prompts, T], the prompt included."""
    zeros = np.zeros(len(prompts), dtype=np.float32)
    return Writer(model, len(prompts), tokens, level).write(prompts, zeros, zeros)


# ---- Training text --------------------------------------------------------------------------------------------------


def generate(config: Generate) -> dict[str, int]:
    """Writes token shards for so many minutes, whole batches at a time. Returns tokens written of each split."""
    tokenizer = load_tokenizer(str(Path(config.teacher) / "tokenizer.json"))
    if config.prompt_weights and len(config.prompt_weights) != len(config.prompts):
        raise ConfigError("prompt_weights needs one number per prompt")
    words = _capitalised(tokenizer)
    pieces = [_pieces(tokenizer, prompt) for prompt in config.prompts]
    if max(map(len, pieces)) >= config.tokens:
        raise ConfigError(f"a prompt leaves no room to write: tokens = {config.tokens}")
    weights = np.array(config.prompt_weights or [1.0] * len(pieces))
    dtype = torch.bfloat16 if config.device == "cuda" else torch.float32
    model = load_checkpoint(config.teacher, dtype).to(find_device(config.device))
    level = model.config.shares.index(model.config.default_share)
    writer = Writer(_in_half(model, dtype), config.sequences, config.tokens, level, config.seed)
    rng = np.random.default_rng(config.seed)
    vocab = model.config.vocab
    shards = {split: ShardWriter(Path(config.output), split, vocab, config.shard_tokens) for split in ("held_out", "train")}
    count = dict.fromkeys(shards, 0)
    end = time.monotonic() + 60 * config.minutes
    with tqdm(unit=" tokens", unit_scale=True) as bar:
        while time.monotonic() < end:
            prompts = [
                [rng.choice(words) if piece is None else piece for piece in pieces[i]]
                for i in rng.choice(len(pieces), config.sequences, p=weights / weights.sum())
            ]
            drawn = [rng.choice(x, config.sequences).astype(np.float32) for x in (config.temperatures, config.min_p)]
            for text in writer.write(prompts, *drawn):
                split = "held_out" if rng.random() < config.held_out else "train"
                shards[split].add(text)
                count[split] += len(text)
            bar.update(config.sequences * config.tokens)
    splits = {split: shard.close() for split, shard in shards.items()}
    write_index(Path(config.output), vocab, splits, {"settings": config.model_dump(mode="json"), "counts": count})
    return count


def _in_half(model: Model, dtype: torch.dtype) -> Model:
    """Matrices in the activations' type, once: a step would otherwise convert them all. Norms and gates stay float32."""
    for module in model.modules():
        if isinstance(module, (Linear, torch.nn.Embedding)):
            module.weight.data = module.weight.data.to(dtype)
    return model


def _pieces(tokenizer, prompt: str) -> list[int | None]:
    """Token ids; None where {word} stands."""
    pieces: list[int | None] = []
    for i, part in enumerate(prompt.split("{word}")):
        pieces += [None] if i else []
        pieces += tokenizer.encode(part, add_special_tokens=False).ids
    if not pieces:
        raise ConfigError("an empty prompt: at least a start token is needed")
    return pieces


def _capitalised(tokenizer) -> list[int]:
    """Tokens that begin a sentence well."""
    return [i for token, i in sorted(tokenizer.get_vocab().items()) if re.fullmatch(r"[A-Z][a-z]+|[A-Z]", token)]
