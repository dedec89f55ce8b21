"""How much memory a training takes, from its settings alone: before anything is decoded, loaded or trained.

In: the sections of `params.yaml`. Out: bytes of a rank. The forward pass of one clip runs through a copy of the model
that has shapes and no numbers, and what autograd keeps of it for the backward pass is added up: exact for any
architecture, and a matter of seconds. Left out are the workspace of single operations and what only exists while the
weights are updated, for which there is a margin.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clip4vla.audio.frontend import max_samples
from clip4vla.clips.batch import Batch
from clip4vla.config import (
    AudioConfig,
    AudioToken,
    CaptioningConfig,
    ModelConfig,
    PretrainingConfig,
    RetrievalConfig,
    TrainerConfig,
    TrainingConfig,
)
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.training.flops import StepFlops, without_numbers
from clip4vla.training.objectives import build_objective

CAPTION_TOKENS = 10_000
"""Assumed size of the vocabulary of captions: it is known when the captions have been read."""
STATE_BYTES = 16
"""Of a weight in training: itself, its gradient and AdamW's two moments, in float32."""
CHECKPOINT_BYTES = 12
"""Of a weight in a checkpoint: itself and the moments."""
PROCESS_BYTES = 1_000_000_000
"""Of a rank before it has a model: the libraries."""
MARGIN = 1.2
CHANNELS = 2
"""Of the sound: more than one takes the front end's memory."""


@dataclass(frozen=True)
class TrainingCost:
    """What a training takes of a rank's device."""

    state_bytes: int
    """Weights, gradients and moments."""
    clip_bytes: int
    """Activations of a clip in a micro-batch."""
    clip_flops: int
    """Useful FLOPs of a clip's forward and backward pass."""

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint: weights and moments, without gradients."""
        return self.state_bytes * CHECKPOINT_BYTES // STATE_BYTES

    def memory(self, clips: int) -> int:
        """Bytes of a rank with `clips` clips in its micro-batch."""
        return PROCESS_BYTES + round(MARGIN * (self.state_bytes + clips * self.clip_bytes))

    def clips_that_fit(self, memory: int) -> int:
        """The largest micro-batch in `memory` bytes; 0 where not even one clip fits."""
        return max(0, int(((memory - PROCESS_BYTES) / MARGIN - self.state_bytes) / self.clip_bytes))


def cost_of(
    training: PretrainingConfig | RetrievalConfig | CaptioningConfig,
    model: ModelConfig,
    audio: AudioConfig,
    audio_token: AudioToken,
    trainer: TrainerConfig,
) -> TrainingCost:
    """What `training` takes, in float32 and without ZeRO, which divides the state among ranks.

    Raises:
        ValueError: the architecture can't be used.
    """
    sized = without_numbers(lambda: _build(training, model, audio))
    objective = build_objective(training, audio_token)
    flops = StepFlops(sized, objective)(clip := _one_clip(training, sized))
    if sized.decoder is not None:
        sized.freeze_text()
    if trainer.activation_checkpointing:
        sized.set_grad_checkpointing()
    own = {weight.untyped_storage()._cdata for weight in (*sized.parameters(), *sized.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    alive: list[Tensor] = []  # so that no storage takes the identity of an earlier one
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = objective.outputs(sized, clip)
    assert outputs
    weights = sum(weight.numel() for weight in sized.parameters())
    return TrainingCost(STATE_BYTES * weights, sum(kept.values()), flops)


def _build(training: TrainingConfig, model: ModelConfig, audio: AudioConfig) -> Clip4Vla:
    from_scratch = model.model_copy(update={"weights": None})
    vocabulary = torch.arange(CAPTION_TOKENS) if isinstance(training, CaptioningConfig) else None
    has_cross_encoder = isinstance(training, RetrievalConfig) and training.cross_encoder > 0
    return Clip4Vla(from_scratch, audio, vocabulary=vocabulary, has_cross_encoder=has_cross_encoder)


def _one_clip(training: TrainingConfig, model: Clip4Vla) -> Batch:
    """A clip with all that the training reads of one."""
    shared = training.shared_captions_per_clip if isinstance(training, RetrievalConfig) else 0
    captions, size = training.captions_per_clip + shared, model.image_size
    with torch.device("meta"):
        ids = torch.zeros(1, captions, dtype=torch.int64)
        return Batch(
            clip_ids=("",),
            frames=torch.zeros(1, training.frames, 3, size, size, dtype=torch.uint8),
            video_mask=torch.ones(1, training.frames, dtype=torch.bool),
            waveform=torch.zeros(1, CHANNELS, max_samples(model.audio_config, size)),
            samples=torch.ones(1, dtype=torch.int64),
            tokens=torch.zeros(1, captions, min(training.max_tokens, model.context_length), dtype=torch.int64),
            audio_types=torch.zeros(1, dtype=torch.int64),
            text_ids=ids,
            clip_text_ids=ids,
            shared=torch.zeros(1, captions, dtype=torch.bool) if shared else None,
        )
