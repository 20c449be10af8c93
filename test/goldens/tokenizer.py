"""Writes tokenizer.json: what Hugging Face's own tokenizers (Rust, 0.23.3) make of texts that are easy to get wrong.

    pip install tokenizers==0.23.3
    python test/goldens/tokenizer.py models/smollm2-135m-dsmoe

The vocabulary is the shipped model's; every way of cutting text into words that the engine knows is run on it.
"""

import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(use_regex):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


# name, pre_tokenizer, ignore_merges
KINDS = [
    ("smollm", sequence({"type": "Digits", "individual_digits": True}, byte_level(True)), False),
    ("gpt-2", byte_level(True), False),
    ("digit runs", sequence({"type": "Digits", "individual_digits": False}, byte_level(True)), False),
    (
        "llama-3",
        sequence(
            {"type": "Split", "pattern": {"Regex": LLAMA_3}, "behavior": "Isolated", "invert": False},
            byte_level(False),
        ),
        True,
    ),
]

# White space and digits of all kinds, contractions in both cases and with the long s, scripts without spaces, characters
# of several code points, the byte alphabet itself, control characters, added tokens whole and in parts.
POOL = (
    [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\x0b", "\u0085", "\ufeff", "\u00a0", "\u2028", "\u3000"]
    + ["1", "12", "1234", "½", "²", "٣", "Ⅷ", "a", "the", " hello", "World", "é", "e\u0301", "ß", "İ", "ǅ", "ﬁ", "_"]
    + ["'s", "'S", "'ſ", "'LL", "'re", "'ve", "'", "!", "...", "-----", "\\", '"', "中文", "日本語", "ไทย", "한국어"]
    + ["😀", "👨‍👩‍👧", "🇩🇪", "\U000e0041", "\U0010ffff", "\ufffd", "Ġ", "Ċ", "Â", "\x00", "\x7f", "\u200b"]
    + ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<repo_name>", "<|im_", "end|>", "<|", "|>"]
)


def texts():
    rng = random.Random(1)
    singles = [f"a{piece}b {piece}1{piece}  {piece}{piece}!{piece}" for piece in POOL]
    mixed = ["".join(rng.choices(POOL, k=rng.randrange(2, 25))) for _ in range(120)]
    return ["", *singles, *mixed]


def main():
    model = Path(sys.argv[1])
    manifest = json.loads((model / "manifest.json").read_text())
    base = json.loads((model / "shards" / manifest["text"]["tokenizer"]["hash"]).read_bytes())
    cases = []
    for name, pre_tokenizer, ignore_merges in KINDS:
        file = {**base, "pre_tokenizer": pre_tokenizer, "model": {**base["model"], "ignore_merges": ignore_merges}}
        tokenizer = Tokenizer.from_str(json.dumps(file))
        ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts()]
        cases.append({"name": name, "pre_tokenizer": pre_tokenizer, "ignore_merges": ignore_merges, "ids": ids})
    rng = random.Random(2)
    # Tokens in any order: most of them end or begin within a character.
    random_ids = [[rng.randrange(49152) for _ in range(rng.randrange(1, 20))] for _ in range(100)]
    random_ids += [[rng.randrange(17, 260) for _ in range(rng.randrange(1, 30))] for _ in range(100)]
    tokenizer = Tokenizer.from_str(json.dumps(base))
    decoded = [
        {
            "ids": ids,
            "text": tokenizer.decode(ids, skip_special_tokens=True),
            "with_control": tokenizer.decode(ids, skip_special_tokens=False),
        }
        for ids in random_ids
    ]
    golden = {"texts": texts(), "kinds": cases, "decoded": decoded}
    Path(__file__).with_suffix(".json").write_text(json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n")


main()
