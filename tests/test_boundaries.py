"""Who may import what: third parties have one door each, and a part imports only what stands before it."""

import ast
from pathlib import Path

import pytest

from tests.project import REPOSITORY

ORDER = (
    *("records", "atomic", "progress", "params", "batch", "pages"),
    *(
        "media",
        "corpora",
        "clips",
        "audio",
        "model",
        "losses",
        "tracking",
        "training",
        "evaluation",
        "embedding",
        "registry",
        "serving",
        "search",
        "__main__",
    ),
)
"""The parts of the package in the way of the data; on top of them stand flows and benchmarks."""

DOORS = {
    "prefect": ("flows/",),
    "deepspeed": ("clip4vla/training/engine.py",),
    "mlflow": ("clip4vla/tracking.py", "clip4vla/registry/store.py", "clip4vla/serving.py"),
    "open_clip": ("clip4vla/model/",),
    "yaml": ("clip4vla/params.py",),
    "av": ("clip4vla/media/", "clip4vla/corpora/stampscenes/things.py"),
    "distributed": ("clip4vla/clips/ingest.py", "benchmarks/ingest.py"),
    "pycocoevalcap": ("clip4vla/evaluation/caption_metrics.py",),
    "silero_vad": ("clip4vla/clips/speech.py",),
    "lance": (
        "clip4vla/clips/",
        "clip4vla/search.py",
        "benchmarks/clips.py",
        "benchmarks/ingest.py",
        "benchmarks/search.py",
    ),
}
"""The only files, or folders, that may import a third party; imports inside functions count."""

SOURCES = sorted(
    path.relative_to(REPOSITORY)
    for top in ("clip4vla", "flows", "benchmarks")
    for path in (REPOSITORY / top).rglob("*.py")
)


def imports(source: str) -> set[str]:
    """Full names of all modules that are imported anywhere in `source`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides where it leads"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def part_of(name: str) -> str | None:
    """The part of the package that a module belongs to, None for others."""
    package, _, rest = name.partition(".")
    return rest.split(".")[0] or None if package == "clip4vla" else None


def trespasses(path: str, source: str) -> list[str]:
    """What `path` imports through a door that isn't its own."""
    used = {name.split(".")[0] for name in imports(source)}
    return sorted(name for name, doors in DOORS.items() if name in used and not path.startswith(doors))


def against_the_stream(path: str, source: str) -> list[str]:
    """Modules of the package, or on top of it, that stand behind the part that `path` belongs to."""
    top, _, rest = path.partition("/")
    if top != "clip4vla" or rest == "__init__.py":
        return []
    before = ORDER[: ORDER.index(rest.split("/")[0].removesuffix(".py")) + 1]
    found = {name for name in imports(source) if (part := part_of(name)) is not None and part in ORDER}
    later = {name for name in found if part_of(name) not in before}
    return sorted(later | {name for name in imports(source) if name.split(".")[0] in {"flows", "benchmarks", "tests"}})


def test_the_order_names_every_part() -> None:
    parts = {path.parts[1].removesuffix(".py") for path in SOURCES if path.parts[0] == "clip4vla"} - {"__init__"}
    assert parts == set(ORDER)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_module_keeps_within_its_bounds(path: Path) -> None:
    source = (REPOSITORY / path).read_text(encoding="utf-8")
    assert trespasses(path.as_posix(), source) == []
    assert against_the_stream(path.as_posix(), source) == []


@pytest.mark.parametrize(("name", "doors"), DOORS.items())
def test_every_door_is_used(name: str, doors: tuple[str, ...]) -> None:
    users = [p.as_posix() for p in SOURCES if name in {n.split(".")[0] for n in imports((REPOSITORY / p).read_text())}]
    assert [door for door in doors if not any(user.startswith(door) for user in users)] == []


def test_the_check_sees_through_functions_aliases_and_types() -> None:
    hidden = "def f():\n  if TYPE_CHECKING:\n    from prefect.artifacts import x as y\n  import deepspeed.comm as c\n"
    assert trespasses("clip4vla/model/text.py", hidden) == ["deepspeed", "prefect"]
    assert trespasses("flows/stage.py", "from prefect import task") == []
    assert against_the_stream("clip4vla/clips/loader.py", "from clip4vla.model.text import Tokenizer") == [
        *("clip4vla.model.text", "clip4vla.model.text.Tokenizer")
    ]
    assert against_the_stream("clip4vla/records.py", "from clip4vla import params") == ["clip4vla.params"]
    assert against_the_stream("clip4vla/training/loop.py", "import flows.stage") == ["flows.stage"]
    assert against_the_stream("clip4vla/registry/gate.py", "import clip4vla\nfrom clip4vla.records import Split") == []
