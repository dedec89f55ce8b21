"""The tables and sentences of a rehearsal: what it took, what the real corpora will take, what that assumes."""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from clip4vla.config import Config
from clip4vla.pipeline.doctor import dvc_links
from clip4vla.pipeline.params import is_composed
from clip4vla.rehearsal.extrapolate import Estimate, Rehearsed, training_section
from clip4vla.rehearsal.published import published_corpora
from clip4vla.reports.tables import MISSING, Table
from clip4vla.tracking.provenance import hardware
from clip4vla.training.memory import cost_of, plan_of
from clip4vla.training.spec import TrainingName
from clip4vla.utils.numbers import format_count, format_duration, format_size

MORE_CLIPS = 4
"""Clips of a split that the second run of the data stages and evaluations has more than the first."""
TRAININGS: tuple[TrainingName, ...] = get_args(TrainingName)


def measured_table(rehearsed: Rehearsed) -> Table:
    """What each stage took."""
    rows = [
        [figures.stage, format_duration(figures.seconds), format_size(figures.memory), format_size(figures.disk)]
        for figures in rehearsed.stages.values()
    ]
    total = sum(figures.seconds for figures in rehearsed.stages.values())
    peak = max(figures.memory for figures in rehearsed.stages.values())
    disk = sum(figures.disk for figures in rehearsed.stages.values())
    rows.append(["all", format_duration(total), format_size(peak), format_size(disk)])
    return Table("measured", ["stage", "time", "peak memory", "outputs"], rows)


def estimate_table(estimates: Sequence[Estimate]) -> Table:
    """What each stage would take with the real corpora."""
    rows = [
        [
            estimate.stage,
            format_duration(estimate.fixed_s),
            MISSING if estimate.clip_s is None else f"{estimate.clip_s:.3g} s",
            MISSING if estimate.clips is None else format_count(round(estimate.clips)),
            "not known" if estimate.seconds is None else format_duration(estimate.seconds),
            "not known" if estimate.disk is None else format_size(estimate.disk),
        ]
        for estimate in estimates
    ]
    seconds, disk = total_seconds(estimates), total_disk(estimates)
    rows.append(
        [
            *("all", "", "", ""),
            "not known" if seconds is None else format_duration(seconds),
            "not known" if disk is None else format_size(disk),
        ]
    )
    return Table(
        "extrapolated to the real corpora", ["stage", "other", "by clip", "clips x epochs", "time", "outputs"], rows
    )


def total_seconds(estimates: Sequence[Estimate]) -> float | None:
    """Seconds of all stages, one after the other; None where one isn't known."""
    known = [estimate.seconds for estimate in estimates if estimate.seconds is not None]
    return sum(known) if len(known) == len(estimates) else None


def total_disk(estimates: Sequence[Estimate]) -> float | None:
    """Bytes of all outputs; None where one isn't known."""
    known = [estimate.disk for estimate in estimates if estimate.disk is not None]
    return sum(known) if len(known) == len(estimates) else None


def memory_notes(config: Config, ranks: int) -> list[str]:
    """Memory of each training at its real micro-batch, which so few clips don't fill, and of its checkpoints."""
    notes, checkpoint, on_gpu = [], 0, torch.cuda.is_available()
    for name in TRAININGS:
        section = training_section(config, name)
        token = "sample" if name == "pretraining" else config.model.audio_token
        cost = cost_of(section, config.model_of(name), config.audio, token, config.trainer, on_gpu, ranks)
        checkpoint = max(checkpoint, cost.checkpoint_bytes)
        try:
            _, how = plan_of(cost, section, config.trainer, on_gpu, ranks, f"{name}.micro_batch_size")
        except ValueError as error:
            how = f"would not begin here: {error}"
        notes.append(f"{name}, with its whole batch on {ranks} ranks: {how}.")
    kept = config.trainer.keep_checkpoints
    size = format_size(checkpoint)
    return [
        *notes,
        f"A checkpoint during a training, which one step doesn't write, takes about {size}; {kept} are kept.",
    ]


def disk_notes(sizes: Mapping[str, int], estimates: Sequence[Estimate]) -> list[str]:
    """What the scratch project takes, by its directories ("" is all of it), and what the real one will."""
    took = (
        f"The scratch project takes {format_size(sizes[''])}, of which DVC's copies of the outputs "
        f"{format_size(sizes['.dvc'])} and MLflow's models {format_size(sizes['mlruns'])}."
    )
    disk = total_disk(estimates)
    if disk is None or dvc_links():
        return [took]
    return [took, f"With DVC's copies the outputs of the real corpora take {format_size(2 * disk)}, besides MLflow's."]


def assumptions(rehearsed: Rehearsed, estimates: Sequence[Estimate]) -> list[str]:
    """What the estimates assume, and what isn't known."""
    where = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "a CPU"
    published = published_corpora()
    sources = [
        f"{name}: {published[corpus.adapter].source}"
        for name, corpus in rehearsed.wanted.corpora.items()
        if corpus.adapter in published and not is_composed(corpus)
    ]
    unmeasured = [e.stage for e in estimates if e.clip_s is None and e.clips is not None]
    disturbed = [
        f"Of {', '.join(unmeasured)} the second run was not the longer one: other work disturbed them, and what a clip "
        "costs isn't known. finetune and ablate then lack the scoring of clips. Rehearse again on a quiet machine."
    ]
    return [
        *(disturbed if unmeasured else []),
        f"Numbers of clips: {'; '.join(sources)}." if sources else "Numbers of clips: those of params.yaml.",
        f"The estimates are of this machine, {hardware()}, trained on {where} with {rehearsed.ranks} ranks. A clip of "
        "a training costs what it did in its one step, the slow first one; a third more where a batch takes several "
        "micro-batches. Full micro-batches are faster on a GPU.",
        f"A clip of the stage clips and of an evaluation costs what {MORE_CLIPS} more cost in a second run; of the "
        f"stage clips divided by {rehearsed.workers} processes. A pretrained model is evaluated as that of retrieval.",
        "`other` is the start of a stage's programs and, of finetune and ablate, the scoring of val and test clips. "
        "Both are differences of times: beside other work on this machine they are no figures.",
        "Taken as fixed: the clips of StampScenes, manifests, hashing of the media, checkpoints, bootstraps and "
        "promotions, which all grow a little with a corpus.",
    ]
