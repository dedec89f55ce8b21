"""Stages `evaluate@MODEL`: the scores of the pretrained model and of each task's model on the test clips.

Out: `runs/evaluations/MODEL/` with `scores.json`, results per query or clip, figures or captions, and `report.html`;
of retrieval `reference.json`, where the embeddings of the test set lie;
`metrics/{pretraining,retrieval,captioning}.json`.
"""

from pathlib import Path
from typing import get_args

from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import Config, load_config
from clip4vla.corpora.stampscenes.scenes import caption_slots
from clip4vla.evaluation.caption_evaluator import CaptionEvaluator, Captions, Slots, score_captions
from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.queries import NO_QUERIES, QuerySet
from clip4vla.evaluation.retrieval_evaluator import EmbeddedSplit, RetrievalEvaluator
from clip4vla.evaluation.scores import Scores, SplitSize
from clip4vla.inference.drift import make_reference, write_reference
from clip4vla.inference.embedder import Embedder
from clip4vla.pipeline.project import EVALUATIONS, METRICS, REPORT_FILE, ROOT, RUNS, find_clips, find_unseen_clips
from clip4vla.pipeline.training import log_datasets
from clip4vla.records import Split, TaskName
from clip4vla.reports.captioning_report import captioning_page
from clip4vla.reports.figures import query_figure, retrieval_figure, save_figure, similarity_figure, unseen_figure
from clip4vla.reports.pages import Page, write_page
from clip4vla.reports.retrieval_report import retrieval_page
from clip4vla.tracking.run import FIGURES, Run, headline, reopen_run
from clip4vla.training.spec import TrainingName, read_run
from clip4vla.utils.files import write_json

MODELS: tuple[TrainingName, ...] = get_args(TrainingName)
CAPTIONS_FILE = "captions.json"
SHOWN = 100
"""Clips in the similarity figure."""


def evaluate(model: TrainingName) -> None:
    """Score a model on the test clips, write a report, and add both to the MLflow run that trained it."""
    if model == "captioning":
        _evaluate_captioning(load_config())
    else:
        _evaluate_retrieval(load_config(), model)


def score(config: Config, task: TaskName, directory: Path, split: Split) -> Scores:
    """Scores of the model in `directory` at `task` on a split of the fine-tuning corpora."""
    if task == "retrieval":
        return score_retrieval(config, directory, split, with_unseen=split == "test")[1]
    # Java's start-up takes longer than captioning the validation clips
    return score_captioning(config, directory, split, java=split == "test")[1]


def score_retrieval(
    config: Config, directory: Path, split: Split, with_unseen: bool = False
) -> tuple[EmbeddedSplit, Scores]:
    """Retrieval on a split of the fine-tuning corpora and, where there are labels, the type-token probe.

    Args:
        with_unseen: score the corpora of the role `unseen`, too, which are renderings of the test clips.
    """
    evaluator = RetrievalEvaluator(Embedder.open(directory), config.evaluation)
    dataset = ClipDataset(find_clips(config, "finetuning", split))
    labels = read_labels(config)
    unseen = find_unseen_clips(config) if with_unseen else {}
    unseen_clips = {name: ClipDataset([path]) for name, path in unseen.items()}
    embedded = evaluator.embed(dataset, read_queries(config, split), unseen_clips, probes=labels is not None)
    return embedded, evaluator.score(embedded, labels)


def score_captioning(config: Config, directory: Path, split: Split, java: bool = True) -> tuple[Captions, Scores]:
    """Captions of a split of the fine-tuning corpora, and their scores."""
    embedder = Embedder.open(directory)
    embedder.inference = embedder.inference.with_beam_search(config.evaluation.beam_search)
    evaluator = CaptionEvaluator(embedder, config.evaluation)
    clips = ClipDataset(find_clips(config, "finetuning", split), config.captioning.min_words)
    captions = evaluator.caption(clips)
    return captions, score_captions(captions, _slots(config), config.evaluation, java)


def read_labels(config: Config) -> Labels | None:
    """The labels that `evaluation.labels` names; None where it names none.

    Raises:
        ValueError: the file isn't there or isn't one.
    """
    return None if config.evaluation.labels is None else Labels.read(Path(config.evaluation.labels))


def read_queries(config: Config, split: Split) -> QuerySet:
    """The queries of `split` that `evaluation.queries` names; none where it names none.

    Raises:
        ValueError: the file isn't there or isn't one.
    """
    path = config.evaluation.queries
    return NO_QUERIES if path is None else QuerySet.read(Path(path), split)


def log_scores(config: Config, scores: Scores, run_id: str, split: Split) -> None:
    """Add scores on a split to the MLflow run that trained the model, under `SPLIT/`; their notes become tags."""
    with reopen_run(ROOT, run_id) as run:
        run.log_metrics({f"{split}/{name}": value for name, value in scores.values.items()})
        if split == "test":
            run.log_metrics(headline(scores.values))
        log_datasets(run, find_clips(config, "finetuning", split), split)
        notes = {f"{split}.{name}": note for name, note in scores.notes.items()}
        size = {f"{split}_size": str(scores.size)} if scores.size else {}
        run.set_tags(notes | size | {f"{split}_set": scores.test_set})


def _evaluate_retrieval(config: Config, model: TrainingName) -> None:
    out = EVALUATIONS / model
    embedded, scores = score_retrieval(config, RUNS / model, "test", with_unseen=True)
    trained = read_run(RUNS / model)
    scores.write(out)
    write_reference(make_reference({"text": embedded.texts(), "media": embedded.clips["both"]}), out)
    log_scores(config, scores, trained["run_id"], "test")
    first = [embedded.caption_clips.index(clip_id) for clip_id in embedded.clip_ids[:SHOWN]]
    similarity = embedded.similarity("both")[first, :SHOWN]
    figures = {"retrieval": retrieval_figure(scores), "similarity": similarity_figure(similarity)}
    if scores.query_kinds():
        figures["queries"] = query_figure(scores)
    if scores.unseen_corpora():
        figures["unseen"] = unseen_figure(scores)
    with reopen_run(ROOT, trained["run_id"]) as run:
        for title, figure in figures.items():
            save_figure(figure, out / f"{title}.png")
            run.log_artifact(out / f"{title}.png", FIGURES)
        page = retrieval_page(f"Retrieval, {model} model", scores, embedded, _test_clips(config), _rate(config))
        _write_report(page, out, run)
    size = {"n_queries": len(embedded.caption_clips), **_counts(embedded.size)}
    write_json(METRICS / f"{model}.json", {"training": trained["metrics"], **size, **scores.tree()})


def _evaluate_captioning(config: Config) -> None:
    model: TrainingName = "captioning"
    out = EVALUATIONS / model
    captions, scores = score_captioning(config, RUNS / model, "test")
    trained = read_run(RUNS / model)
    scores.write(out)
    write_captions(captions, out / CAPTIONS_FILE)
    log_scores(config, scores, trained["run_id"], "test")
    with reopen_run(ROOT, trained["run_id"]) as run:
        run.log_artifact(out / CAPTIONS_FILE)
        page = captioning_page("Captioning", captions, scores, _test_clips(config), _slots(config), _rate(config))
        _write_report(page, out, run)
    facts = {"training": trained["metrics"], **_counts(captions.size), "notes": dict(scores.notes)}
    write_json(METRICS / f"{model}.json", {**facts, **scores.tree()})


def _counts(size: SplitSize) -> dict[str, int]:
    return {"n_clips": size.clips, "n_clips_with_sound": size.with_sound}


def write_captions(captions: Captions, path: Path) -> None:
    """A JSON object by clip: its references, and the caption generated from each modality."""
    clips = {
        clip: {"references": list(texts)} | {modality: each[clip] for modality, each in captions.generated.items()}
        for clip, texts in captions.references.items()
    }
    write_json(path, clips)


def _slots(config: Config) -> Slots | None:
    labels = read_labels(config)
    return None if labels is None else Slots(labels, caption_slots)


def _test_clips(config: Config) -> ClipDataset:
    return ClipDataset(find_clips(config, "finetuning", "test"))


def _rate(config: Config) -> int:
    return config.audio.sample_rate


def _write_report(page: Page, out: Path, run: Run) -> None:
    """Write the report and keep it with the run."""
    write_page(page, out / REPORT_FILE)
    run.log_artifact(out / REPORT_FILE)
