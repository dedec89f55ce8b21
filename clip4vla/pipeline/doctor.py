"""`clip4vla doctor`: what the chosen parameters need and this machine lacks, before anything runs.

In: `params.yaml` and its presets. Out: a `Check` for each need. Nothing is decoded, downloaded or written.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import torch

from clip4vla.config import (
    ClipsConfig,
    Config,
    Role,
    StampScenesConfig,
    TrainerConfig,
    TrainingConfig,
    load_config,
)
from clip4vla.corpora.base import read_corpus
from clip4vla.corpora.media_index import walk_files
from clip4vla.corpora.stampscenes import compose, fetch
from clip4vla.model.towers import find_weights
from clip4vla.pipeline.names import check_names
from clip4vla.pipeline.params import is_composed, is_unseen, shows_drawings
from clip4vla.pipeline.project import clips_directory
from clip4vla.records import SPLITS, SourceRecord, Split
from clip4vla.training.launch import ranks_here
from clip4vla.training.memory import TrainingCost, cost_of, plan_of
from clip4vla.training.spec import TrainingName
from clip4vla.utils.http import answers
from clip4vla.utils.machine import free_disk
from clip4vla.utils.numbers import format_size

READ = 100_000
"""Most entries of a corpus that are read; a larger one takes more disk space than is said."""
BYTES_PER_PIXEL, ASPECT = 0.33, 16 / 9
"""Of a stored frame."""
SOUND_BYTES_PER_S = 16_000 * 2 * 2
"""16 kHz, 16 bits, two channels."""
CPU_FLOPS = 50e9
"""FLOP/s of a core in training, roughly."""
LONGEST_STEP_S = 300.0
"""A step that takes longer needs a GPU."""


@dataclass(frozen=True)
class Check:
    """One need."""

    what: str
    missing: str = ""
    """What is missing of it; empty where nothing is."""
    advice: str = ""
    """A sentence on what to do about it."""

    def line(self) -> str:
        """For a person."""
        if not self.missing:
            return f"ok       {self.what}"
        return f"MISSING  {self.what}: {self.missing}. {self.advice}"


def examine() -> list[Check]:
    """Every check of the project in the working directory.

    Raises:
        ValueError: `params.yaml` or a preset is not valid, or what `check_names` raises.
    """
    config = load_config()
    check_names(config)
    records: dict[str, list[SourceRecord]] = {}
    checks = list(_corpora(config, records))
    checks += _splits(config, records)
    checks += _evaluation_files(config)
    checks.append(_disk(config, records))
    checks += _packages(config)
    checks.append(_weights(config))
    for name in ("pretraining", "retrieval", "captioning"):
        checks += _training(config, name)
    checks.append(_java())
    return checks


def _corpora(config: Config, records: dict[str, list[SourceRecord]]) -> Iterator[Check]:
    """Annotations and media of every corpus; its first READ records are put into `records`."""
    if any(is_composed(corpus) for corpus in config.corpora.values()):
        yield _package("StampScenes' package", fetch.STAMPS, config.stampscenes.package)
    if shows_drawings(config) or any(is_unseen(corpus) for corpus in config.corpora.values()):
        yield _package("package of clip art", fetch.CLIPART, config.stampscenes.clipart_package)
    for name, corpus in config.corpora.items():
        if is_composed(corpus):
            continue
        what = f"corpus {name}"
        if not Path(corpus.annotations).is_dir():
            advice = f"Put the published files of {corpus.adapter} there (docs/data.md)."
            yield Check(what, f"there is no directory of annotations {corpus.annotations}", advice)
            continue
        try:
            entries = list(islice(read_corpus(corpus), READ))
        except (ValueError, OSError) as error:
            reason = " ".join(str(error).split())
            yield Check(what, reason, f"Bring the published files of {corpus.adapter} (docs/data.md).")
            continue
        records[name] = [entry for entry in entries if isinstance(entry, SourceRecord)]
        found = sum(1 for _ in islice(walk_files(Path(corpus.media)), READ)) if Path(corpus.media).is_dir() else 0
        if not found:
            yield Check(what, f"there are no files in {corpus.media}", "Put its media there, in any folders.")
            continue
        more = "or more " if len(entries) == READ else ""
        yield Check(f"{what}: {len(records[name]):,} {more}clips in its annotations, {found:,} files in {corpus.media}")


def _package(what: str, package: fetch.DebianPackage, source: str | None) -> Check:
    if (package.destination / fetch.PACKAGE_FILE).is_file():
        return Check(f"{what}: {package.destination}")
    if source is not None and not Path(source).is_file():
        return Check(what, f"{package.setting} names {source}, which is no file", package.advice)
    if source is None and shutil.which("apt-get") is None:
        return Check(what, "there is no apt-get to download it", package.advice)
    return Check(f"{what}: {source or f'apt-get downloads it, {package.megabytes} MB'}")


def _splits(config: Config, records: dict[str, list[SourceRecord]]) -> Iterator[Check]:
    """Every split that a role needs, where all corpora of the role could be read."""
    needed: dict[Role, tuple[Split, ...]] = {"pretraining": ("train",), "finetuning": SPLITS}
    if any(corpus.role == "unseen" for corpus in config.corpora.values()):
        needed["unseen"] = ("test",)
    for role, splits in needed.items():
        corpora = [name for name, corpus in config.corpora.items() if corpus.role == role]
        if not all(name in records for name in corpora):
            continue
        counts = Counter(record.split for name in corpora for record in records[name])
        for split in splits:
            if not counts[split]:
                advice = f"List some as {split} (docs/data.md says how for each corpus)."
                yield Check(f"{split} clips for {role}", f"{', '.join(corpora)} have none", advice)


def _evaluation_files(config: Config) -> Iterator[Check]:
    for key in ("labels", "queries"):
        path = getattr(config.evaluation, key)
        if path is not None and not Path(path).is_relative_to(compose.DESTINATION) and not Path(path).is_file():
            yield Check(f"evaluation.{key}", f"there is no file {path}", f"Write it, or set evaluation.{key}: null.")


def _disk(config: Config, records: dict[str, list[SourceRecord]]) -> Check:
    """Space for the clips that are not there yet, and for DVC's copy of them."""
    needed = 0.0
    for name, corpus in config.corpora.items():
        if clips_directory(config, name).is_dir():
            continue
        if is_composed(corpus):
            seconds = config.stampscenes.seconds
            needed += sum(composed_clips(config.stampscenes, corpus.role).values()) * clip_bytes(config.clips, seconds)
        needed += sum(clip_bytes(config.clips, _seconds(record)) for record in records.get(name, ()))
    unread = [name for name, corpus in config.corpora.items() if name not in records and not is_composed(corpus)]
    copies = 1 if dvc_links() else 2
    needed, free = needed * copies, free_disk(Path("data"))
    what = (
        f"disk space: about {format_size(needed)} for clips{' and a copy in the cache of DVC' if copies == 2 else ''}"
    )
    what += f", without {', '.join(unread)}" if unread else ""
    if needed <= free:
        return Check(f"{what}, {format_size(free)} free")
    advice = "Free some, lower clips.frames or clips.size, or have DVC link: `dvc config cache.type reflink,hardlink`."
    return Check(what, f"only {format_size(free)} are free", advice)


def clip_bytes(clips: ClipsConfig, seconds: float | None) -> float:
    """Bytes of a stored clip that lasts `seconds` (None: as long as is kept), as docs/data.md estimates it."""
    kept = min(seconds or clips.max_seconds, clips.max_seconds)
    return clips.frames * BYTES_PER_PIXEL * clips.size**2 * ASPECT + kept * SOUND_BYTES_PER_S + 1000


def _seconds(record: SourceRecord) -> float | None:
    return None if record.end_s is None else record.end_s - record.start_s


def composed_clips(config: StampScenesConfig, role: Role) -> dict[Split, float]:
    """Clips of StampScenes of each split, of one role."""
    if role == "pretraining":
        return {"train": config.pretraining_clips}
    if role == "unseen":  # at most: not every picture has another
        return {"test": config.caption_pairs["test"] * config.pictures_per_pair["test"] * (1 + config.unrelated_sound)}
    others = 1 + config.unrelated_sound + config.no_sound
    return {split: config.caption_pairs[split] * config.pictures_per_pair[split] * others for split in SPLITS}


def dvc_links() -> bool:
    """Whether this project's DVC links data from its cache instead of copying them."""
    settings = ConfigParser(interpolation=None)
    settings.read([Path(".dvc/config"), Path(".dvc/config.local")], encoding="utf-8")
    return "link" in settings.get("cache", "type", fallback="")


def _packages(config: Config) -> Iterator[Check]:
    wanted = [("silero_vad", "speech", "clips.verbal_above")] if config.clips.verbal_above is not None else []
    wanted += [("distributed", "dask", "clips.dask")] if config.clips.dask is not None else []
    unseen = any(is_unseen(corpus) for corpus in config.corpora.values())
    if unseen or any(config.stampscenes.further_renderings):
        key = "corpora of unseen clips" if unseen else "further voices, sounds and pictures of stampscenes"
        wanted += [(module, "stampscenes", key) for module in ("espeakng_loader", "pedalboard", "resvg_py")]
    for module, extra, key in wanted:
        if find_spec(module) is None:
            advice = f"Install it: `pip install '.[{extra}]' -c constraints.txt`."
            yield Check(f"package for {key}", f"{module} is not installed", advice)


def _weights(config: Config) -> Check:
    model = config.model
    if model.weights is None:
        return Check("weights: none, training starts from scratch")
    what = f"weights {model.weights!r} of {model.architecture}"
    try:
        found = find_weights(model.architecture, model.weights)
    except ValueError as error:
        return Check(what, str(error), "Name a file or one of these tags as model.weights.")
    if isinstance(found, Path):
        return Check(f"{what}: {found}")
    if answers(found):
        return Check(f"{what}: will be downloaded from {found}")
    return Check(what, f"{found} can't be reached", "Bring the checkpoint here and name its path as model.weights.")


def _training(config: Config, name: TrainingName) -> Iterator[Check]:
    """Memory for the micro-batch, time of a step, and whether ranks can share the batch."""
    training = config.pretraining if name == "pretraining" else config.task(name)
    token = "sample" if name == "pretraining" else config.model.audio_token
    ranks = ranks_here(config.trainer)
    if training.batch_size % ranks:
        advice = f"Choose a multiple of {ranks}, or set trainer.ranks."
        yield Check(f"{name}.batch_size {training.batch_size}", f"{ranks} ranks can't share it equally", advice)
    try:
        on_gpu = torch.cuda.is_available()
        cost = cost_of(training, config.model_of(name), config.audio, token, config.trainer, on_gpu, ranks)
    except ValueError as error:
        yield Check(f"model of {name}", str(error), "Name another model.architecture.")
        return
    yield _memory(name, cost, training, config.trainer, on_gpu, ranks)
    if not on_gpu:
        yield _speed(name, cost, training.batch_size)


def _memory(
    name: TrainingName, cost: TrainingCost, training: TrainingConfig, trainer: TrainerConfig, on_gpu: bool, ranks: int
) -> Check:
    try:
        _, how = plan_of(cost, training, trainer, on_gpu, ranks, f"{name}.micro_batch_size")
    except ValueError as error:
        return Check(f"memory of {name}", str(error), "Training would stop before its first step.")
    return Check(f"{name}: {how}")


def _speed(name: TrainingName, cost: TrainingCost, batch: int) -> Check:
    cores = len(os.sched_getaffinity(0))
    seconds = cost.clip_flops * batch / (CPU_FLOPS * cores)
    what = f"a step of {name}: about {seconds:,.0f} s on {cores} cores"
    if seconds <= LONGEST_STEP_S:
        return Check(what)
    return Check(what, "there is no GPU", "Train on a machine with GPUs, or choose a smaller batch or model.")


def _java() -> Check:
    if shutil.which("java"):
        return Check("Java, for the published tokenizer of captions and METEOR")
    advice = "Install a runtime (`apt-get install default-jre-headless`); without it METEOR is left out."
    return Check("Java", "captions are scored with a simpler tokenizer than published figures", advice)


def report(checks: Iterable[Check]) -> bool:
    """Print a line for each check; whether nothing is missing."""
    found = list(checks)
    for check in found:
        print(check.line())
    missing = sum(bool(check.missing) for check in found)
    print(f"{missing} of {len(found)} needs are missing" if missing else "nothing is missing")
    return not missing
