"""Hashes are stored, so their values are fixed: each is compared with coreutils' `sha256sum`, or written out."""

import subprocess
from pathlib import Path

from clip4vla.utils.hashing import HashSet, hash_bytes, hash_file, hash_files, hash_json, hash_text

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""Of "abc", from FIPS 180-2."""


def sha256sum(content: bytes) -> str:
    return subprocess.run(["sha256sum"], input=content, capture_output=True, check=True).stdout.decode().split()[0]


def test_text_bytes_and_files_with_the_same_content_have_the_same_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    assert hash_text("abc") == hash_bytes([b"a", b"", b"bc"]) == hash_file(tmp_path / "a") == ABC
    assert hash_text("abc", digits=16) == hash_bytes([b"abc"], digits=16) == ABC[:16]


def test_text_is_utf_8_and_a_lone_surrogate_is_kept() -> None:
    assert hash_text("Tür") == sha256sum("Tür".encode())
    assert hash_text("\udce4") == sha256sum(b"\xed\xb3\xa4")


def test_json_has_sorted_keys_and_escapes() -> None:
    assert hash_json({"b": [1, 0.5], "a": "ü"}) == sha256sum(rb'{"a": "\u00fc", "b": [1, 0.5]}')
    assert hash_json({"a": 1, "b": 2}, digits=16) == hash_json({"b": 2, "a": 1})[:16]


def test_files_are_hashed_with_their_names_in_their_order(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("abc")
    b.write_text("")
    lines = f"a\n{ABC}\nb\n{sha256sum(b'')}\n".encode()
    assert hash_files([a, b]) == sha256sum(lines)
    assert hash_files([a, b], digits=16) == sha256sum(lines)[:16]
    assert hash_files([b, a]) != hash_files([a, b])
    a.rename(tmp_path / "c")
    assert hash_files([tmp_path / "c", b]) != sha256sum(lines)


def test_a_set_of_hashes_has_what_was_added_and_nothing_else() -> None:
    found = HashSet()
    texts = [f"clip {number}" for number in range(20_000)]
    assert all(text not in found and found.add(text) for text in texts)
    assert len(found) == len(texts)
    assert not any(found.add(text) for text in texts)
    assert all(text in found for text in texts)
    assert not any(f"other {text}" in found for text in texts)
    assert len(found) == len(texts)
