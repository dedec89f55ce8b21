"""Tiny towers, batches of noise, and one optimizer step written out naively, for the tests of training."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clip4vla.clips.batch import NO_ID, Batch
from clip4vla.config import AudioConfig, ModelConfig, OptimizerConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.towers import Architecture
from clip4vla.training.muon import Muon
from clip4vla.training.objectives import ContrastiveObjective, Outputs
from clip4vla.training.optimizer import parameter_groups

AUDIO = AudioConfig(tiles=2, freq_mask_fraction=0.1)
ARCHITECTURE = Architecture(
    "tiny",
    {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
    },
)
MODEL = ModelConfig(architecture="tiny")
OPTIMIZER = OptimizerConfig(
    lr=0.01,
    eps=0.01,  # as large as gradients are, so that the step depends on their size and not on their sign alone
    warmup=0.0,
    clip_norm=1000.0,
)
EVERYTHING = ContrastiveObjective(
    {"text_audio": 1.0, "video_audio": 0.5, "text_video": 0.3, "text_both": 0.2, "audio_audio": 0.7}
    | {"text_text": 0.4, "video_video": 0.6},
    "sample",
)


def build(
    temperature: str = "learned", fusion: str = "mean", dropout: float = 0.0, has_cross_encoder: bool = False
) -> Clip4Vla:
    """The tiny model, always with the same weights; with `dropout` the audio tower draws at random."""
    torch.manual_seed(0)
    config = MODEL.model_copy(update={"temperature": temperature, "fusion": fusion})
    model = Clip4Vla(config, AUDIO, ARCHITECTURE, has_cross_encoder=has_cross_encoder)
    if dropout:
        model.audio.ln_pre = nn.Sequential(model.audio.ln_pre, nn.Dropout(dropout))
    return model.train()


VOCABULARY = torch.tensor([62, 63, *range(62)])
"""Start, end, and every other token of the tiny text tower."""


def build_captioner(fusion: str = "mean") -> Clip4Vla:
    """The tiny model with a caption decoder, and a text tower that isn't trained."""
    torch.manual_seed(0)
    model = Clip4Vla(MODEL.model_copy(update={"fusion": fusion}), AUDIO, ARCHITECTURE, VOCABULARY).train()
    model.freeze_text()
    return model


def make_batch(clips: int, seed: int) -> Batch:
    """Clips of noise with two sentences each: the second has no sound, the third no frames, the fourth only one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 63, (clips, 2, 9), generator=generator)
    tokens[..., -1] = 63
    samples = torch.randint(9000, 50000, (clips,), generator=generator)
    video_mask = torch.ones(clips, 2, dtype=torch.bool)
    samples[1], video_mask[2], video_mask[3, 1] = 0, False, False
    return Batch(
        clip_ids=tuple(f"clip{row}" for row in range(clips)),
        frames=torch.randint(0, 256, (clips, 2, 3, 32, 32), dtype=torch.uint8, generator=generator),
        video_mask=video_mask,
        waveform=0.1 * torch.randn(clips, 1, 50000, generator=generator),
        samples=samples,
        tokens=tokens,
        audio_types=torch.randint(-1, 2, (clips,), generator=generator),
    )


def with_identical_captions(batch: Batch) -> Batch:
    """`batch` whose second captions are of only four sentences; the sixth clip has no such caption, the fifth no other.

    Every other clip also has a sentence of the four that is not in the batch.
    """
    rows = torch.arange(len(batch))
    tokens, ids = batch.tokens.clone(), torch.stack([100 + rows, rows % 4], dim=1)
    tokens[:, 1] = tokens[:4, 1][rows % 4]
    tokens[4], ids[4] = tokens[4, 1].clone(), ids[4, 1].clone()
    tokens[5], ids[5] = tokens[5, 0].clone(), ids[5, 0].clone()
    other = torch.where((rows % 2 == 0) & (rows != 4), (rows + 1) % 4, NO_ID)
    clip_text_ids = torch.cat([ids, other.unsqueeze(1)], dim=1)
    return replace(batch, tokens=tokens, text_ids=ids, clip_text_ids=clip_text_ids, shared=ids < 4)


def naive_info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    logits = scale * a @ b.T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def naive_of_texts(texts: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return (naive_info_nce(texts[:, 0], b, scale) + naive_info_nce(texts[:, 1], b, scale)) / 2


def naive_of_identical(outputs: Outputs, query: str, media: str, scale: Tensor, shared: bool, has: Tensor) -> Tensor:
    """By a full matrix of logits, and one that says which caption is right for which clip."""
    of_sort = (outputs["shared"] == shared).flatten()
    texts, ids = outputs[query].flatten(0, 1)[of_sort], outputs["text_ids"].flatten()[of_sort]
    right = (ids[:, None, None] == outputs["clip_text_ids"][has]).any(2)
    logits = scale * texts @ outputs[media][has].T
    return (_naive_direction(logits, right) + _naive_direction(logits.T, right.T)) / 2


def naive_of_matching_clips(outputs: Outputs, first: str, second: str, scale: Tensor, has: Tensor) -> Tensor:
    """The same between embeddings of clips, which match where one has the first caption of the other."""
    right = (outputs["text_ids"][has, 0][:, None, None] == outputs["clip_text_ids"][has]).any(2)
    logits = scale * outputs[first][has] @ outputs[second][has].T
    return (_naive_direction(logits, right) + _naive_direction(logits.T, right.T)) / 2


def _naive_direction(logits: Tensor, right: Tensor) -> Tensor:
    asked = right.any(1)
    weights = right[asked] / right[asked].sum(1, keepdim=True)
    return -(logits[asked].log_softmax(1) * weights).sum(1).mean()


def naive_of_experts(outputs: Outputs, scale: Tensor, has: Tensor) -> Tensor:
    """-log of the mixture of the experts' softmaxes over clips, of captions that several clips have."""
    of_sort = outputs["shared"].flatten()
    queries, weights = (outputs[name].flatten(0, 1)[of_sort] for name in ("expert_queries", "expert_weights"))
    right = (outputs["text_ids"].flatten()[of_sort, None, None] == outputs["clip_text_ids"][has]).any(2)
    clips = outputs["both"][has].unflatten(1, (queries.shape[1], -1))
    likelihood = (weights * (scale * torch.einsum("ned,ced->cne", queries, clips)).softmax(0)).sum(2).T
    return -((likelihood.log() * right).sum(1) / right.sum(1))[right.any(1)].mean()


def naive_of_audio_experts(outputs: Outputs, scale: Tensor, has: Tensor) -> Tensor:
    """As if there was no video expert."""
    weights = F.normalize(outputs["expert_weights"][..., 1:], dim=2)
    queries = (outputs["expert_queries"][:, :, 1:] * weights.unsqueeze(3)).flatten(2)
    clips = outputs["both"][:, -queries.shape[2] :]
    return naive_of_identical({**outputs, "query": queries, "both": clips}, "query", "both", scale, False, has)


def naive_of_captions(outputs: Outputs, scale: Tensor) -> Tensor:
    """Each expert by itself finds own captions by the shared ones of their clips, which are constants."""
    shared, ids = outputs["shared"].flatten(), outputs["text_ids"].flatten()
    queries, weights = (outputs[name].flatten(0, 1) for name in ("expert_queries", "expert_weights"))
    of_clips = outputs["clip_text_ids"].repeat_interleave(outputs["shared"].shape[1], 0)
    right = (ids[shared][:, None, None] == of_clips[~shared]).any(2)
    logits = scale * torch.einsum("ned,ced->nec", queries[shared].detach(), queries[~shared])
    likelihood = (weights[shared].detach().unsqueeze(2) * logits.log_softmax(2)).sum(1)
    return -((likelihood * right).sum(1) / right.sum(1))[right.any(1)].mean()


def naive_nt_xent(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    vectors = torch.cat([a, b])
    itself = torch.eye(len(vectors), dtype=torch.bool, device=a.device)
    logits = (scale * vectors @ vectors.T).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(vectors), device=a.device).roll(len(a)))


def naive_losses(outputs: Outputs, scale: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
    """Every term by full similarity matrices over the clips that have what it compares."""
    has_audio, has_video = outputs["has_audio"], outputs["has_video"]
    has_both = has_video & has_audio

    def of(name: str, present: Tensor) -> Tensor:
        return outputs[name][present]

    def of_texts(query: str, media: str, has: Tensor, shared: bool = False) -> Tensor:
        if "text_ids" in outputs:
            return naive_of_identical(outputs, query, media, scale, shared, has)
        return naive_of_texts(of(query, has), of(media, has), scale)

    def of_clips(first: str, second: str) -> Tensor:
        if "text_ids" in outputs:
            return naive_of_matching_clips(outputs, first, second, scale, has_both)
        return naive_info_nce(of(first, has_both), of(second, has_both), scale)

    terms = {
        "text_audio": lambda: of_texts("text", "audio", has_audio),
        "video_audio": lambda: of_clips("video", "audio"),
        "text_video": lambda: of_texts("video_query", "video", has_video),
        "text_both": lambda: of_texts("query", "both", has_video | has_audio),
        "shared_text_both": lambda: of_texts("query", "both", has_video | has_audio, shared=True),
        "text_experts": lambda: naive_of_experts(outputs, scale, has_video | has_audio),
        "text_text_experts": lambda: naive_of_captions(outputs, scale),
        "text_audio_experts": lambda: naive_of_audio_experts(outputs, scale, has_audio),
        "audio_audio": lambda: naive_nt_xent(of("audio", has_audio), of("augmented_audio", has_audio), scale),
        "cross_encoder": lambda: outputs["cross_encoder_loss"].mean(),
        "text_text": lambda: sum(naive_info_nce(text, text, scale) for text in outputs["text"].unbind(1)) / 2,
        "video_video": lambda: naive_info_nce(of("video", has_video), of("video", has_video), scale),
    }
    return {name: weight * terms[name]() for name, weight in weights.items()}


class NaiveTraining:
    """One process, one graph over the whole batch, torch's own clipping and AdamW, or Muon on one rank.

    For each rank and micro-batch it draws the same random numbers as `Engine`.
    """

    def __init__(self, model: Clip4Vla, objective: ContrastiveObjective, optimizer: OptimizerConfig) -> None:
        self.model, self.objective, self.clip_norm = model, objective, optimizer.clip_norm
        groups = parameter_groups(model, optimizer)
        kind = Muon if optimizer.name == "muon" else torch.optim.AdamW
        self.optimizer = kind(groups, betas=optimizer.betas, eps=optimizer.eps)

    def step(self, batch: Batch, shares: Sequence[Sequence[slice]], seed: int, step: int) -> dict[str, float]:
        """`shares`: for each rank, the rows of each of its micro-batches."""
        parts = []
        for rank, pieces in enumerate(shares):
            for index, rows in enumerate(pieces):
                torch.manual_seed(hash((seed, step, rank, index)) & 0x7FFF_FFFF_FFFF_FFFF)
                parts.append(self._outputs(batch[rows]))
        outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        losses = naive_losses(outputs, self.model.scale(), dict(self.objective.weights))
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return {name: loss.item() for name, loss in losses.items()} | {"loss": total.item()}

    def _outputs(self, batch: Batch) -> dict[str, Tensor]:
        token, names = self.objective.audio_token, self.objective.names
        embeddings, media = self.model.embed(batch, audio_token=token, names=names)
        ids = {name: getattr(batch, name) for name in ("text_ids", "clip_text_ids", "shared")}
        outputs = embeddings.tensors() | {name: value for name, value in ids.items() if value is not None}
        if "cross_encoder" in self.objective.weights:
            first = embeddings.text[:, 0]
            outputs["cross_encoder_loss"] = self.model.cross_encoder_loss(first, embeddings.both, media)
        return outputs
