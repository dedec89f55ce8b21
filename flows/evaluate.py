"""Stage and flow `evaluate`: the benchmark of the pretrained and the fine-tuned model on the test clips.

Out: `runs/evaluate/MODEL/` with `scores.json`, `ranks.parquet` and figures.
"""

from prefect import flow

from clip4vla.clips.loader import ClipStore
from clip4vla.evaluation.figures import retrieval_figure, save, similarity_figure
from clip4vla.evaluation.scores import Scores
from clip4vla.params import load_params
from clip4vla.tracking import open_tracker
from clip4vla.training.job import read_run
from flows.stage import Stage
from flows.training import EXPERIMENT, ROOT, RUNS, find_clips, judge, log_scores, score_table

OUT = RUNS / "evaluate"
MODELS = ("pretrain", "finetune")
SHOWN = 100
"""Clips in the similarity figure."""


def benchmark() -> None:
    """Score both models on the test clips, draw the figures, and add both to the runs that trained them."""
    params = load_params()
    for name in MODELS:
        judge_of, scores = judge(params, RUNS / name, "test", getattr(params, name), params.model.audio_token)
        run_id = read_run(RUNS / name)["run_id"]
        scores.write(OUT / name)
        log_scores(scores, run_id, "test", name)
        gallery = judge_of.gallery(ClipStore(find_clips(params, "finetune", "test")), params.model.audio_token)
        first = [gallery.caption_clips.index(clip_id) for clip_id in gallery.clip_ids[:SHOWN]]
        similarity = gallery.similarity("both")[first, :SHOWN]
        with open_tracker(ROOT).start(EXPERIMENT, name, {"kind": name}, run_id=run_id) as run:
            for title, figure in (
                ("retrieval", retrieval_figure(scores)),
                ("similarity", similarity_figure(similarity)),
            ):
                save(figure, OUT / name / f"{title}.png")
                run.figure(figure, title)


def report() -> str:
    """Markdown: the test scores of both models."""
    return f"# Test scores\n\n{score_table({name: Scores.read(OUT / name) for name in MODELS})}"


STAGE = Stage("evaluate", (benchmark,), report)


@flow(name="evaluate", log_prints=True)
def evaluate(through_dvc: bool = False, force: bool = False) -> None:
    """Run the benchmark; `through_dvc` keeps dvc.lock true, `force` reruns."""
    STAGE.run(through_dvc, force)


if __name__ == "__main__":
    STAGE.main(evaluate)
