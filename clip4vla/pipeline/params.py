"""Stage `params`: `params.yaml` with its presets resolved, for DVC, which has no presets.

Out: `params.resolved.yaml` with every section and value, of which the other stages name those that they depend on, and
two more: `graph`, from which `dvc.yaml` makes the stages, and `trained`, the corpora without those of the role
`unseen`, which may come and go without another training. The file is committed, since DVC needs it before any stage has
run. DVC makes the stages when it starts: where they change, the stage fails once and the next `dvc repro` has them.
"""

from pathlib import Path
from typing import Any

from clip4vla.config import SHARDS_ADAPTER, Config, CorpusConfig, load_config, read_yaml, to_yaml
from clip4vla.corpora.media_index import linked_folders
from clip4vla.corpora.stampscenes import compose, fetch
from clip4vla.pipeline.names import check_names
from clip4vla.pipeline.project import CLIPS, listing_file
from clip4vla.utils.files import atomic_file

RESOLVED = Path("params.resolved.yaml")
GRAPH, TRAINED = "graph", "trained"
HEADER = "# Written by the stage `params` from params.yaml and presets/; see clip4vla/pipeline/params.py.\n"


def resolve(root: Path = Path()) -> bool:
    """Bring `params.resolved.yaml` in `root` up to date; whether the stages stayed the same.

    Raises:
        ValueError: `params.yaml` or a preset is not valid, or what `check_names` raises.
    """
    config = load_config(root / "params.yaml")
    check_names(config, root)
    tree = _resolved(config)
    before = _read(root / RESOLVED)
    with atomic_file(root / RESOLVED) as partial:
        partial.write_text(HEADER + to_yaml(tree), encoding="utf-8")
    return before is not None and before.get(GRAPH) == tree[GRAPH]


def write_resolved(dvc_has_read_it: bool) -> None:
    """Bring `params.resolved.yaml` up to date.

    Args:
        dvc_has_read_it: DVC runs this as a stage, and has made its stages from the file as it was.

    Raises:
        ValueError: `params.yaml` or a preset is not valid; or the stages have changed, and DVC must read them again; or
            what `check_names` or `check_links` raises.
    """
    check_links(load_config())
    if not resolve() and dvc_has_read_it:
        raise ValueError(
            f"{RESOLVED} is written, and the stages have changed with the corpora: start `dvc repro` again"
        )


def check_resolved() -> None:
    """Refuse to run a stage on settings that DVC doesn't know of: `dvc.lock` would not be true.

    Raises:
        ValueError: `params.yaml` or a preset isn't valid, or has changed since the stage `params` ran; or what
            `check_names` raises, also of files that were not there then.
    """
    config = load_config()
    check_names(config)
    if _read(RESOLVED) != _resolved(config):
        raise ValueError(f"{RESOLVED} is older than params.yaml or a preset: run `dvc repro params` first")


def check_links(config: Config) -> None:
    """Refuse linked folders inside media that DVC is to notice by their bytes: it doesn't look into them.

    Links to single files, and `media` itself as a link, are followed.

    Raises:
        ValueError: a corpus has such a folder.
    """
    for name, corpus in config.corpora.items():
        linked = next(linked_folders(Path(corpus.media)), None) if corpus.track == "content" else None
        if linked is not None:
            raise ValueError(
                f"{corpus.media}/{linked} is a link to a folder, in which DVC notices no change: set "
                f"corpora.{name}.track to listing, or make {corpus.media} itself the link"
            )


def _resolved(config: Config) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    trained = {name: corpus for name, corpus in tree["corpora"].items() if corpus["role"] != "unseen"}
    return {GRAPH: _graph(config), TRAINED: trained, **tree}


def _graph(config: Config) -> dict[str, Any]:
    """What `dvc.yaml` makes stages for: StampScenes, clip art, unseen clips, corpora to be listed, every corpus.

    `scored` is the directory of all test clips: those of the role `unseen` lie beside those of `finetuning`.
    `drawings` is what training clips take drawings from: the package of clip art, or else a directory without any.

    Raises:
        ValueError: a corpus is to be listed that a stage composes.
    """
    composed = [name for name, corpus in config.corpora.items() if is_composed(corpus)]
    unseen = any(is_unseen(corpus) for corpus in config.corpora.values())
    drawn = shows_drawings(config)
    roles = {corpus.role for corpus in config.corpora.values()}
    listed = [name for name, corpus in config.corpora.items() if corpus.track == "listing"]
    for name in listed:
        if name in composed:
            raise ValueError(f"corpora.{name}.track is listing, but DVC makes StampScenes and hashes it in any case")
    corpora = {}
    for name, corpus in config.corpora.items():
        media = listing_file(name).as_posix() if name in listed else corpus.media
        annotations = media if corpus.adapter == SHARDS_ADAPTER else corpus.annotations
        corpora[name] = {"role": corpus.role, "annotations": annotations, "media": media}
    return {
        "composed": [compose.DESTINATION.name] if composed else [],
        "clipart": [fetch.CLIPART.name] if drawn or unseen else [],
        "drawings": (fetch.CLIPART if drawn else fetch.STAMPS).destination.as_posix(),
        "unseen": [compose.UNSEEN_DESTINATION.name] if unseen else [],
        "listed": listed,
        "corpora": corpora,
        "scored": (CLIPS if "unseen" in roles else CLIPS / "finetuning").as_posix(),
    }


def is_composed(corpus: CorpusConfig) -> bool:
    """Whether a corpus is StampScenes, which the stage `corpus` makes, or of its unseen clips."""
    return _is_in(corpus, compose.DESTINATION) or is_unseen(corpus)


def shows_drawings(config: Config) -> bool:
    """Whether training clips of StampScenes show drawings of the package of clip art."""
    return bool(config.stampscenes.training_pictures) and any(map(is_composed, config.corpora.values()))


def is_unseen(corpus: CorpusConfig) -> bool:
    """Whether a corpus is of the unseen clips of StampScenes, which the stage `unseen` makes."""
    return _is_in(corpus, compose.UNSEEN_DESTINATION)


def _is_in(corpus: CorpusConfig, directory: Path) -> bool:
    return any(Path(place).is_relative_to(directory) for place in (corpus.annotations, corpus.media))


def _read(path: Path) -> Any:
    """The content of the file; None where there is none, or one that can't be read."""
    try:
        return read_yaml(path)
    except (FileNotFoundError, ValueError):
        return None
