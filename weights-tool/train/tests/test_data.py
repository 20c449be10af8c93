import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dsmoe_train.config import ConfigError, Prepare, Source
from dsmoe_train.data import ShardWriter, TokenFile, TokenStream, token_dtype, write_index
from dsmoe_train.prepare import prepare

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"


@pytest.fixture
def tokenizer(tmp_path):
    """Bytes as tokens, and two special ones."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    home = tmp_path / "tokenizer"
    home.mkdir()
    tokenizer.save(str(home / "tokenizer.json"))
    (home / "chat_template.jinja").write_text(TEMPLATE)
    return tokenizer


def shards(directory, splits, vocab=1000, shard_tokens=1024):
    index = {}
    for split, documents in splits.items():
        writer = ShardWriter(directory, split, vocab, shard_tokens)
        for document in documents:
            writer.add(np.asarray(document))
        index[split] = writer.close()
    write_index(directory, vocab, index, {})
    return str(directory)


def read_all(directory, split="train"):
    index = json.loads((directory / "index.json").read_text())
    return np.concatenate([np.fromfile(directory / s["file"], dtype=index["dtype"]) for s in index["splits"][split]] or [[]])


def test_sequences_cover_every_token_once_and_cross_shards(tmp_path):
    home = shards(tmp_path, {"train": [np.arange(100), np.arange(100, 1000)]}, shard_tokens=70)
    stream = TokenStream((Source(directory=home),), "train", 10, 1000, seed=3)
    batch = stream.next(99)
    assert sorted(batch[:, 0].tolist()) == list(range(0, 990, 10))
    assert np.array_equal(batch, batch[:, :1] + np.arange(11))
    assert not np.array_equal(batch[:, 0], np.sort(batch[:, 0]))


def test_the_order_depends_on_the_seed_and_changes_every_epoch(tmp_path):
    home = shards(tmp_path, {"train": [np.arange(1000)]})
    make = lambda seed: TokenStream((Source(directory=home),), "train", 10, 1000, seed)
    stream = make(3)
    first, second = stream.next(99), stream.next(99)
    assert np.array_equal(first, make(3).next(99))
    assert not np.array_equal(first, make(4).next(99))
    assert not np.array_equal(first, second)
    assert np.array_equal(np.sort(first[:, 0]), np.sort(second[:, 0]))


def test_a_stream_goes_on_where_it_was(tmp_path):
    sources = tuple(
        Source(directory=shards(tmp_path / str(i), {"train": [np.arange(50 + i)]}), weight=w) for i, w in enumerate([1.0, 3.0])
    )
    stream = TokenStream(sources, "train", 5, 1000, seed=1)
    for _ in range(7):
        stream.next(3)
    taken = list(stream.position.taken)
    expected = [stream.next(3) for _ in range(5)]
    again = TokenStream(sources, "train", 5, 1000, seed=1)
    again.position.taken = taken
    assert all(np.array_equal(again.next(3), batch) for batch in expected)


def test_sources_come_by_weight(tmp_path):
    sources = tuple(
        Source(directory=shards(tmp_path / str(i), {"train": [np.full(100, i)]}), weight=w) for i, w in enumerate([1.0, 3.0])
    )
    batch = TokenStream(sources, "train", 5, 1000, seed=1).next(100)
    assert np.bincount(batch[:, 0]).tolist() == [25, 75]


@pytest.mark.parametrize("vocab, dtype", [(65_536, "<u2"), (65_537, "<u4")])
def test_tokens_are_as_small_as_the_vocabulary_allows(vocab, dtype):
    assert token_dtype(vocab).str == dtype


def test_what_a_stream_refuses(tmp_path):
    with pytest.raises(ConfigError, match="no directory of token shards"):
        TokenStream((Source(directory=str(tmp_path / "none")),), "train", 5, 10, 0)
    home = shards(tmp_path / "a", {"train": [np.arange(5)]})
    with pytest.raises(ConfigError, match="less than one sequence"):
        TokenStream((Source(directory=home),), "train", 5, 1000, 0)
    with pytest.raises(ConfigError, match="1000 tokens; the model knows 10"):
        TokenStream((Source(directory=home),), "train", 2, 10, 0)
    (tmp_path / "a" / "train-00000.bin").write_bytes(b"\xff\xff" * 5)
    with pytest.raises(ConfigError, match="holds token 65535; the model knows 1000"):
        TokenStream((Source(directory=home),), "train", 2, 1000, 0).next(1)
    (tmp_path / "a" / "train-00000.bin").write_bytes(b"\0\0")
    with pytest.raises(ConfigError, match="prepare the data again"):
        TokenStream((Source(directory=home),), "train", 2, 1000, 0)


def settings(tmp_path, **changes):
    fields = dict(
        inputs=(str(tmp_path / "in"),), tokenizer=str(tmp_path / "tokenizer" / "tokenizer.json"),
        output=str(tmp_path / "out"), start_token="<s>", held_out=0.0,
    )  # fmt: skip
    return Prepare(**{**fields, **changes})


def test_text_lines_and_chats_become_tokens(tmp_path, tokenizer):
    home = tmp_path / "in"
    home.mkdir()
    (home / "a.txt").write_text("plain text")
    (home / "b.jsonl").write_text(
        '{"text": "a record"}\n{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'
    )
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["from parquet"]}), home / "c.parquet")
    counts = prepare(settings(tmp_path))
    text = tokenizer.decode(read_all(tmp_path / "out").tolist(), skip_special_tokens=False)
    assert text == "<s>plain text<s>a record<s>user: hi</s><s>assistant: ho</s><s>from parquet"
    assert counts["train_documents"] == 4 and counts["train_tokens"] == len(read_all(tmp_path / "out"))


def test_repeated_documents_and_lines_are_dropped(tmp_path, tokenizer):
    home = tmp_path / "in"
    home.mkdir()
    line = "this line is long enough to count, number {}".format
    texts = [
        "\n".join(map(line, range(5))),
        "\n".join(map(line, range(5))) + "\n",  # the same but for a line break
        "\n".join(map(line, [0, 1, 2, 3, 99])),  # four lines of five
        "\n".join(map(line, [0, 1, 100, 101, 102])),  # two of five
        "short\n" * 3,
    ]
    (home / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert prepare(settings(tmp_path))["dropped_documents"] == 2
    assert prepare(settings(tmp_path, deduplicate=False))["dropped_documents"] == 0


def test_training_never_sees_what_is_held_out(tmp_path, tokenizer):
    home = tmp_path / "in"
    home.mkdir()
    texts = [f"document number {i} says something of its own, {i * i}" for i in range(200)]
    # Every document once more with one line added: whatever side it falls on, its twin may not be on the other.
    doubled = texts + [f"{text}\n{text[::-1]}\n{text}" for text in texts]
    (home / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in doubled))
    prepare(settings(tmp_path, held_out=0.2))
    split = {
        name: set(tokenizer.decode(read_all(tmp_path / "out", name).tolist(), skip_special_tokens=False).split("<s>"))
        for name in ("train", "held_out")
    }
    held_out_lines = {line for text in split["held_out"] for line in text.splitlines()}
    train_lines = {line for text in split["train"] for line in text.splitlines()}
    assert 20 < len(split["held_out"]) < 130
    assert not {line for line in held_out_lines & train_lines if len(line) >= 24 and line in texts}


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("a.jsonl", "{", "line 1"),
        ("a.jsonl", "{}", "neither"),
        ("a.jsonl", '{"text": 3}', "neither"),
        ("a.jsonl", "[1]", "neither"),
        ("a.jsonl", '{"messages": [3]}', "neither"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b'{"text": "\xff"}', "not UTF-8"),
        ("a.csv", "x", "no .txt"),
    ],
)
def test_what_preparation_refuses(tmp_path, tokenizer, file, content, message):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=message):
        prepare(settings(tmp_path))


def test_an_unknown_start_token_is_named(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="<none>"):
        prepare(settings(tmp_path, start_token="<none>"))


@pytest.mark.parametrize("index", ["{", "[]", '{"vocab": 9, "dtype": "O", "splits": {}}', '{"vocab": 9, "dtype": "<u2"}'])
def test_an_index_of_another_kind_is_refused(tmp_path, index):
    (tmp_path / "index.json").write_text(index)
    with pytest.raises(ConfigError, match="prepare the data again"):
        TokenFile(tmp_path, "train", 10)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path, tokenizer):
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no tokenizer"):
        prepare(settings(tmp_path))


def test_a_chat_that_the_template_refuses_is_named(tmp_path, tokenizer):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"messages": [{"role": "nobody", "content": ""}]}')
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    with pytest.raises(ConfigError, match="a.jsonl: the chat template refuses a chat"):
        prepare(settings(tmp_path))
