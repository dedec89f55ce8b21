"""Extrapolation: fixed costs, costs by clip, and what isn't known."""

from dataclasses import replace

import pytest

from clip4vla.config import Config, load_config
from clip4vla.rehearsal.extrapolate import Estimate, Rehearsed, extrapolate
from clip4vla.rehearsal.measure import StageFigures
from clip4vla.rehearsal.report import assumptions, estimate_table, measured_table, total_disk, total_seconds
from tests.project import REPOSITORY

STAGES = {
    **{"manifest@msrvtt": 3.0, "clips@stampscenes-pretraining": 4.0, "clips@msrvtt": 10.0, "pretrain": 30.0},
    **{"finetune@retrieval": 40.0, "finetune@captioning": 60.0, "ablate": 50.0},
    **{"evaluate@pretraining": 20.0, "evaluate@retrieval": 22.0, "evaluate@captioning": 33.0},
}


def figures(stages: dict[str, float], disk: int = 1000) -> dict[str, StageFigures]:
    return {stage: StageFigures(stage, seconds, 5_000_000_000, disk) for stage, seconds in stages.items()}


@pytest.fixture
def config() -> Config:
    config = load_config(REPOSITORY / "params.yaml", "msrvtt-1ka")
    retrieval = config.retrieval.model_copy(update={"epochs": 10, "batch_size": 128, "micro_batch_size": 32})
    pretraining = config.pretraining.model_copy(update={"epochs": 2, "batch_size": 64, "micro_batch_size": 32})
    ablation = config.ablation.model_copy(update={"epochs": 3})
    return config.model_copy(update={"retrieval": retrieval, "pretraining": pretraining, "ablation": ablation})


@pytest.fixture
def rehearsed(config: Config) -> Rehearsed:
    few = {"train": 2, "val": 2, "test": 2}
    return Rehearsed(
        wanted=config,
        stages=figures(STAGES),
        again=figures({"clips@msrvtt": 14.0, "evaluate@retrieval": 30.0, "evaluate@captioning": 35.0}, disk=9000),
        made={"stampscenes-pretraining": {"train": 2}, "msrvtt": few},
        made_again={"stampscenes-pretraining": {"train": 2}, "msrvtt": few | {"train": 6, "test": 6}},
        real={"stampscenes-pretraining": {"train": 4000}, "msrvtt": {"train": 8500, "val": 500, "test": 1000}},
        trained={"pretraining": (2, 0.1), "retrieval": (2, 0.2), "captioning": (2, 0.2), "ablation": (2, 0.5)},
        ranks=2,
        workers=4,
    )


@pytest.fixture
def estimates(rehearsed: Rehearsed) -> dict[str, Estimate]:
    return {estimate.stage: estimate for estimate in extrapolate(rehearsed)}


def test_clips_and_evaluations_cost_what_more_clips_cost(estimates: dict[str, Estimate]) -> None:
    clips = estimates["clips@msrvtt"]  # 8 clips more took 4 s and 8000 bytes more, by one process
    assert (clips.fixed_s, clips.clip_s, clips.clips) == (10 - 6 * 0.5, 0.5 / 4, 10_000)
    assert clips.seconds == pytest.approx(7 + 1250)
    assert clips.disk == 1000 + 1000 * (10_000 - 6)
    scores = estimates["evaluate@retrieval"]  # 4 clips more took 8 s more
    assert (scores.fixed_s, scores.clip_s, scores.seconds) == (22 - 2 * 2, 2.0, 18 + 2000)
    assert estimates["evaluate@pretraining"].clip_s == 2.0


def test_trainings_cost_their_own_speed_and_grad_cache_where_a_batch_is_in_parts(
    estimates: dict[str, Estimate],
) -> None:
    pretrain = estimates["pretrain"]  # 2 clips took 20 of its 30 s; a rank's 32 clips are one micro-batch
    assert (pretrain.fixed_s, pretrain.clip_s, pretrain.clips) == (10, 10, 8000)
    finetune = estimates["finetune@retrieval"]  # 10 of 40 s; 498 more clips of val at 2 s; 64 clips in two parts
    assert finetune.fixed_s == pytest.approx(30 + 498 * 2)
    assert finetune.clip_s == pytest.approx(5 * 4 / 3)
    assert finetune.clips == 85_000
    ablate = estimates["ablate"]  # 4 of 50 s trained, 8 s scored twice: 38 s to start each of four arms
    assert ablate.fixed_s == pytest.approx(4 * 38 + 5 * 1000 * 2)
    assert ablate.clips == 8500 * 3 * 4
    assert ablate.disk == 4000


def test_stages_without_a_cost_by_clip_stay_as_they_are(estimates: dict[str, Estimate]) -> None:
    assert estimates["manifest@msrvtt"].seconds == 3.0
    assert estimates["clips@stampscenes-pretraining"].seconds == 4.0
    assert list(estimates) == list(STAGES)


def test_a_second_run_that_was_faster_by_chance_says_nothing(rehearsed: Rehearsed) -> None:
    again = figures({"clips@msrvtt": 9.0, "evaluate@retrieval": 21.0, "evaluate@captioning": 35.0})
    disturbed = replace(rehearsed, again=again)
    found = {e.stage: e for e in extrapolate(disturbed)}
    for stage in ("clips@msrvtt", "evaluate@pretraining", "evaluate@retrieval"):
        assert found[stage].clip_s is found[stage].seconds is None
    assert found["evaluate@captioning"].seconds is not None
    assert found["finetune@retrieval"].fixed_s == 30
    assert total_seconds(list(found.values())) is None
    note, *_ = assumptions(disturbed, list(found.values()))
    assert note.startswith(
        "Of clips@msrvtt, evaluate@pretraining, evaluate@retrieval the second run was not the longer"
    )
    assert not assumptions(rehearsed, extrapolate(rehearsed))[0].startswith("Of ")


def test_test_clips_of_stampscenes_alone_are_not_scaled(rehearsed: Rehearsed) -> None:
    found = {e.stage: e for e in extrapolate(replace(rehearsed, again={}, made_again=rehearsed.made))}
    assert [found[f"evaluate@{model}"].seconds for model in ("pretraining", "retrieval", "captioning")] == [20, 22, 33]
    assert found["clips@msrvtt"].seconds == 10


def test_a_corpus_of_unknown_size_has_costs_by_clip_and_no_total(rehearsed: Rehearsed) -> None:
    found = extrapolate(replace(rehearsed, real={**rehearsed.real, "msrvtt": None}))
    by_name = {estimate.stage: estimate for estimate in found}
    assert by_name["clips@msrvtt"].clip_s == 0.125
    assert by_name["clips@msrvtt"].seconds is by_name["finetune@retrieval"].seconds is None
    assert by_name["pretrain"].seconds is not None
    assert total_seconds(found) is total_disk(found) is None
    assert estimate_table(found).rows[-1][-2:] == ["not known", "not known"]


def test_the_tables_name_every_stage_and_end_with_the_sum(rehearsed: Rehearsed) -> None:
    measured, estimated = measured_table(rehearsed), estimate_table(extrapolate(rehearsed))
    assert [row[0] for row in measured.rows] == [row[0] for row in estimated.rows] == [*STAGES, "all"]
    assert measured.rows[-1] == ["all", "4.5 min", "5.0 GB", "10 kB"]
    assert estimated.rows[2][:5] == ["clips@msrvtt", "7.0 s", "0.125 s", "10,000", "21 min"]
