"""The stages of data, `fetch` to `clips@CORPUS`: from published files to clips in Lance."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clip4vla.clips.ingest import ingest
from clip4vla.config import AudioConfig, ClipsConfig, Config, CorpusConfig, load_config
from clip4vla.corpora.base import find_adapter, read_corpus
from clip4vla.corpora.manifest import MANIFEST_FILE, write_manifest
from clip4vla.corpora.media_index import write_listing
from clip4vla.corpora.stampscenes import compose, fetch
from clip4vla.media.inspect import inspect
from clip4vla.pipeline.params import check_links
from clip4vla.pipeline.project import MANIFESTS, clips_directory, listing_file

PARAMS = Path("params.yaml")


def fetch_stamps() -> None:
    """Debian's package of stamps, downloaded or copied, with its version and SHA-256."""
    fetch.fetch(fetch.STAMPS, load_config().stampscenes.package, fetch.STAMPS.destination)


def fetch_clipart() -> None:
    """Debian's package of clip art, likewise."""
    fetch.fetch(fetch.CLIPART, load_config().stampscenes.clipart_package, fetch.CLIPART.destination)


def compose_corpus() -> None:
    """StampScenes, composed of the pictures, sounds and voices of the package, and of other ones in training clips."""
    compose.compose(fetch.STAMPS.deb, fetch.CLIPART.deb, load_config().stampscenes, compose.DESTINATION)


def compose_unseen_clips() -> None:
    """Test clips of StampScenes with other voices, sounds and pictures.

    Raises:
        ValueError: what renders them isn't installed, or a package lacks what is needed.
    """
    try:
        from clip4vla.corpora.stampscenes import unseen
    except ImportError as error:
        raise ValueError(f"{error}: install it with `pip install 'clip4vla[stampscenes]'`") from error
    unseen.compose_unseen(fetch.STAMPS.deb, fetch.CLIPART.deb, load_config().stampscenes, compose.UNSEEN_DESTINATION)


def write_corpus_listing(name: str) -> None:
    """Path, size and time of every media file of a corpus with `track: listing`, on which DVC depends in their place.

    Raises:
        ValueError: there is no such corpus, or no directory of its media.
    """
    count = write_listing(Path(_corpus(load_config(), name).media), listing_file(name))
    print(f"{name}: {count:,} files listed")


def write_corpus_manifest(name: str) -> None:
    """The accepted records of a corpus, and the rejected ones with reasons.

    Raises:
        ValueError: there is no such corpus, its files aren't in the published format, too many are rejected, or DVC
            would not notice a change of its media.
    """
    config = load_config()
    check_links(config)
    corpus = _corpus(config, name)
    summary = write_manifest(read_corpus(corpus), Path(corpus.media), MANIFESTS / name)
    summary.check(config.clips.max_reject_fraction)
    print(f"{name}: {summary.summary()}")


def write_any_manifest(adapter: str, annotations: Path, media: Path, out: Path) -> None:
    """The manifest of files that params.yaml does not list, to look at what is accepted and rejected.

    Raises:
        ValueError: there is no such adapter or directory, or the files aren't in the published format.
    """
    summary = write_manifest(find_adapter(adapter)(annotations), media, out)
    print(f"{adapter}: {summary.summary()}")


def inspect_files(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """What the stage `clips` would make of each file, by the settings of params.yaml or, without it, the defaults."""
    config = load_config() if PARAMS.is_file() else None
    clips = config.clips if config else ClipsConfig(frames=12, size=256)
    audio = config.audio if config else AudioConfig()
    for file in files:
        yield asdict(
            inspect(
                file,
                frames=clips.frames,
                short_side=clips.size,
                sample_rate=audio.sample_rate,
                limits=clips.limits,
            )
        )


def ingest_corpus(name: str) -> None:
    """Frames, sound and sentences of every clip of a corpus, in Lance.

    Raises:
        ValueError: there is no such corpus, or too many clips are rejected.
    """
    config = load_config()
    corpus = _corpus(config, name)
    manifest = MANIFESTS / name / MANIFEST_FILE
    summary = ingest(manifest, Path(corpus.media), clips_directory(config, name), config.clips, config.audio)
    print(f"{name}: {summary.summary()}")


def _corpus(config: Config, name: str) -> CorpusConfig:
    if name not in config.corpora:
        raise ValueError(f"params.yaml has no corpus {name!r}; it has {', '.join(config.corpora)}")
    return config.corpora[name]
