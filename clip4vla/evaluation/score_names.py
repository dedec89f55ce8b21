"""Which scores an evaluation can give with given settings, so that a gate that names another one is refused early.

In: the configuration, the groups of queries and the roles of labels. Out: `ScoreNames`. The evaluators take the parts
of their names from here and from `scores`; a test compares the names with what they give. A score may still be missing
for the data's sake: `with_sound/...` where all clips have sound, METEOR and SPICE where there is no Java.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product

from clip4vla.config import AudioToken, Config
from clip4vla.evaluation.caption_metrics import KEPT_BY_CLIP, METRIC_NAMES
from clip4vla.evaluation.labels import KINDS
from clip4vla.evaluation.queries import WEIGHT
from clip4vla.evaluation.retrieval_metrics import METRICS
from clip4vla.evaluation.scores import BY_QUERY, ORIGINAL, UNSEEN, WITH_SOUND
from clip4vla.records import MODALITIES

TEXT_TO_CLIP, CLIP_TO_TEXT = "text_to_clip", "clip_to_text"
RERANKED = f"{TEXT_TO_CLIP}/reranked"
PROBED: tuple[AudioToken, ...] = ("verbal", "nonverbal")
"""Type tokens of `probe/TOKEN/KIND/R@1`."""


@dataclass(frozen=True)
class ScoreNames:
    """The names of scores."""

    paired: frozenset[str]
    """Those that are kept for each query or clip, too, so that two models can be compared on the same ones."""
    others: frozenset[str]

    def __contains__(self, name: str) -> bool:
        return name in self.paired or name in self.others


def retrieval_names(config: Config, groups: Collection[str]) -> ScoreNames:
    """The scores of retrieval.

    Args:
        config: whether clips are re-ranked, probed and unseen, and the experts.
        groups: of the queries, such as `by_query/seen` and `held_out/seen`.
    """
    tables = [f"{direction}/{modality}" for direction in (TEXT_TO_CLIP, CLIP_TO_TEXT) for modality in MODALITIES]
    tables += [RERANKED] if config.evaluation.rerank else []
    tables += [f"{WITH_SOUND}/{table}" for table in tables]
    tables += [f"{group}/{modality}" for group in groups for modality in MODALITIES]
    kinds = [group.removeprefix(f"{BY_QUERY}/") for group in groups if group.startswith(f"{BY_QUERY}/")]
    corpora = [name for name, corpus in config.corpora.items() if corpus.role == "unseen"]
    tables += ["/".join((*parts, "both")) for parts in product((ORIGINAL, UNSEEN), corpora, kinds)]
    paired = frozenset(f"{table}/{metric}" for table in tables for metric in METRICS)
    return ScoreNames(paired, frozenset([*_probe_names(config), *_weight_names(config, groups)]))


def _probe_names(config: Config) -> Iterator[str]:
    if config.evaluation.labels is None:
        return
    has_experts = config.model.fusion == "experts"
    for token in PROBED:
        if not has_experts or token in config.model.audio_experts:
            yield from (f"probe/{token}/{kind}/R@1" for kind in KINDS)


def _weight_names(config: Config, groups: Collection[str]) -> Iterator[str]:
    if config.model.fusion == "experts":
        for expert in ("video", *map(str, config.model.audio_experts)):
            yield from (f"{group}/{WEIGHT}/{expert}" for group in groups)


def captioning_names(config: Config, roles: Collection[str]) -> ScoreNames:
    """The scores of captions.

    Args:
        config: which modalities are captioned.
        roles: what labels have of clips, such as `seen`.
    """
    trained_on = config.captioning.modalities
    groups = [f"caption/{modality}" for modality in (MODALITIES if trained_on == "both" else (trained_on,))]
    measured = [*groups, *(f"{WITH_SOUND}/{group}" for group in groups)]
    paired = {f"{group}/{metric}" for group in measured for metric in KEPT_BY_CLIP}
    paired |= {f"{group}/slot/{role}" for group in groups for role in roles}
    others = {f"{group}/{metric}" for group in measured for metric in METRIC_NAMES} - paired
    return ScoreNames(frozenset(paired), frozenset(others))
