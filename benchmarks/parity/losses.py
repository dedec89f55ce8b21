"""Losses and their gradients: pretraining by our objective, term by term and in both published totals, and the
published fine-tuning losses on our similarities.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.parity.deviation import Deviation, Tolerance, deviation
from benchmarks.parity.features import PRETRAINING_CONTROL, RETRIEVAL_CONTROL
from benchmarks.parity.model import Models
from clip4vla.losses.contrastive import info_nce, nt_xent
from clip4vla.model.clip4vla import MAX_SCALE
from clip4vla.model.fusion import pool
from clip4vla.model.published import Published, published_name
from clip4vla.training.objectives import ContrastiveObjective, Outputs, total_loss

GROUPS = ("losses", "gradients")
LOSS = Tolerance(1e-5, relative=1e-4)  # the absolute part is float32's rounding of a logit of 100
NORM = Tolerance(1e-6, relative=1e-3)
TERMS = {
    "ta": "text_audio",
    "va": "video_audio",
    "tv": "text_video",
    "aa": "audio_audio",
    "tt": "text_text",
    "vv": "video_video",
}
"""Our names of the published terms."""
TOTALS: Mapping[str, Mapping[str, float]] = {
    "nce": {"text_audio": 1, "video_audio": 1},
    "nce_ss": {"text_audio": 1, "video_audio": 1, "audio_audio": 1},
    "tav_nce": {"text_audio": 1, "video_audio": 2},
    "tav_nce_ss": {"text_audio": 1, "video_audio": 2, "audio_audio": 1, "text_text": 1, "video_video": 1},
}
"""Weights of the published pretraining totals, without and with self-supervision (ss)."""
PRETRAINING = re.compile(r"pre/(nce|tav_nce)(_ss)?(_missing_audio\d+)?")
FINETUNING = re.compile(
    r"ft/(?:(feat_avg|sim_plus|loose_seq|tight_seq|cross_align)(?:_ta)?_nce|text_(video|audio)_only)"
)


def check(models: Models, names: Mapping[str, list[str]]) -> Iterator[Deviation]:
    """Every loss and gradient found; `names` has the parameters whose norms are given."""
    for missing in (False, True):
        yield from _pretraining(models, names, missing)
    yield from _finetuning(models, names)
    yield from _alone(models.arrays)


def _pretraining(models: Models, names: Mapping[str, list[str]], missing: bool) -> Iterator[Deviation]:
    """The cases with all sounds, or those with some `missing`."""
    places = dict.fromkeys("/".join(key.split("/")[:2]) for key in models.arrays)
    matches = [match for place in places if (match := PRETRAINING.fullmatch(place))]
    cases = {match[0]: match[1] + (match[2] or "") for match in matches if bool(match[3]) == missing}
    if not cases:
        return
    one = models.encoded("feat_avg", PRETRAINING_CONTROL, missing)
    augmented = any("audio_audio" in TOTALS[total] for total in cases.values())
    outputs = one.embeddings(augmented).tensors()
    for case, total in cases.items():
        for key, loss in _terms_and_total(case, total, outputs):
            if key in models.arrays:
                yield deviation("losses", key, loss, models.arrays[key], LOSS)
        yield from _gradients(one.published, loss, models.arrays, f"{case}/", names.get("pre/grad_names", []))


def _terms_and_total(case: str, total: str, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    """The published name and our value of each term that the inputs allow, the total last."""
    scale = torch.tensor(MAX_SCALE)
    for short, term in TERMS.items():
        if term != "audio_audio" or "augmented_audio" in outputs:
            yield f"{case}/{short}_nce", ContrastiveObjective({term: 1.0}, "sample").losses(outputs, scale)[term]
    yield f"{case}/total", total_loss(ContrastiveObjective(TOTALS[total], "sample").losses(outputs, scale))


def _finetuning(models: Models, names: Mapping[str, list[str]]) -> Iterator[Deviation]:
    """The published loss goes from texts to clips only; with one modality it has only the mean of frames."""
    for key in models.arrays:
        if (match := FINETUNING.fullmatch(key)) is None:
            continue
        one = models.encoded(match[1] or "feat_avg", RETRIEVAL_CONTROL)
        similarity = one.similarity(f"single_t_{match[2][0]}" if match[2] else "t_va")
        total = F.cross_entropy(similarity, torch.arange(len(similarity)))
        yield deviation("losses", key, total, models.arrays[key], LOSS)
        yield from _gradients(one.published, total, models.arrays, f"{key}_", names.get(f"{key}_grad_names", []))


def _alone(arrays: Mapping[str, Tensor]) -> Iterator[Deviation]:
    """The two losses on inputs of their own."""
    if "simclr/loss" in arrays:
        plain, augmented = (pool(arrays[f"simclr/{key}"], arrays["simclr/mask"].bool()) for key in ("x", "y"))
        ours = nt_xent(plain, augmented, torch.tensor(MAX_SCALE))
        yield deviation("losses", "simclr/loss", ours, arrays["simclr/loss"], LOSS)
    if "nce/loss_rows" in arrays and "nce/loss_cols" in arrays:
        similarity = arrays["nce/sim"]
        ours = info_nce(similarity, torch.eye(len(similarity)), torch.tensor(1.0))
        published = (arrays["nce/loss_rows"] + arrays["nce/loss_cols"]) / 2
        yield deviation("losses", "nce/loss_rows and loss_cols", ours, published, LOSS)


def _gradients(
    published: Published, total: Tensor, arrays: Mapping[str, Tensor], case: str, names: list[str]
) -> Iterator[Deviation]:
    """The norms of gradients, and the gradients that are given in full."""
    full = [key for key in arrays if key.startswith(f"{case}grad/")]
    norms = arrays.get(f"{case}grad_norms")
    if norms is None and not full:
        return
    gradients = gradients_of(published, total)
    if norms is not None:
        yield from _norms(gradients, norms, f"{case}grad_norms", names)
    for key in full:
        ours = gradients.get(key.removeprefix(f"{case}grad/"), torch.zeros_like(arrays[key]))
        tolerance = Tolerance(1e-4 * float(arrays[key].abs().max()), relative=1e-3)
        yield deviation("gradients", key, ours, arrays[key], tolerance)


def _norms(gradients: Mapping[str, Tensor], norms: Tensor, key: str, names: list[str]) -> Iterator[Deviation]:
    """A parameter that isn't trained, here or as published, has a gradient of 0."""
    if len(norms) != len(names):
        raise ValueError(f"model.npz has {len(norms)} numbers in {key}, but {len(names)} names for them")
    expected, nothing = dict(zip(names, norms, strict=True)), torch.zeros(())
    for name in sorted(gradients.keys() | expected.keys()):
        ours = gradients.get(name, nothing).norm()
        yield deviation("gradients", f"{key} of {name}", ours, expected.get(name, nothing), NORM)


def gradients_of(published: Published, total: Tensor) -> dict[str, Tensor]:
    """The gradient of `total` by each trained parameter, under its published name."""
    trained = {published_name(name): p for name, p in published.model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        total, list(trained.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(trained, gradients, strict=True))
