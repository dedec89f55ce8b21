"""The model card of an exported model: what the registry and MLflow know about it, as a Hugging Face `README.md`.

In: a `CardFacts`. Out: Markdown with YAML metadata. What is not recorded, the card calls unknown.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clip4vla.config import InferenceConfig, ModelConfig
from clip4vla.evaluation.scores import Scores
from clip4vla.registry.registry import VersionRecord
from clip4vla.reports.retrieval_report import query_tables
from clip4vla.reports.tables import Table, comparison_table, headlines, to_markdown
from clip4vla.tracking.records import AblationRecord, TrainingRecord
from clip4vla.utils.numbers import format_score

UNKNOWN = "unknown"
RETRIEVAL_METRIC, CAPTION_METRIC = "recall_at_1", "caption"
SEARCH_TASK, CAPTION_TASK = "zero-shot-retrieval", "video-text-to-text"


@dataclass(frozen=True)
class CardFacts:
    """All that a card is made of."""

    version: VersionRecord
    training: TrainingRecord
    scores: Scores
    ablation: AblationRecord | None
    model: ModelConfig
    inference: InferenceConfig
    sample_rate: int
    """Of the sound that the model reads, in Hz."""
    license: str | None
    """Of the weights, an identifier of the Hugging Face Hub such as `mit`; None where nobody has given one."""

    @property
    def captions(self) -> bool:
        """Whether the model generates captions, rather than vectors."""
        return self.inference.generation is not None


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with its metadata on top."""
    sections = {
        "How to load": _loading(facts),
        "Intended use": _intended_use(facts),
        "Training data": _data(facts),
        "Training": _training(facts),
        "Scores": _scores(facts.scores),
        "Ablation": _ablation(facts),
        "Decision of the gate": facts.version.description or "No decision about this version is recorded.",
        "Limits": _limits(facts),
    }
    title = f"# {facts.version.name}, version {facts.version.version}"
    summary = (
        "CLIP extended with hearing: an audio tower with type tokens beside CLIP's text and image towers, after "
        "CLIP4VLA ([arXiv 2303.06591](https://arxiv.org/abs/2303.06591))."
    )
    body = [f"## {heading}\n\n{text}" for heading, text in sections.items()]
    return "\n\n".join([f"---\n{_metadata(facts)}---", title, summary, *body]) + "\n"


def _metadata(facts: CardFacts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=CAPTION_TASK if name.startswith("caption/") else SEARCH_TASK,
            dataset_type=_test_clips(facts.training),
            dataset_name=_test_clips(facts.training),
            dataset_revision=facts.scores.test_set,
            dataset_split="test",
            metric_type=CAPTION_METRIC if name.startswith("caption/") else RETRIEVAL_METRIC,
            metric_name=name,
            metric_value=float(f"{facts.scores.values[name]:.6g}"),
        )
        for name in headlines([facts.scores])
    ]
    data = ModelCardData(
        library_name="clip4vla",
        license=facts.license,
        pipeline_tag=CAPTION_TASK if facts.captions else None,
        tags=["clip4vla", "open_clip", "video", "audio", "video-captioning" if facts.captions else "video-retrieval"],
        model_name=facts.version.name,
        eval_results=results,
    )
    return f"{data.to_yaml()}\n"


def _loading(facts: CardFacts) -> str:
    call = (
        'print(model.caption(["bell.mp4"]))'
        if facts.captions
        else 'scores = model.encode_text(["the sound of a bell"]) @ model.encode_media(["bell.mp4"]).T'
    )
    ours = f'import clip4vla\n\nmodel = clip4vla.load("DIRECTORY")\n{call}'
    towers = (
        "import open_clip\n\n"
        'model, _, preprocess = open_clip.create_model_and_transforms("local-dir:DIRECTORY")\n'
        'tokenizer = open_clip.get_tokenizer("local-dir:DIRECTORY")'
    )
    note = (
        "open_clip opens the text and image towers alone: it reads no sound, and applies neither the fusion nor the "
        "experts."
    )
    return f"```python\n{ours}\n```\n\n{note}\n\n```python\n{towers}\n```"


def _intended_use(facts: CardFacts) -> str:
    if facts.captions:
        return (
            "Describing short videos and sounds in a sentence like those that it was trained on. Not for decisions "
            "about people, nor for media whose description matters without a person who checks it."
        )
    return (
        "Finding short videos and sounds by a sentence about what is seen, heard or said in them. Not for decisions "
        "about people, and not for recognising persons or speech word by word."
    )


def _data(facts: CardFacts) -> str:
    corpora = facts.version.corpora
    rows = [
        [name, *(record.get(key) or UNKNOWN for key in ("role", "version", "license", "source"))]
        for name, record in sorted(corpora.items())
    ]
    recorded = to_markdown(Table("", ["corpus", "role", "version", "licence", "source"], rows))
    if not rows:
        recorded = "The corpora of this version, their versions and licences are not recorded: unknown."
    used = [[name, context, digest] for name, digest, context in facts.training.datasets]
    clips = to_markdown(Table("", ["clips", "used for", "digest"], used)) if used else "The clips used are unknown."
    return f"{recorded}\n\nClips that the last training and its evaluation read:\n\n{clips}"


def _training(facts: CardFacts) -> str:
    tags = facts.training.tags
    rows = [[name, value] for name, value in sorted(facts.training.params.items())]
    rows += [[label, tags.get(tag, UNKNOWN)] for label, tag in _PROVENANCE.items()]
    return to_markdown(Table("", ["setting", "value"], [*rows, ["MLflow run", facts.training.run_id]]))


_PROVENANCE = {"git revision": "git_revision", "hash of dvc.lock": "dvc_lock", "hardware": "hardware"}


def _scores(scores: Scores) -> str:
    intervals = f"Test set `{scores.test_set}`; recalls are per cent. In brackets: 95 % bootstrap intervals by clip."
    tables = [comparison_table({"value": scores}), *query_tables(scores)]
    missing = [] if scores.query_kinds() else ["Scores by kind of query: unknown, this test set has no such queries."]
    return "\n\n".join([intervals, *map(to_markdown, tables), *missing])


def _ablation(facts: CardFacts) -> str:
    ablation = facts.ablation
    if ablation is None:
        return "Unknown: MLflow has no ablation on this test set."
    note = (
        f"Short fine-tunings that differ in fusion and audio tokens only, R@1 by both modalities together on the same "
        f"test set; git revision {ablation.git_revision}, MLflow run {ablation.run_id}."
    )
    return f"{note}\n\n{to_markdown(_ablation_table(ablation))}"


def _ablation_table(ablation: AblationRecord) -> Table:
    """A row for each arm, a column for each kind of query."""
    both = [row for row in ablation.rows if row["modality"] == "both"]
    kinds, arms = _distinct(row["queries"] for row in both), _distinct(row["arm"] for row in both)
    cells = {(row["arm"], row["queries"]): _ablation_cell(row) for row in both}
    return Table("", ["arm", *kinds], [[arm, *(cells[arm, kind] for kind in kinds)] for arm in arms])


def _ablation_cell(row: Mapping[str, str]) -> str:
    return format_score("R@1", float(row["R@1"]), (float(row["R@1_low"]), float(row["R@1_high"])))


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _limits(facts: CardFacts) -> str:
    clips = facts.inference.clips
    lines = [
        f"It reads {facts.inference.frames} frames of a clip, and at most {clips.max_seconds:g} s of sound at "
        f"{facts.sample_rate:,} Hz from its middle; a longer file must be cut into clips.",
        f"It reads at most {facts.inference.max_tokens} tokens of a text, start and end included.",
        "It knows what its training data show and name. Its scores on other media are not measured here.",
        "Biases of its training data have not been examined.",
    ]
    if facts.model.weights is not None:
        lines.append(f"Its towers start from the weights `{facts.model.weights}`, whose limits and licence it shares.")
    if facts.license is None:
        lines.append("The licence of the weights is unknown: whoever exported them has not given one.")
    return "\n".join(f"- {line}" for line in lines)


def _test_clips(training: TrainingRecord) -> str:
    """Names of the test clips, as the run records them."""
    return ", ".join(name for name, _, context in training.datasets if context == "test") or UNKNOWN
