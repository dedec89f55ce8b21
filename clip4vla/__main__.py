"""`clip4vla COMMAND`: the champion at work. Look for clips by what is seen and heard in them; see it, or take it back.

Run in the project's folder, whose registry has the champion; `search` needs nothing but the index.
"""

import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from clip4vla.records import MODALITIES

if TYPE_CHECKING:
    from clip4vla.search import Hit, Index

INDEX = Path("data/index")
TOP = 10


def index(settings: Namespace) -> None:
    """Bring the index of a folder up to date."""
    from clip4vla.registry.store import Registry, content_hash, read_outlook
    from clip4vla.search import IndexedModel, build

    name = _model_name(settings)
    registry = Registry(Path.cwd())
    version = registry.champion_version(name)
    with tempfile.TemporaryDirectory() as scratch:
        result = registry.fetch(name, version, Path(scratch))
        outlook = read_outlook(result)
        model = IndexedModel(
            name=name,
            version=version,
            content=content_hash(result),
            outlook=outlook,
            clip_seconds=settings.seconds or outlook.clips.max_seconds,
        )
        done = build(settings.folder, settings.index, result, model)
    print(f"{done.clips:,} clips in {settings.index}, by {name} version {version}")
    print(f"files: {done.added:,} added, {done.kept:,} kept, {done.removed:,} removed, {len(done.rejects):,} left out")
    for path, reason in list(done.rejects.items())[:TOP]:
        print(f"  left out {path}: {reason}")


def search(settings: Namespace) -> None:
    """Answer one sentence, or one after the other as they are typed."""
    from clip4vla.search import Index

    opened = Index(settings.index)
    if settings.sentence is not None:
        _answer(opened, settings.sentence, settings)
        return
    while sentence := _ask():
        _answer(opened, sentence, settings)


def _ask() -> str:
    try:
        return input("search: ").strip()
    except EOFError:
        return ""


def _answer(opened: "Index", sentence: str, settings: Namespace) -> None:
    from clip4vla import pages
    from clip4vla.search import page_of

    start = time.perf_counter()
    hits = opened.search(sentence, settings.top, settings.by)
    seconds = time.perf_counter() - start
    _show(hits, f"“{sentence}” in {len(opened):,} clips, by {opened.model.name} version {opened.model.version}")
    print(f"in {seconds:.2f} s", file=sys.stderr)
    if settings.html is not None:
        pages.write(page_of(sentence, hits, opened), settings.html)
        print(f"with pictures and sound: {settings.html}")


def _show(hits: "Sequence[Hit]", title: str) -> None:
    table = Table("", "clip", "seconds", *MODALITIES, title=title, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for rank, hit in enumerate(hits, 1):
        scores = (f"{hit.scores[m]:.3f}" if m in hit.scores else "" for m in MODALITIES)
        table.add_row(str(rank), hit.path, f"{hit.start_s:.1f}–{hit.end_s:.1f}", *scores)
    Console().print(table)


def champion(settings: Namespace) -> None:
    """Say which version is the champion, and how well it does."""
    from clip4vla.registry.store import Registry

    name = _model_name(settings)
    registry = Registry(Path.cwd())
    version = registry.champion_version(name)
    scores = registry.scores(name, version)
    table = Table("score", "value", "95 % interval", title=f"{name} version {version}", title_justify="left")
    for score in (score for score in scores.values if score.endswith("/R@1")):
        low, high = scores.intervals.get(score, (None, None))
        table.add_row(score, f"{scores.values[score]:.1f}", "" if low is None else f"{low:.1f} to {high:.1f}")
    Console().print(table)


def rollback(settings: Namespace) -> None:
    """Make the version that the champion replaced the champion again."""
    from clip4vla.registry.store import Registry

    name = _model_name(settings)
    registry = Registry(Path.cwd())
    deposed = registry.champion_version(name)
    print(f"{name}: version {registry.rollback(name)} is the champion again; version {deposed} is tagged rolled_back")


def _model_name(settings: Namespace) -> str:
    """Of the registered model: the one named, or the project's."""
    if settings.model is not None:
        return str(settings.model)
    from clip4vla.params import load_params

    return load_params().gate.model_name


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="clip4vla", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)

    one = commands.add_parser("index", help="index a folder of media with the champion", description=index.__doc__)
    one.add_argument("folder", type=Path)
    one.add_argument("--index", type=Path, default=INDEX, help=f"directory of the index; default: {INDEX}")
    one.add_argument("--seconds", type=float, help="longest clip; a longer file is several. Default: as in training")
    one.add_argument("--model", help="name of the registered model; default: gate.model_name of params.yaml")
    one.set_defaults(run=index)

    one = commands.add_parser("search", help="find clips by a sentence", description=search.__doc__)
    one.add_argument("sentence", nargs="?", help="left out: asked for, one after the other")
    one.add_argument("--index", type=Path, default=INDEX, help=f"default: {INDEX}")
    one.add_argument("--top", type=int, default=TOP, help=f"how many clips; default: {TOP}")
    one.add_argument("--by", choices=MODALITIES, default="both", help="what must fit the sentence; default: both")
    one.add_argument("--html", type=Path, help="also write a page with pictures and sound")
    one.set_defaults(run=search)

    for run in (champion, rollback):
        one = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        one.add_argument("model", nargs="?", help="name of the registered model; default: gate.model_name")
        one.set_defaults(run=run)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command on the command line; a mistake of the user's ends it with a sentence."""
    settings = _parser().parse_args(arguments)
    try:
        settings.run(settings)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"clip4vla: {error}")


if __name__ == "__main__":
    main()
