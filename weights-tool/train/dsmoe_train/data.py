"""Token shards on disk, and the order in which training reads them.

A directory of shards holds index.json and files of little-endian token ids (uint16, or uint32 for a vocabulary beyond
65,536), cut into two splits, `train` and `held_out`. Training sees the tokens of a split as one long text, cut into
sequences of T + 1 (the last is only predicted), in an order that the seed fixes: nothing but the number of sequences read
so far is needed to go on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationError

from .config import ConfigError, Source
from .files import write_json, write_whole
from .model_config import Strict

Split = Literal["train", "held_out"]
INDEX = "index.json"


class ShardWriter:
    """Collects documents of one split and writes them as shards; `close` returns the split's part of the index."""

    def __init__(self, directory: Path, split: Split, vocab: int, shard_tokens: int):
        self.directory, self.split, self.shard_tokens = directory, split, shard_tokens
        self.dtype = token_dtype(vocab)
        self.parts: list[np.ndarray] = []
        self.waiting = 0
        self.shards: list[dict] = []

    def add(self, ids: np.ndarray) -> None:
        self.parts.append(ids.astype(self.dtype))
        self.waiting += len(ids)
        if self.waiting >= self.shard_tokens:
            self._flush()

    def close(self) -> list[dict]:
        if self.waiting:
            self._flush()
        return self.shards

    def _flush(self) -> None:
        tokens = np.concatenate(self.parts)
        self.parts, self.waiting = [], 0
        name = f"{self.split}-{len(self.shards):05d}.bin"
        write_whole(self.directory / name, tokens.tofile)
        self.shards.append({"file": name, "tokens": len(tokens)})


def token_dtype(vocab: int) -> np.dtype:
    return np.dtype("<u2" if vocab <= 2**16 else "<u4")


def write_index(directory: Path, vocab: int, splits: dict[str, list[dict]], about: dict) -> None:
    """Written last: a directory without an index is unfinished."""
    write_json(directory / INDEX, {"vocab": vocab, "dtype": token_dtype(vocab).str, "splits": splits, "about": about})


class Shard(Strict):
    file: str
    tokens: int = Field(ge=1)


class Index(Strict):
    """index.json. `about` is for people."""

    vocab: int = Field(ge=1)
    dtype: Literal["<u2", "<u4"]
    splits: dict[str, tuple[Shard, ...]]
    about: dict = {}


class TokenFile:
    """One split of a directory of shards as one long sequence of tokens, memory-mapped."""

    def __init__(self, directory: str | Path, split: Split, vocab: int):
        path = Path(directory) / INDEX
        try:
            index = Index.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{directory} is no directory of token shards: cannot read {path}") from error
        except ValidationError as error:
            raise ConfigError(f"{path} is not what `data` and `generate` write: prepare the data again") from error
        if index.vocab > vocab:
            raise ConfigError(f"{directory} was made for {index.vocab} tokens; the model knows {vocab}")
        self.directory, self.vocab = directory, vocab
        self.maps = []
        for shard in index.splits.get(split, ()):
            file = path.parent / shard.file
            tokens = np.memmap(file, dtype=index.dtype, mode="r")
            if len(tokens) != shard.tokens:
                raise ConfigError(f"{file} holds {len(tokens)} tokens, not {shard.tokens}: prepare the data again")
            self.maps.append(tokens)
        self.starts = np.cumsum([0] + [len(tokens) for tokens in self.maps])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens start … start + count, across shard borders, int64."""
        out = np.empty(count, dtype=np.int64)
        filled = 0
        while filled < count:
            shard = int(np.searchsorted(self.starts, start + filled, side="right")) - 1
            offset = start + filled - int(self.starts[shard])
            piece = self.maps[shard][offset : offset + count - filled]
            out[filled : filled + len(piece)] = piece
            filled += len(piece)
        if count and out.max() >= self.vocab:  # a GPU would stop the whole process, and not say why
            raise ConfigError(f"{self.directory} holds token {out.max()}; the model knows {self.vocab}")
        return out


@dataclass
class Position:
    """Where a stream stands: sequences taken from each source."""

    taken: list[int]


class TokenStream:
    """Batches from several sources in a fixed order. Sources are mixed by weight; each is read in a new random order every
    time it has been read through."""

    def __init__(self, sources: tuple[Source, ...], split: Split, tokens: int, vocab: int, seed: int):
        self.tokens, self.seed = tokens, seed
        self.files = [TokenFile(source.directory, split, vocab) for source in sources]
        self.counts = [(len(file) - 1) // tokens for file in self.files]
        for source, count in zip(sources, self.counts, strict=True):
            if count < 1:
                raise ConfigError(f"{source.directory} holds less than one sequence of {tokens} + 1 tokens")
        weights = np.array([source.weight for source in sources])
        self.weights = weights / weights.sum()
        self.position = Position([0] * len(sources))
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def next(self, sequences: int) -> np.ndarray:
        """The next batch, [sequences, T + 1], the same on every process."""
        batch = np.empty((sequences, self.tokens + 1), dtype=np.int64)
        for row in range(sequences):
            source = self._choose()
            place = self._order(source)[self.position.taken[source] % self.counts[source]]
            batch[row] = self.files[source].read(int(place) * self.tokens, self.tokens + 1)
            self.position.taken[source] += 1
        return batch

    def _choose(self) -> int:
        """The source that is furthest behind its weight (ties: the earlier one)."""
        taken = np.array(self.position.taken)
        return int(np.argmax(self.weights * (taken.sum() + 1) - taken))

    def _order(self, source: int) -> np.ndarray:
        epoch = self.position.taken[source] // self.counts[source]
        if self._orders.get(source, (-1,))[0] != epoch:
            order = np.random.default_rng([self.seed, source, epoch]).permutation(self.counts[source])
            self._orders[source] = (epoch, order)
        return self._orders[source][1]
