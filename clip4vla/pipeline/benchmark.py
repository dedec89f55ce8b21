"""`clip4vla benchmark`: a registered model on the field's own yardsticks, its scores added to the run that trained it.

MTEB's tasks are run by MTEB itself; zero-shot classification reads any folder of labelled sounds. Neither is a stage of
`dvc.yaml`: their data are not the project's.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.ingest import ingest
from clip4vla.config import EvaluationConfig
from clip4vla.corpora.base import find_adapter
from clip4vla.corpora.manifest import MANIFEST_FILE, write_manifest
from clip4vla.evaluation.scores import Scores
from clip4vla.evaluation.zero_shot import classify
from clip4vla.inference.embedder import Embedder
from clip4vla.pipeline.project import ROOT
from clip4vla.records import Split
from clip4vla.registry.registry import Registry, VersionRecord, load_version
from clip4vla.tracking.run import reopen_run


def run_mteb(reference: str, tasks: Sequence[str], out: Path) -> dict[str, float]:
    """Run tasks of MTEB by name; their main scores, which are also logged to the version's run.

    Args:
        reference: `NAME@ALIAS` or `NAME/VERSION` of the registry.
        tasks: their names in MTEB, which downloads their data.
        out: where MTEB's result files go.

    Raises:
        ValueError: MTEB is not installed, there is no such task, or no such version.
    """
    try:
        from clip4vla.evaluation.mteb_model import MtebModel, find_tasks, main_scores, run_tasks
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: `pip install '.[mteb]' -c constraints.txt` first") from error
    found = find_tasks(tasks)
    record, embedder = _open(reference)
    result = run_tasks(MtebModel(embedder, f"clip4vla/{record.name}", record.version), found, out)
    scores = main_scores(result)
    _log(record, scores, {})
    return scores


def classify_folder(
    reference: str, name: str, adapter: str, annotations: Path, media: Path, split: Split | None, prompt: str, out: Path
) -> Scores:
    """Zero-shot classification of labelled sounds; the scores go to `out` and to the version's run.

    Args:
        reference: `NAME@ALIAS` or `NAME/VERSION` of the registry.
        name: of the data set, part of the names of the metrics in MLflow.
        adapter: reads the annotations; the texts of a clip are its labels.
        annotations: directory of the tables.
        media: directory of the sounds.
        split: the one to classify; None: all.
        prompt: the sentence of a label, which stands for `{}`.
        out: directory for `scores.json`.

    Raises:
        ValueError: there is no such version, adapter or directory, or a clip can't be classified; see `classify`.
    """
    record, embedder = _open(reference)
    with tempfile.TemporaryDirectory() as scratch:
        manifest, clips = Path(scratch) / "manifest", Path(scratch) / "clips"
        write_manifest(find_adapter(adapter)(annotations), media, manifest)
        ingest(manifest / MANIFEST_FILE, media, clips, embedder.inference.clips, embedder.model.audio_config)
        paths = sorted(clips.glob("*.lance" if split is None else f"{split}.lance"))
        if not paths:
            raise ValueError(f"{annotations} has no clips" + ("" if split is None else f" of the split {split}"))
        dataset = ClipDataset(paths)
        scores = classify(embedder, dataset, sorted(set(dataset.sentences())), EvaluationConfig(), prompt)
    scores.write(out)
    _log(record, {f"{name}/{score}": value for score, value in scores.values.items()}, {f"{name}.prompt": prompt})
    return scores


def _open(reference: str) -> tuple[VersionRecord, Embedder]:
    registry = Registry(ROOT)
    name, version = registry.resolve(reference)
    return registry.describe(name, version), load_version(ROOT, f"{name}/{version}")


def _log(record: VersionRecord, scores: dict[str, float], tags: dict[str, str]) -> None:
    with reopen_run(ROOT, record.run_id) as run:
        run.log_metrics(scores)
        run.set_tags(tags)
