"""Stages and flow `evaluate`: the benchmark of the pretrained model and of each task's on the test clips.

Out: `runs/evaluate/RUN/` with `scores.json`, results per query or clip, figures or captions, and `report.html`;
`metrics/{pretrain,retrieval,captioning}.json`.
"""

from functools import partial
from typing import Literal

from prefect import flow

from clip4vla import pages
from clip4vla.atomic import write_json
from clip4vla.clips.loader import ClipStore
from clip4vla.evaluation.figures import retrieval_figure, save, similarity_figure
from clip4vla.evaluation.report import retrieval_page
from clip4vla.evaluation.scores import Scores
from clip4vla.params import Params, load_params
from clip4vla.tracking import Run, open_tracker
from clip4vla.training.job import read_run
from flows.captioning import (
    CAPTIONS_FILE,
    caption_page,
    caption_table,
    judge_captions,
    read_slots,
    write_captions,
)
from flows.stage import Stage
from flows.tasks import name_on_command_line
from flows.training import METRICS, ROOT, RUNS, find_clips, judge, log_scores, run_link, score_table

OUT = RUNS / "evaluate"
SHOWN = 100
"""Clips in the similarity figure."""


def benchmark_retrieval(name: str, metrics: str) -> None:
    """Score a run result at retrieval, draw figures, write a report, and add all to the run that trained the model."""
    params = load_params()
    gallery, scores = judge(params, RUNS / name, "test", getattr(params, name), params.model.audio_token)
    trained = read_run(RUNS / name)
    scores.write(OUT / name)
    log_scores(scores, trained["run_id"], "test", name)
    first = [gallery.caption_clips.index(clip_id) for clip_id in gallery.clip_ids[:SHOWN]]
    similarity = gallery.similarity("both")[first, :SHOWN]
    with open_tracker(ROOT).start(name, name, {}, run_id=trained["run_id"]) as run:
        for title, figure in (("retrieval", retrieval_figure(scores)), ("similarity", similarity_figure(similarity))):
            save(figure, OUT / name / f"{title}.png")
            run.figure(figure, title)
        page = retrieval_page(
            f"Retrieval, {name} model", scores, gallery, _test_clips(params), params.audio.sample_rate
        )
        _leave(page, name, run)
    size = {"n_queries": len(gallery.caption_clips), "n_clips": len(gallery.clip_ids)}
    write_json(METRICS / f"{metrics}.json", {"training": trained["metrics"], **size, **scores.tree()})


def benchmark_captioning() -> None:
    """Caption the test clips, score the captions, write a report, and add all to the run that trained the model."""
    params = load_params()
    name = "caption"
    captions, scores = judge_captions(params, RUNS / name, "test", params.model.audio_token)
    trained = read_run(RUNS / name)
    scores.write(OUT / name)
    write_captions(captions, OUT / name / CAPTIONS_FILE)
    log_scores(scores, trained["run_id"], "test", name)
    with open_tracker(ROOT).start(name, name, {}, run_id=trained["run_id"]) as run:
        run.artifact(OUT / name / CAPTIONS_FILE)
        page = caption_page(captions, scores, _test_clips(params), read_slots(params), params.audio.sample_rate)
        _leave(page, name, run)
    facts = {"training": trained["metrics"], "n_clips": len(captions.references), "notes": dict(scores.notes)}
    write_json(METRICS / "captioning.json", {**facts, **scores.tree()})


def _test_clips(params: Params) -> ClipStore:
    return ClipStore(find_clips(params, "finetune", "test"))


def _leave(page: pages.Page, name: str, run: Run) -> None:
    """Write the report and keep it with the run."""
    pages.write(page, OUT / name / "report.html")
    run.artifact(OUT / name / "report.html")


def report_retrieval(name: str) -> str:
    """Markdown: the test scores at retrieval."""
    return _report(name, score_table({name: Scores.read(OUT / name)}))


def report_captioning() -> str:
    """Markdown: the test scores of the captions."""
    return _report("caption", caption_table({"caption": Scores.read(OUT / "caption")}))


def _report(name: str, table: str) -> str:
    return f"# Test scores\n\n{table}\n\n{run_link(read_run(RUNS / name)['run_id'])}"


STAGES = {
    "pretraining": Stage(
        "evaluate@pretraining",
        (partial(benchmark_retrieval, "pretrain", "pretrain"),),
        partial(report_retrieval, "pretrain"),
    ),
    "retrieval": Stage(
        "evaluate@retrieval",
        (partial(benchmark_retrieval, "finetune", "retrieval"),),
        partial(report_retrieval, "finetune"),
    ),
    "captioning": Stage("evaluate@captioning", (benchmark_captioning,), report_captioning),
}


@flow(name="evaluate", log_prints=True)
def evaluate(
    model: Literal["pretraining", "retrieval", "captioning"] = "retrieval",
    through_dvc: bool = False,
    force: bool = False,
) -> None:
    """Run the benchmark of a model; `through_dvc` keeps dvc.lock true, `force` reruns."""
    STAGES[model].run(through_dvc, force)


if __name__ == "__main__":
    name = name_on_command_line(STAGES)
    STAGES[name].main(partial(evaluate, name))
