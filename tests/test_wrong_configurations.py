"""Hundreds of wrong files params.yaml, by kind of mistake: a message of at most three lines that names the key."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from clip4vla.__main__ import main
from clip4vla.config import Config
from tests.project import REPOSITORY
from tests.test_config import SECTIONS, Tree, at

TREE: Tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
SCHEMA = Config.model_json_schema()


def alternatives(schema: Tree) -> list[Tree]:
    """The schemas of which a value must fit one, references resolved."""
    if "$ref" in schema:
        return alternatives(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    return [part for each in schema.get("anyOf", []) for part in alternatives(each)] or [schema]


def outside(schema: Tree) -> Iterator[tuple[str, Any]]:
    """The nearest numbers outside of a schema's range, and what is no number."""
    step = 1 if schema["type"] == "integer" else 0.5
    too_small = {"minimum": -step, "ge": -step, "exclusiveMinimum": 0, "gt": 0}
    too_large = {"maximum": step, "le": step, "exclusiveMaximum": 0, "lt": 0}
    yield from (("too small", schema[key] + beyond) for key, beyond in too_small.items() if key in schema)
    yield from (("too large", schema[key] + beyond) for key, beyond in too_large.items() if key in schema)
    if schema["type"] == "integer":
        yield "not whole", 33.5
    yield "truth value", True


def wrong_values(schema: Tree) -> Iterator[tuple[str, Any]]:
    """Kinds of mistakes, and a value of each, that no alternative of `schema` accepts."""
    parts = alternatives(schema)
    types = {part.get("type") for part in parts}
    for part in parts:
        if part.get("type") in ("integer", "number"):
            yield from outside(part)
    if "string" not in types or all("enum" in part or "const" in part for part in parts if part["type"] == "string"):
        yield "unknown word", "unheard of"
    else:
        yield "number for text", 7
    if "boolean" in types:
        yield "number for a truth value", 3
    if "array" not in types:
        yield "list", ["a", "b"]
    if "object" not in types:
        yield "mapping", {"a": "b"}
    if "null" not in types:
        yield "nothing", None


def cases() -> Iterator[Any]:
    """(dotted key, value) of every declared key and kind of mistake."""
    for path in SECTIONS:
        [section] = [part for part in alternatives(schema_at(path)) if "properties" in part]
        for name, schema in section["properties"].items():
            for kind, value in wrong_values(schema):
                key = ".".join((*path, name))
                yield pytest.param(key, value, id=f"{key}: {kind}")


def schema_at(path: tuple[str, ...]) -> Tree:
    schema: Tree = SCHEMA
    for name in path:
        [section] = [part for part in alternatives(schema) if "properties" in part]
        schema = section["properties"][name]
    return schema


EVERY = list(cases())
CASES = EVERY[::3]
"""A third of them, of every section and kind: all together take minutes."""


def test_there_are_hundreds_of_cases_of_every_section() -> None:
    assert len(EVERY) > 1000
    assert len(CASES) > 250
    assert {str(case.values[0]).partition(".")[0] for case in CASES} >= set(Config.model_fields) - {"preset", "presets"}
    assert {str(case.id).rpartition(": ")[2] for case in CASES} == {str(case.id).rpartition(": ")[2] for case in EVERY}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_wrong_value_is_one_short_message_that_names_the_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    tree = copy.deepcopy(TREE)
    *section, name = key.split(".")
    at(tree, tuple(section))[name] = value
    monkeypatch.chdir(folder)
    (folder / "params.yaml").write_text(yaml.dump(tree, Dumper=yaml.CSafeDumper), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["champion"])
    lines = str(ended.value).splitlines()
    assert re.match(r"clip4vla: params\.yaml is not valid:$", lines[0]), lines
    assert 2 <= len(lines) <= 3
    assert lines[1].strip().startswith(key), lines
    assert [path.name for path in folder.iterdir()] == ["params.yaml"], "nothing else was touched"
