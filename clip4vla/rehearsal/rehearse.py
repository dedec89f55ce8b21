"""`clip4vla rehearse`: a scratch project is made, its graph is run and measured, and what the real corpora will take.

Out: a line for each stage, two tables, and sentences on what was assumed; `rehearsal.json` in the scratch project has
the same figures. Nothing of the project that is rehearsed changes.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NoReturn, get_args

from rich.console import Console

from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import Config
from clip4vla.pipeline.doctor import composed_clips
from clip4vla.pipeline.params import is_composed
from clip4vla.pipeline.project import RUNS, clips_directory
from clip4vla.records import SPLITS, TASKS, Split
from clip4vla.rehearsal.extrapolate import Counts, Estimate, Rehearsed, extrapolate, training_section
from clip4vla.rehearsal.measure import StageFigures, directory_bytes, reproduce
from clip4vla.rehearsal.published import published_corpora
from clip4vla.rehearsal.report import (
    MORE_CLIPS,
    assumptions,
    disk_notes,
    estimate_table,
    measured_table,
    memory_notes,
    total_seconds,
)
from clip4vla.rehearsal.scratch import ScratchProject, make_scratch_project
from clip4vla.reports.tables import to_terminal
from clip4vla.tracking.provenance import hardware
from clip4vla.training.launch import ranks_here
from clip4vla.training.spec import TrainingName, read_run
from clip4vla.utils.files import write_json
from clip4vla.utils.numbers import format_duration, format_size

RESULT = "rehearsal.json"
LOG_WIDTH = 110
"""Characters of a line of a table in a file."""
TRAININGS: tuple[TrainingName, ...] = get_args(TrainingName)


def rehearse(presets: Sequence[str], keep: Path | None = None, clips: int | None = None) -> None:
    """Run the graph of the project in the working directory on made clips, and print what it took and will take.

    Args:
        presets: in place of those that `params.yaml` names; empty: those.
        keep: an empty or new directory for the scratch project; None: one that is removed.
        clips: training clips of each corpus; None: as few as make a step.

    Raises:
        ValueError: see `make_scratch_project`; or `keep` has something in it.
        StageFailedError: a stage failed.
    """
    with _scratch_directory(keep) as root:
        print("making clips, annotations and weights", flush=True)
        scratch = make_scratch_project(Path(), root, presets, clips)
        rehearsed = _run(scratch)
        estimates = extrapolate(rehearsed)
        sizes = {name: directory_bytes(root / name) for name in ("", ".dvc", "mlruns")}
        notes = [*scratch.notes, *memory_notes(scratch.wanted, rehearsed.ranks), *disk_notes(sizes, estimates)]
        notes += assumptions(rehearsed, estimates)
        write_json(root / RESULT, _figures(scratch, rehearsed, estimates, notes))
        console = Console()
        if not console.is_terminal:
            console.width = LOG_WIDTH
        for table in (measured_table(rehearsed), estimate_table(estimates)):
            console.print(to_terminal(table))
        print("\n".join(notes))
        print(f"everything ran: {', '.join(scratch.wanted.preset)}")
        if keep is not None:
            print(f"the project, its log and {RESULT} are in {keep}")


@contextmanager
def _scratch_directory(keep: Path | None) -> Iterator[Path]:
    """A directory that goes when the block ends, also by SIGTERM, unless it is to be kept."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise ValueError(f"--keep names {keep}, where there is something already: name a new directory")
    before = signal.signal(signal.SIGTERM, stop)
    try:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            yield keep.resolve()
        else:
            with tempfile.TemporaryDirectory(prefix="clip4vla-rehearsal-", ignore_cleanup_errors=True) as directory:
                yield Path(directory).resolve()
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(scratch: ScratchProject) -> Rehearsed:
    """Run the graph, then with more clips the stages whose cost by clip can't be known from one run."""
    stages = {figures.stage: figures for figures in reproduce(scratch.root, [], _print_line)}
    made, trained = count_clips(scratch), _read_trainings(scratch)
    enlarged = {split: number + MORE_CLIPS * (split != "val") for split, number in scratch.counts.items()}
    print(f"again with {MORE_CLIPS} clips more", flush=True)
    names = scratch.make_corpora(enlarged)
    targets = [f"{stage}@{name}" for name in names for stage in ("listing", "manifest", "clips")]
    if any(scratch.config.corpora[name].role == "finetuning" for name in names):
        targets += [f"evaluate@{task}" for task in TASKS]
    again: dict[str, StageFigures] = {}
    for target in (target for target in targets if target in stages):
        again |= {found.stage: found for found in reproduce(scratch.root, ["--single-item", target], _print_line)}
    wanted = scratch.wanted
    return Rehearsed(
        wanted=wanted,
        stages=stages,
        again=again,
        made=made,
        made_again=count_clips(scratch),
        real={name: real_clips(wanted, name) for name in wanted.corpora},
        trained=trained,
        ranks=ranks_here(wanted.trainer),
        workers=wanted.clips.workers or os.cpu_count() or 1,
    )


def _print_line(figures: StageFigures) -> None:
    print(
        f"{figures.stage}: {format_duration(figures.seconds)}, {format_size(figures.memory)} of memory, "
        f"{format_size(figures.disk)} written",
        flush=True,
    )


def count_clips(scratch: ScratchProject) -> dict[str, Counts]:
    """Clips that there are of each corpus and split."""
    counts: dict[str, Counts] = {}
    for name in scratch.config.corpora:
        directory = scratch.root / clips_directory(scratch.config, name)
        found: dict[Split, Path] = {split: directory / f"{split}.lance" for split in SPLITS}
        counts[name] = {split: len(ClipDataset([path])) for split, path in found.items() if path.is_dir()}
    return counts


def real_clips(config: Config, name: str) -> Counts | None:
    """Clips of a corpus as published, or as the parameters of StampScenes have them; None where that isn't known."""
    corpus = config.corpora[name]
    if is_composed(corpus):
        return composed_clips(config.stampscenes, corpus.role)
    published = published_corpora().get(corpus.adapter)
    return None if published is None else published.clips


def _read_trainings(scratch: ScratchProject) -> dict[str, tuple[int, float]]:
    """Clips that each training went through, and how many a second."""
    config, ranks = scratch.config, ranks_here(scratch.config.trainer)
    [arm] = config.ablation.arms
    places: list[tuple[str, TrainingName, str]] = [(name, name, name) for name in TRAININGS]
    found = {}
    for name, training, place in [*places, ("ablation", "retrieval", f"ablation/{arm}")]:
        section = training_section(config, training)
        role = "pretraining" if training == "pretraining" else "finetuning"
        paths = [scratch.root / clips_directory(config, n) for n, c in config.corpora.items() if c.role == role]
        clips = sum(len(ClipDataset([path / "train.lance"])) for path in paths if (path / "train.lance").is_dir())
        batch = min(section.batch_size, clips) // ranks * ranks
        metrics = read_run(scratch.root / RUNS / place)["metrics"]
        found[name] = (clips // batch * batch, float(metrics["clips_per_second"]))
    return found


def _figures(
    scratch: ScratchProject, rehearsed: Rehearsed, estimates: Sequence[Estimate], notes: Sequence[str]
) -> Mapping[str, object]:
    return {
        "presets": list(scratch.wanted.preset),
        "hardware": hardware(),
        "made_clips": rehearsed.made,
        "made_clips_again": rehearsed.made_again,
        "real_clips": rehearsed.real,
        "measured": [asdict(figures) for figures in rehearsed.stages.values()],
        "measured_again": [asdict(figures) for figures in rehearsed.again.values()],
        "trainings": {name: {"clips": n, "clips_per_second": s} for name, (n, s) in rehearsed.trained.items()},
        "extrapolated": [asdict(estimate) | {"seconds": estimate.seconds} for estimate in estimates],
        "extrapolated_seconds": total_seconds(estimates),
        "notes": list(notes),
    }
