"""The sentences of a rehearsal."""

import pytest

from clip4vla.config import load_config
from clip4vla.rehearsal import report
from clip4vla.rehearsal.extrapolate import Estimate
from clip4vla.rehearsal.report import disk_notes, memory_notes
from clip4vla.training.memory import StateBytes, StepMemory, TrainingCost
from clip4vla.utils.numbers import format_duration
from tests.project import REPOSITORY

SIZES = {"": 9_000_000, ".dvc": 4_000_000, "mlruns": 1_000_000}


def test_memory_is_that_of_the_real_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateBytes(4_000_000, 4_000_000, 8_000_000, 1_000_000, 4_000_000, 1_000_000)
    memory = StepMemory(state, 12, lambda clips, recomputed: clips * (1_000_000_000 - 70_000_000 * recomputed))
    monkeypatch.setattr(report, "cost_of", lambda *_: TrainingCost(memory, 1, comparing=True))
    config = load_config(REPOSITORY / "params.yaml", "msrvtt-1ka")
    roomy, tight = (
        config.model_copy(update={"trainer": config.trainer.model_copy(update={"memory_gb": gb})}) for gb in (50.0, 2.0)
    )
    *trainings, checkpoint = memory_notes(roomy, ranks=2)
    assert [note.partition(",")[0] for note in trainings] == ["pretraining", "retrieval", "captioning"]
    assert "on 2 ranks: memory: about 4" in trainings[0]
    assert "micro-batches of 32, 0 of 12 blocks recomputed" in trainings[0]
    assert "takes about 12 MB; 2 are kept" in checkpoint
    assert (
        "pretraining, with its whole batch on 2 ranks: would not begin here: a micro-batch of 32"
        in (memory_notes(tight, ranks=2)[0])
    )


def test_disk_is_twice_the_outputs_unless_dvc_links(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates = [Estimate("clips@a", 1.0, 1.0, 10.0, 5e9), Estimate("pretrain", 1.0, 1.0, 10.0, 1e9)]
    monkeypatch.setattr(report, "dvc_links", lambda: False)
    took, real = disk_notes(SIZES, estimates)
    assert took == (
        "The scratch project takes 9.0 MB, of which DVC's copies of the outputs 4.0 MB and MLflow's models 1.0 MB."
    )
    assert real == "With DVC's copies the outputs of the real corpora take 12 GB, besides MLflow's."
    monkeypatch.setattr(report, "dvc_links", lambda: True)
    assert disk_notes(SIZES, estimates) == [took]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (45, "45 s"), (150, "2.5 min"), (7200, "2.0 h"), (1e6, "12 days"), (1e9, "32 years")],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
