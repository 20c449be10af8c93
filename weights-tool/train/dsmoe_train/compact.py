"""Checkpoints that travel: the matrices as the pack's 4-bit planes, the embedding as two of them (8 bits), about a sixth of
float32, in parts of a chosen size. Rounding a checkpoint that already lies on the pack's grid changes it by a thousandth.

    python -m dsmoe_train.compact shrink CHECKPOINT DIRECTORY [MEGABYTES]     writes part-00.safetensors, … and the text files
    python -m dsmoe_train.compact expand DIRECTORY CHECKPOINT                 the inverse; it names a part that is missing
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from .checkpoint import TEXT_FILES
from .config import ConfigError
from .files import write_json, write_whole
from .quantise import BLOCK, Plane, q4

TWO_PLANES = ("embed_tokens.weight", "lm_head.weight")


def shrink(checkpoint: Path, output: Path, part_bytes: int) -> int:
    """Returns the number of parts."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            for key, tensor in _small(name, file.get_tensor(name)):
                if parts[-1] and size + tensor.nbytes > part_bytes:
                    parts.append({})
                    size = 0
                parts[-1][key] = tensor
                size += tensor.nbytes
    for number, part in enumerate(parts):
        path = output / f"part-{number:02d}.safetensors"
        write_whole(path, lambda to, part=part: save_file(part, to, metadata={"parts": str(len(parts))}))
    _copy_text(checkpoint, output)
    return len(parts)


def expand(directory: Path, checkpoint: Path) -> None:
    files = sorted(directory.glob("part-*.safetensors"))
    if not files:
        raise ConfigError(f"{directory} holds no part-00.safetensors")
    with safe_open(files[0], framework="pt") as first:
        count = int(first.metadata()["parts"])
    missing = [n for n in range(count) if not (directory / f"part-{n:02d}.safetensors").is_file()]
    if missing:
        raise ConfigError(f"{directory} lacks parts {missing} of {count}")
    small: dict[str, Tensor] = {}
    for file in files:
        small.update(load_file(file))
    names = {key.partition("#")[0] for key in small}
    tensors = {name: _large(name, small) for name in names}
    write_whole(checkpoint / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _copy_text(directory, checkpoint)


def _small(name: str, weight: Tensor):
    """(key, tensor): the tensor itself, or its planes; rows in slices, so that parts can be small."""
    if weight.ndim != 2 or ".router." in name or weight.shape[1] % BLOCK:
        yield name, weight
        return
    for number, rows in enumerate(weight.split(8192)):
        plane = q4(rows)
        yield from _plane(f"{name}#{number:02d}.0", plane)
        if name.endswith(TWO_PLANES):
            rest = q4(rows.float() - plane.dequantise())
            yield from _plane(f"{name}#{number:02d}.1", rest)


def _plane(key: str, plane: Plane):
    code = plane.code_RGC.to(torch.uint8).flatten(1)
    yield f"{key}.code", code[:, 0::2] | (code[:, 1::2] << 4)
    yield f"{key}.scale", plane.scale_RG.to(torch.uint8)
    yield f"{key}.zero", plane.zero_RG.to(torch.uint8)
    yield f"{key}.row", plane.row_scale_R


def _large(name: str, small: dict[str, Tensor]) -> Tensor:
    if name in small:
        return small[name]
    slices: dict[str, Tensor] = {}
    for key in sorted(key.removesuffix(".code") for key in small if key.startswith(f"{name}#") and key.endswith(".code")):
        packed = small[f"{key}.code"]
        code = torch.stack([packed & 15, packed >> 4], -1).flatten(1).float().unflatten(1, (-1, BLOCK))
        scale, zero = small[f"{key}.scale"].float(), small[f"{key}.zero"].float()
        values = Plane(small[f"{key}.row"], scale, zero, code).dequantise()
        number = key.rpartition("#")[2].partition(".")[0]
        slices[number] = slices[number] + values if number in slices else values
    return torch.cat([slices[number] for number in sorted(slices)])


def _copy_text(source: Path, target: Path) -> None:
    write_json(target / "config.json", json.loads((source / "config.json").read_text()))
    for name in TEXT_FILES:
        if (source / name).is_file():
            write_whole(target / name, lambda path, name=name: shutil.copyfile(source / name, path))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["shrink", checkpoint, output, *megabytes]:
            print(shrink(Path(checkpoint), Path(output), int(float(megabytes[0] if megabytes else 15) * 1e6)), "parts")
        case ["expand", directory, checkpoint]:
            expand(Path(directory), Path(checkpoint))
        case _:
            sys.exit(__doc__)
