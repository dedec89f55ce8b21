"""Published annotation files in, rows and trees out; every complaint is a `ValueError` that names file and place.

A byte order mark is skipped, blank lines are nothing, and a row that has more or fewer cells than the header is an
error: it's how an unquoted comma shows, which would otherwise cut a caption short.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

CHUNK = 1 << 20
"""Characters read at a time of a file that is too large to be read whole."""
SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    where: str
    """File and line, for messages."""
    cells: dict[str, Any]
    """By column; strings in a CSV, anything in JSON lines."""


def read_csv(
    file: Path, required: Iterable[str] = (), header: list[str] | None = None, joins_lines: bool = False
) -> Iterator[Row]:
    """Yield the rows of `file`.

    Args:
        file: comma-separated, UTF-8; quoted cells may hold commas, line breaks and doubled quotes.
        required: columns that must be there.
        header: the columns of a file without a header row, in which a line that begins with # is a comment.
        joins_lines: whether a line with too few cells goes on with the last cell of the one before, as an unquoted
            line break leaves it.
    """
    with _open(file) as stream:
        lines = stream if header is None else ("\n" if line.startswith("#") else line for line in stream)
        reader = csv.reader(lines, strict=True, skipinitialspace=header is not None)
        line = 1
        row: Row | None = None
        try:
            for cells in reader:
                if not cells:
                    pass
                elif header is None:
                    header = _header(cells, required, file)
                elif joins_lines and row is not None and len(cells) < len(header):
                    row.cells[header[-1]] += " " + ",".join(cells)
                elif len(cells) != len(header):
                    raise ValueError(f"{file}:{line}: {len(cells)} cells, but {len(header)} columns: {cells}"[:300])
                else:
                    if row is not None:
                        yield row
                    row = Row(f"{file}:{line}", dict(zip(header, cells, strict=True)))
                line = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(f"{file}:{line}: not valid CSV: {error}") from error
    if row is not None:
        yield row
    if header is None:
        raise ValueError(f"{file}:1: empty; expected a header with {', '.join(required)}")


def _header(cells: list[str], required: Iterable[str], file: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    missing = [name for name in required if name not in names]
    if missing or len(set(names)) < len(names):
        problem = f"no column {', '.join(missing)}" if missing else "a column twice"
        raise ValueError(f"{file}:1: {problem} in the header {names}")
    return names


def read_json_lines(file: Path, required: Iterable[str] = ()) -> Iterator[Row]:
    """Yield the rows of `file`, one JSON object a line; each must have the `required` keys."""
    with _open(file) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield Row(f"{file}:{number}", _object(line, required, f"{file}:{number}"))


def _object(line: str, required: Iterable[str], where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object: {line[:200]}")
    missing = [key for key in required if key not in value]
    if missing:
        raise ValueError(f"{where}: no key {', '.join(missing)}: {line[:200]}")
    return value


def read_lines(file: Path) -> list[str]:
    """The lines of `file` that aren't blank, without the white space around them."""
    with _open(file) as stream:
        return [line.strip() for line in stream if line.strip()]


def read_json(file: Path) -> Any:
    """The content of a JSON file."""
    with _open(file) as stream:
        try:
            return json.load(stream)
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            line = getattr(error, "lineno", 1)
            raise ValueError(f"{file}:{line}: not valid JSON: {error}") from error


def place_of_item(file: Path, index: int, key: str | None = None) -> str:
    """File and line of item `index` of the list that a JSON file is, or has under `key`; for messages."""
    with _open(file) as stream:
        scanner = _Scanner(stream, file)
        if key is not None:
            scanner.enter_member(key)
        scanner.expect("[")
        for _ in range(index):
            scanner.value()
            scanner.expect(",")
        return f"{file}:{scanner.line()}"


def read_json_members(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield key and value of a JSON file that is one object too large to be held in memory."""
    with _open(file) as stream:
        scanner = _Scanner(stream, file)
        scanner.expect("{")
        if scanner.accept("}"):
            return
        while True:
            key = scanner.value()
            if not isinstance(key, str):
                raise scanner.error(f"{key!r} is no key")
            scanner.expect(":")
            yield key, scanner.value()
            if scanner.accept("}"):
                return
            scanner.expect(",")


class _Scanner:
    """Reads JSON values from a stream, holding little more than one of them."""

    def __init__(self, stream: TextIO, file: Path) -> None:
        self._stream, self._file = stream, file
        self._text, self._place = "", 0
        self._lines_before = 0
        self._decoder = json.JSONDecoder()

    def error(self, problem: str, place: int | None = None) -> ValueError:
        line = self._line_at(self._place if place is None else place)
        return ValueError(f"{self._file}:{line}: not valid JSON: {problem}")

    def line(self) -> int:
        """Line of what comes next."""
        self._skip_space()
        return self._line_at(self._place)

    def _line_at(self, place: int) -> int:
        return self._lines_before + self._text.count("\n", 0, place) + 1

    def enter_member(self, key: str) -> None:
        """Skip all of an object before the value of `key`, which it has."""
        self.expect("{")
        while self.value() != key:
            self.expect(":")
            self.value()
            self.expect(",")
        self.expect(":")

    def accept(self, character: str) -> bool:
        """Skip white space, and `character` if it comes next."""
        self._skip_space()
        found = self._text.startswith(character, self._place)
        self._place += len(character) if found else 0
        return found

    def _skip_space(self) -> None:
        while True:
            space = SPACE.match(self._text, self._place)
            self._place = space.end() if space else self._place
            if self._place < len(self._text) or not self._more():
                return

    def expect(self, character: str) -> None:
        if not self.accept(character):
            raise self.error(f"{character!r} should be next, not {self._text[self._place :][:40]!r}")

    def value(self) -> Any:
        self._skip_space()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - 10
                if incomplete and self._more():
                    continue
                raise self.error(error.msg, error.pos) from error
            except ValueError as error:  # a number of thousands of digits
                raise self.error(str(error)) from error
            except RecursionError as error:
                raise self.error("too deeply nested") from error
            if end < len(self._text) or not self._more():
                self._place = end
                return value

    def _more(self) -> bool:
        self._lines_before += self._text.count("\n", 0, self._place)
        self._text = self._text[self._place :]
        self._place = 0
        added = self._stream.read(max(CHUNK, len(self._text)))  # doubling: a long value is parsed few times
        self._text += added
        return bool(added)


@contextmanager
def _open(file: Path) -> Iterator[TextIO]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield stream
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {file}") from error
    except OSError as error:
        raise ValueError(f"{file}: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}:{_first_line_not_utf8(file)}: not UTF-8: {error.reason}") from error


def _first_line_not_utf8(file: Path) -> int:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.decode(errors="replace").encode() != line:
                return number
    raise AssertionError("the file was UTF-8 after all")
