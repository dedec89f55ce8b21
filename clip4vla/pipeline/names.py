"""Names in `params.yaml` that other parts define, checked before anything runs: adapters, and scores in gates.

In: a configuration, and the files of queries and labels that it names, where they are there already. A file of the
user's that isn't there yet says nothing, and any kind of query or role is taken for one of it.
"""

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from itertools import product
from pathlib import Path

from clip4vla.config import Config, GateConfig
from clip4vla.corpora.base import check_adapter
from clip4vla.corpora.stampscenes import compose
from clip4vla.evaluation.labels import ROLES, Labels
from clip4vla.evaluation.queries import QuerySet
from clip4vla.evaluation.score_names import ScoreNames, captioning_names, retrieval_names
from clip4vla.evaluation.scores import BY_QUERY, HELD_OUT, ORIGINAL, QUERY_KINDS, UNSEEN
from clip4vla.records import TASKS, TaskName

NEAR = 3
"""Most names that are proposed in place of a wrong one."""


def check_names(config: Config, root: Path = Path()) -> None:
    """Refuse names that nothing has, in the project at `root`.

    Raises:
        ValueError: there is no adapter of the name that a corpus has; a gate names a score that no evaluation gives
            with these settings; or the file of queries or labels isn't one. The message has a line for each name, with
            the key, the name and others in place of it.
    """
    wrong = [*_wrong_adapters(config), *(line for task in TASKS for line in _wrong_scores(config, task, root))]
    if wrong:
        raise ValueError("\n".join(["params.yaml with its presets is not valid:", *(f"  {line}" for line in wrong)]))


def _wrong_adapters(config: Config) -> Iterator[str]:
    for name, corpus in config.corpora.items():
        try:
            check_adapter(corpus.adapter)
        except ValueError as error:
            yield f"corpora.{name}.adapter: {error}"


def _wrong_scores(config: Config, task: TaskName, root: Path) -> Iterator[str]:
    gate, key = config.gates.of(task), f"gates.{task}"
    named = _named_scores(gate)
    groups = _query_groups(config, root, named.values()) if task == "retrieval" else ()
    if task == "retrieval":
        names = retrieval_names(config, groups)
    else:
        names = captioning_names(config, _label_roles(config, root, named.values()))
    for place, name in named.items():
        if name not in names:
            near = ", ".join(_near(name, names))
            yield f"{key}.{place}: there is no score {name!r} of {task} with these settings; near it are {near}"
    if gate.primary in names.others:
        yield f"{key}.primary: {gate.primary!r} has no results of each query or clip, by which two models are compared"
    if gate.never_worse_than_best_modality is not None and not any(g.startswith(f"{BY_QUERY}/") for g in groups):
        yield f"{key}.never_worse_than_best_modality: there are no scores by kind of query, which it compares"


def _named_scores(gate: GateConfig) -> dict[str, str]:
    """The scores that a gate names, by their places in it."""
    guards = {f"guards.{number}.score": guard.score for number, guard in enumerate(gate.guards)}
    return {"primary": gate.primary, **{f"floors.{name}": name for name in gate.floors}, **guards}


def _near(name: str, names: ScoreNames) -> list[str]:
    return get_close_matches(name, sorted(names.paired | names.others), NEAR, cutoff=0)


def _query_groups(config: Config, root: Path, named: Collection[str]) -> Collection[str]:
    """The groups of the test queries; where they can't be known yet, those that are named."""
    if config.evaluation.queries is None:
        return ()
    path = Path(config.evaluation.queries)
    if path.is_relative_to(compose.DESTINATION):
        return ["/".join(parts) for parts in product((BY_QUERY, HELD_OUT), QUERY_KINDS)]
    if (root / path).is_file():
        return QuerySet.read(root / path, "test").groups()
    parts = [name.split("/") for name in named]
    groups = {"/".join(part[:2]) for part in parts if part[0] in (BY_QUERY, HELD_OUT)}
    groups |= {f"{BY_QUERY}/KIND", f"{HELD_OUT}/KIND"}
    return groups | {f"{BY_QUERY}/{part[2]}" for part in parts if part[0] in (ORIGINAL, UNSEEN) and part[2:]}


def _label_roles(config: Config, root: Path, named: Collection[str]) -> Collection[str]:
    """The roles of labels; where they can't be known yet, those that are named."""
    if config.evaluation.labels is None:
        return ()
    path = Path(config.evaluation.labels)
    if path.is_relative_to(compose.DESTINATION):
        return ROLES
    if (root / path).is_file():
        return {role for right in Labels.read(root / path).clips.values() for role in right}
    return {name.rsplit("/", 1)[1] for name in named if "/slot/" in name}
