"""Tiny towers, batches of noise, and one optimizer step written out naively, for the tests of training."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clip4vla.clips.batch import Batch
from clip4vla.config import AudioConfig, ModelConfig, OptimizerConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.towers import Architecture
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


def naive_info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    logits = scale * a @ b.T
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def naive_of_texts(texts: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return (naive_info_nce(texts[:, 0], b, scale) + naive_info_nce(texts[:, 1], b, scale)) / 2


def naive_nt_xent(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    vectors = torch.cat([a, b])
    itself = torch.eye(len(vectors), dtype=torch.bool)
    logits = (scale * vectors @ vectors.T).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(vectors)).roll(len(a)))


def naive_losses(outputs: Outputs, scale: Tensor, weights: dict[str, float]) -> dict[str, Tensor]:
    """Every term by full similarity matrices over the clips that have what it compares."""
    has_audio, has_video = outputs["has_audio"], outputs["has_video"]
    has_both = has_video & has_audio

    def of(name: str, present: Tensor) -> Tensor:
        return outputs[name][present]

    terms = {
        "text_audio": lambda: naive_of_texts(of("text", has_audio), of("audio", has_audio), scale),
        "video_audio": lambda: naive_info_nce(of("video", has_both), of("audio", has_both), scale),
        "text_video": lambda: naive_of_texts(of("text", has_video), of("video", has_video), scale),
        "text_both": lambda: naive_of_texts(outputs["text"], outputs["both"], scale),
        "audio_audio": lambda: naive_nt_xent(of("audio", has_audio), of("augmented_audio", has_audio), scale),
        "cross_encoder": lambda: outputs["cross_encoder_loss"].mean(),
        "text_text": lambda: sum(naive_info_nce(text, text, scale) for text in outputs["text"].unbind(1)) / 2,
        "video_video": lambda: naive_info_nce(of("video", has_video), of("video", has_video), scale),
    }
    return {name: weight * terms[name]() for name, weight in weights.items()}


class NaiveTraining:
    """One process, one graph over the whole batch, torch's own clipping and AdamW.

    For each rank and micro-batch it draws the same random numbers as `Engine`.
    """

    def __init__(self, model: Clip4Vla, objective: ContrastiveObjective, optimizer: OptimizerConfig) -> None:
        self.model, self.objective, self.clip_norm = model, objective, optimizer.clip_norm
        groups = parameter_groups(model, optimizer)
        self.adamw = torch.optim.AdamW(groups, betas=optimizer.betas, eps=optimizer.eps)

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
        self.adamw.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.adamw.step()
        return {name: loss.item() for name, loss in losses.items()} | {"loss": total.item()}

    def _outputs(self, batch: Batch) -> dict[str, Tensor]:
        token, names = self.objective.audio_token, self.objective.names
        embeddings, media = self.model.embed(batch, audio_token=token, names=names)
        outputs = embeddings.tensors()
        if "cross_encoder" in self.objective.weights:
            first = embeddings.text[:, 0]
            outputs["cross_encoder_loss"] = self.model.cross_encoder_loss(first, embeddings.both, media)
        return outputs
