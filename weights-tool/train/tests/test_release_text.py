import gzip
import struct
import tomllib
import zlib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

RELEASE = Path(__file__).parents[1] / "release"
spec = spec_from_file_location("release_text", RELEASE / "text.py")
text = module_from_spec(spec)
spec.loader.exec_module(text)


def test_a_page_is_read_without_its_navigation_and_with_its_code():
    page = b"""<html class="sidebar-visible"><head><title>No</title></head><body><nav>No</nav>
      <div class="wide related">No<p>No</div><h1>Lists</h1><p>A <b>list</b>
      is<br>written: <img src="x">so.</p><pre>a = [1,
     2]</pre><script>no()</script></body></html>"""
    assert list(text.html(page)) == ["Lists\nA list is\nwritten: so.\na = [1,\n     2]"]


def test_running_text_is_unwrapped_and_cut_into_documents():
    assert list(text.plain(b"One\r\nline.\r\n\r\nAnother.")) == ["One line.\n\nAnother."]
    assert list(text.plain(b"A paragraph.\nA second.")) == ["A paragraph.\n\nA second."]
    long = [letter * (text.DOCUMENT // 2) for letter in "abc"]
    assert list(text.plain("\n\n".join(long).encode())) == ["\n\n".join(long[:3])]
    assert [len(piece) for piece in text.pieces([letter * text.DOCUMENT + "." for letter in "ab"])] == [6001, 6001]


def test_dictionaries_keep_an_entry_on_a_line():
    entries = gzip.compress(b"hack\n  1. To write\n     well.\nhacker\n  One who does.\n")
    assert [part.split("\n\n") for part in text.dictionary(entries)] == [["hack 1. To write well.", "hacker One who does.\n"]]
    synset = b'  1 licence\n00001 03 n 02 thing 0 living_thing(a) 0 000 | what is; "a thing"  \n'
    assert list(text.wordnet(synset)) == ['thing, living thing: what is; "a thing"']


def test_the_strings_of_an_r_package_are_read_object_by_object():
    def vector(*strings: bytes) -> bytes:
        values = b"X\n" + b"".join(b"\x00\x04\x00\x09" + struct.pack(">I", len(s)) + s for s in strings)
        return b"\x00\x00\x00\x40" + zlib.compress(values)

    assert list(text.r_strings(vector(b"Emma", b"", b"By") + vector(b"Persuasion"))) == ["Emma\n\nBy", "Persuasion"]


def test_every_package_is_listed_with_all_that_is_needed():
    for package in tomllib.loads((RELEASE / "text.toml").read_text())["packages"]:
        assert package["read"] in text.READERS
        assert package["text"] in ("manuals", "prose", "books")
        assert len(bytes.fromhex(package["sha256"])) == 32
        assert package["licence"] and package["version"] and package["only"]


def test_only_the_files_asked_for_are_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.txt").write_text("b" * text.SHORTEST)
    (tmp_path / "data" / "a.txt").write_text("a" * text.SHORTEST)
    (tmp_path / "data" / "short.txt").write_text("too short")
    (tmp_path / "other.txt").write_text("c" * text.SHORTEST)
    found = text.documents({"read": "plain", "only": r"/data/.*\.txt$"}, tmp_path)
    assert [document[0] for document in found] == ["a", "b"]


def test_a_missing_package_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        text.fetch({"name": "x", "from": "npm", "version": "1", "sha256": ""}, tmp_path / "x")
