"""Who may import what: third parties have one door each, and a part imports only what stands before it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.project import REPOSITORY

ORDER = (
    *("utils", "records", "config", "media", "corpora", "clips", "audio", "model", "losses"),
    *("tracking", "training", "inference", "evaluation", "registry", "reports", "app", "release", "pipeline"),
    *("rehearsal", "__main__"),
)
"""The parts of the package in the way of the data; on top of them stand flows and benchmarks."""

DOORS = {
    "prefect": ("flows/",),
    "deepspeed": ("clip4vla/training/engine.py",),
    "mteb": ("clip4vla/evaluation/mteb_model.py",),
    "datasets": ("clip4vla/evaluation/mteb_model.py",),
    "mlflow": ("clip4vla/tracking/", "clip4vla/registry/", "clip4vla/inference/pyfunc.py"),
    "open_clip": ("clip4vla/model/towers.py",),
    "ftfy": ("clip4vla/model/byte_pairs.py",),
    "regex": ("clip4vla/model/byte_pairs.py",),
    "yaml": ("clip4vla/config.py",),
    "av": ("clip4vla/media/", "clip4vla/corpora/stampscenes/stamps.py"),
    "distributed": ("clip4vla/clips/workers.py", "benchmarks/ingest.py"),
    "hashlib": ("clip4vla/utils/hashing.py",),
    "prometheus_client": ("clip4vla/inference/metrics.py", "flows/serving.py"),
    "psutil": ("clip4vla/utils/machine.py", "clip4vla/utils/supervise.py", "clip4vla/training/network.py"),
    "pycocoevalcap": ("clip4vla/evaluation/caption_metrics.py",),
    "silero_vad": ("clip4vla/clips/speech.py",),
    "espeakng_loader": ("clip4vla/corpora/stampscenes/voices.py",),
    "pedalboard": ("clip4vla/corpora/stampscenes/sounds.py",),
    "resvg_py": ("clip4vla/corpora/stampscenes/pictures.py",),
    "huggingface_hub": ("clip4vla/release/", "clip4vla/model/towers.py"),
    "jinja2": ("clip4vla/reports/pages.py",),
    "fastapi": ("clip4vla/app/server.py",),
    "uvicorn": ("clip4vla/app/server.py",),
    "numba": ("clip4vla/audio/kernel.py", "clip4vla/audio/lanes.py"),
    "llvmlite": ("clip4vla/audio/lanes.py",),
    "matplotlib": ("clip4vla/reports/figures.py", "clip4vla/tracking/"),
    "typer": ("clip4vla/__main__.py", "flows/serve.py"),
    "lance": (
        "clip4vla/clips/",
        "clip4vla/inference/index.py",
        "benchmarks/clips.py",
        "benchmarks/ingest.py",
        "benchmarks/app.py",
        "benchmarks/kills.py",
        "benchmarks/search.py",
        "benchmarks/scale.py",
    ),
}
"""The only files, or folders, that may import a third party; imports inside functions count."""

SOURCES = sorted(
    path.relative_to(REPOSITORY)
    for top in ("clip4vla", "flows", "benchmarks")
    for path in (REPOSITORY / top).rglob("*.py")
)


@cache
def imports(source: str) -> frozenset[str]:
    """Full names of all modules that are imported anywhere in `source`."""
    found = set[str]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides where it leads"
            assert node.module is not None
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


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
    assert trespasses("clip4vla/model/tokenizer.py", hidden) == ["deepspeed", "prefect"]
    assert trespasses("flows/stages.py", "from prefect import task") == []
    assert against_the_stream("clip4vla/clips/dataset.py", "from clip4vla.model.tokenizer import Tokenizer") == [
        *("clip4vla.model.tokenizer", "clip4vla.model.tokenizer.Tokenizer")
    ]
    assert against_the_stream("clip4vla/records.py", "from clip4vla import config") == ["clip4vla.config"]
    assert against_the_stream("clip4vla/training/trainer.py", "import flows.stages") == ["flows.stages"]
    assert against_the_stream("clip4vla/registry/gate.py", "import clip4vla\nfrom clip4vla.records import Split") == []


RETIRED = (
    *("through_dvc", "onwards", "CLIP4VLA_INSIDE_FLOW", "load_params", "text_cross", "time_shift", "vision_lr_ratio"),
    *("Outlook", "Percepts", "percepts", "perceive", "launch_through", "leash", "leashed", "ClipStore", "audio_view"),
    *("open_tracker", "NullRun", "caption_gate", "vision", "anew", "thither"),
)
"""Words that the project no longer uses; each has one successor."""
MIGRATION = REPOSITORY / "docs/migration.md"
"""Lists the earlier names of settings beside the present ones, so it is the one file that must contain them."""
WRITTEN = [
    path
    for pattern in ("clip4vla/**/*.py", "flows/**/*.py", "benchmarks/**/*.py", "docs/*.md", "*.md", "*.yaml")
    for path in sorted(REPOSITORY.glob(pattern))
    if path != MIGRATION
]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_retired_words_are_gone(path: Path) -> None:
    earlier = {"vision"} if path.name == "config.py" else set()  # it reads what earlier versions wrote
    found = (
        set(re.findall(r"(?<![\w@-])[A-Za-z_]+(?![\w-])", path.read_text(encoding="utf-8"))) & set(RETIRED) - earlier
    )
    assert found == set()


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_merge_is_left_half_done(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if re.match(r"(<{7}|>{7}|\|{7}) |={7}$", line)] == []
