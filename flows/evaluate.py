"""Stage and flow `evaluate`: the benchmark of the pretrained and the fine-tuned model on the test clips.

Out: `runs/evaluate/MODEL/` with `scores.json`, `ranks.parquet`, figures and `report.html`; `metrics/pretrain.json` and
`metrics/retrieval.json`.
"""

from prefect import flow

from clip4vla import pages
from clip4vla.atomic import write_json
from clip4vla.clips.loader import ClipStore
from clip4vla.evaluation.figures import retrieval_figure, save, similarity_figure
from clip4vla.evaluation.report import retrieval_page
from clip4vla.evaluation.scores import Scores
from clip4vla.params import load_params
from clip4vla.tracking import open_tracker
from clip4vla.training.job import read_run
from flows.stage import Stage
from flows.training import METRICS, ROOT, RUNS, find_clips, judge, log_scores, run_link, score_table

OUT = RUNS / "evaluate"
METRICS_OF = {"pretrain": METRICS / "pretrain.json", "finetune": METRICS / "retrieval.json"}
SHOWN = 100
"""Clips in the similarity figure."""


def benchmark() -> None:
    """Score both models on the test clips, draw figures, write reports, and add all to the runs that trained them."""
    params = load_params()
    store = ClipStore(find_clips(params, "finetune", "test"))
    for name in METRICS_OF:
        gallery, scores = judge(params, RUNS / name, "test", getattr(params, name), params.model.audio_token)
        trained = read_run(RUNS / name)
        scores.write(OUT / name)
        log_scores(scores, trained["run_id"], "test", name)
        first = [gallery.caption_clips.index(clip_id) for clip_id in gallery.clip_ids[:SHOWN]]
        similarity = gallery.similarity("both")[first, :SHOWN]
        with open_tracker(ROOT).start(name, name, {}, run_id=trained["run_id"]) as run:
            for title, figure in (
                ("retrieval", retrieval_figure(scores)),
                ("similarity", similarity_figure(similarity)),
            ):
                save(figure, OUT / name / f"{title}.png")
                run.figure(figure, title)
            page = retrieval_page(f"Retrieval, {name} model", scores, gallery, store, params.audio.sample_rate)
            pages.write(page, OUT / name / "report.html")
            run.artifact(OUT / name / "report.html")
        size = {"n_queries": len(gallery.caption_clips), "n_clips": len(gallery.clip_ids)}
        write_json(METRICS_OF[name], {"training": trained["metrics"], **size, **scores.tree()})


def report() -> str:
    """Markdown: the test scores of both models."""
    links = "\n".join(f"- {name}: {run_link(read_run(RUNS / name)['run_id'])}" for name in METRICS_OF)
    return f"# Test scores\n\n{score_table({name: Scores.read(OUT / name) for name in METRICS_OF})}\n\n{links}"


STAGE = Stage("evaluate", (benchmark,), report)


@flow(name="evaluate", log_prints=True)
def evaluate(through_dvc: bool = False, force: bool = False) -> None:
    """Run the benchmark; `through_dvc` keeps dvc.lock true, `force` reruns."""
    STAGE.run(through_dvc, force)


if __name__ == "__main__":
    STAGE.main(evaluate)
