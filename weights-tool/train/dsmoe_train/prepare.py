"""Text to token shards: read documents, hold some out, drop what repeats, apply the chat template, tokenise, pack.

Two passes over the inputs: held-out documents first, so that the training pass can drop what they say.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jinja2.sandbox
import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from .config import ConfigError, Prepare
from .data import ShardWriter, write_index

BATCH = 256
"""Documents tokenised at a time, on all cores."""
LINE_CHARACTERS = 24
"""Shorter lines repeat by nature and do not count as duplicates."""


class Document(NamedTuple):
    text: str
    """A chat is already in its template, special tokens spelled out."""
    is_chat: bool


def prepare(config: Prepare) -> dict[str, int]:
    """Writes the shards and their index; returns the number of documents and tokens of each split, and of those dropped."""
    encoder = Encoder(config)
    output = Path(config.output)
    seen = Seen(config.repeated_lines) if config.deduplicate else None
    counts = {"dropped_documents": 0}
    splits = {}
    for split in ("held_out", "train"):
        writer = ShardWriter(output, split, encoder.vocab, config.shard_tokens)
        counts[f"{split}_documents"] = counts[f"{split}_tokens"] = 0
        waiting: list[Document] = []

        def flush(writer=writer, split=split, waiting=waiting) -> None:
            for ids in encoder.encode(waiting):
                writer.add(ids)
                counts[f"{split}_tokens"] += len(ids)
            waiting.clear()

        for document in tqdm(documents(config.inputs, encoder), desc=split, unit=" documents"):
            if is_held_out(document.text, config.held_out) != (split == "held_out"):
                continue
            if seen is not None and seen.repeats(document.text):
                counts["dropped_documents"] += 1
                continue
            counts[f"{split}_documents"] += 1
            waiting.append(document)
            if len(waiting) == BATCH:
                flush()
        flush()
        splits[split] = writer.close()
    write_index(output, encoder.vocab, splits, {"settings": config.model_dump(mode="json"), "counts": counts})
    return counts


def is_held_out(text: str, fraction: float) -> bool:
    """Decided by the text alone, so that the same document always falls on the same side."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return number < fraction * 2**64


class Seen:
    """Remembers documents and their lines by hash."""

    def __init__(self, repeated_lines: float):
        self.repeated_lines = repeated_lines
        self.documents: set[int] = set()
        self.lines: set[int] = set()

    def repeats(self, text: str) -> bool:
        """Whether the document, or most of its lines, were seen before; remembers it if not."""
        whole = _hash(" ".join(text.split()))
        lines = [_hash(line) for line in map(str.strip, text.splitlines()) if len(line) >= LINE_CHARACTERS]
        repeated = sum(line in self.lines for line in lines)
        if whole in self.documents or (lines and repeated > self.repeated_lines * len(lines)):
            return True
        self.documents.add(whole)
        self.lines.update(lines)
        return False


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


# ---- Reading --------------------------------------------------------------------------------------------------------


def documents(inputs: tuple[str, ...], encoder: "Encoder") -> Iterator[Document]:
    """Every document, in a fixed order."""
    for name in inputs:
        path = Path(name)
        files = sorted(p for p in path.rglob("*") if p.suffix in READERS) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise ConfigError(f"{name}: no .txt, .jsonl or .parquet file there")
        for file in files:
            if file.suffix not in READERS:
                raise ConfigError(f"{file}: only .txt, .jsonl and .parquet can be read")
            try:
                for record in READERS[file.suffix](file):
                    yield encoder.document(record, file)
            except UnicodeDecodeError as error:
                raise ConfigError(f"{file} is not UTF-8: {error}") from error


def _read_text(file: Path) -> Iterator[dict]:
    yield {"text": file.read_text(encoding="utf-8")}


def _read_lines(file: Path) -> Iterator[dict]:
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ConfigError(f"{file}, line {number}: {error}") from error


def _read_parquet(file: Path) -> Iterator[dict]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{file}: reading .parquet needs the package pyarrow") from error
    table = pyarrow.parquet.ParquetFile(file)
    columns = [name for name in ("text", "messages") if name in table.schema_arrow.names]
    for batch in table.iter_batches(batch_size=1024, columns=columns):
        yield from batch.to_pylist()


READERS = {".txt": _read_text, ".jsonl": _read_lines, ".parquet": _read_parquet}

# ---- Encoding -------------------------------------------------------------------------------------------------------


class Encoder:
    """A tokenizer with its chat template."""

    def __init__(self, config: Prepare):
        self.config = config
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.vocab = self.tokenizer.get_vocab_size()
        for token in filter(None, (config.start_token, config.end_token)):
            if self.tokenizer.token_to_id(token) is None:
                raise ConfigError(f"{config.tokenizer} has no token {token!r}")
        self.template = chat_template(Path(config.tokenizer).parent)

    def document(self, record: dict, file: Path) -> Document:
        match record:
            case {"messages": list(messages)} if all(isinstance(message, dict) for message in messages):
                return Document(self._chat(messages, file), is_chat=True)
            case {"text": str(text)}:
                return Document(text, is_chat=False)
        raise ConfigError(f"{file}: a record has neither `text` nor `messages`")

    def _chat(self, messages: list, file: Path) -> str:
        if self.template is None:
            raise ConfigError(f"{file} holds chats, but there is no chat template beside {self.config.tokenizer}")
        try:
            return self.template.render(messages=messages, add_generation_prompt=False)
        except (jinja2.TemplateError, TypeError) as error:
            raise ConfigError(f"{file}: the chat template refuses a chat: {error}") from error

    def encode(self, documents: list[Document]) -> list[np.ndarray]:
        start, end = self.config.start_token, self.config.end_token
        texts = [text if is_chat else f"{start}{text}{end}" for text, is_chat in documents]
        return [np.array(e.ids) for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def load_tokenizer(path: str) -> Tokenizer:
    if not Path(path).is_file():
        raise ConfigError(f"there is no tokenizer at {path}")
    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # the library has no class of its own for it
        raise ConfigError(f"{path} is no tokenizer: {error}") from error


def chat_template(directory: Path) -> jinja2.Template | None:
    """chat_template.jinja, or the template in tokenizer_config.json."""
    source = None
    if (directory / "chat_template.jinja").is_file():
        source = (directory / "chat_template.jinja").read_text()
    elif (directory / "tokenizer_config.json").is_file():
        source = json.loads((directory / "tokenizer_config.json").read_text()).get("chat_template")
    if not isinstance(source, str):
        return None
    # Hugging Face's own settings; sandboxed, because templates come from checkpoints.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.from_string(source)
