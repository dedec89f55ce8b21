"""The batches of a training, split by rank and resumable at any step.

In: a data set, a sampler, a transform. Out: `Batch` by step: a pure function of (seed, step), on any number of ranks.
"""

import warnings
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from clip4vla.clips.batch import NO_ID, Batch
from clip4vla.clips.dataset import CaptionIds, ClipDataset, caption_id
from clip4vla.clips.format import Clip
from clip4vla.clips.sampler import StepSampler
from clip4vla.clips.transform import ClipTransform, collate
from clip4vla.records import Text
from clip4vla.utils.pool import end_with_parent

PREFETCHED = 4
"""Batches that each loader worker prepares ahead."""


class TrainingBatches(Dataset[Batch]):
    """The batches of one rank by step; crops, frames and captions are drawn again each epoch.

    What is drawn for a clip depends on its place in the global batch, so that it is the same on any number of ranks.
    """

    def __init__(
        self, dataset: ClipDataset, transform: ClipTransform, sampler: StepSampler, rank: int, world_size: int
    ) -> None:
        self.dataset, self.transform, self.sampler = dataset, transform, sampler
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> Batch:
        return self.make(step, self.indices(step))

    @property
    def _places(self) -> range:
        """Of this rank's clips in the global batch."""
        return range(self.rank, self.sampler.clips_per_step, self.world_size)

    def indices(self, step: int) -> NDArray[np.int64]:
        """The clips of this rank in `step`."""
        return self.sampler.indices(step)[self._places]

    def make(self, step: int, indices: NDArray[np.int64]) -> Batch:
        """The batch of `step`, whose clips are at `indices`."""
        rngs = [np.random.default_rng((self.sampler.seed, step, place)) for place in self._places]
        clips = self.dataset.take(indices)
        candidates = [_long_enough(clip.texts, self.transform.min_words) for clip in clips]
        texts = [self._draw(of_clip, rng) for of_clip, rng in zip(candidates, rngs, strict=True)]
        batch = collate(clips, texts, self.transform, rngs)
        if not self.transform.identical_captions_match:
            return batch
        shared = self._shared if self.transform.shared_captions_per_clip else None
        return with_caption_ids(batch, clips, texts, shared)

    def _draw(self, texts: Sequence[Text], rng: np.random.Generator) -> list[Text]:
        """The captions of a clip for one step: its own, then shared ones; more of one sort where it lacks the other."""
        own, shared = self.transform.captions_per_clip, self.transform.shared_captions_per_clip
        if not shared:
            return _draw_texts(texts, own, rng)
        parts = [[text for text in texts if (text.text in self._shared) is is_shared] for is_shared in (False, True)]
        wanted = zip((own, shared), parts, reversed(parts), strict=True)
        return [text for count, part, other in wanted for text in _draw_texts(part or other, count, rng)]

    @cached_property
    def _shared(self) -> CaptionIds:
        found = self.dataset.shared_captions()
        if not len(found):
            warnings.warn(
                "retrieval.shared_captions_per_clip is set, but no two training clips have a caption in common: the "
                "terms of shared captions are 0",
                stacklevel=2,
            )
        return found


def with_caption_ids(
    batch: Batch, clips: Sequence[Clip], texts: Sequence[Sequence[Text]], shared: Container[str] | None
) -> Batch:
    """`batch` with the ids of its captions and of all captions of its clips.

    Args:
        batch: of `clips` and `texts`.
        clips: B clips.
        texts: the K captions of each that the batch holds.
        shared: captions that several clips of the data set have; None where those are not trained apart.
    """
    ids = [[caption_id(text.text) for text in of_clip] for of_clip in texts]
    all_ids = [sorted({caption_id(text.text) for text in clip.texts}) for clip in clips]
    width = max(map(len, all_ids))
    is_shared = None
    if shared is not None:
        is_shared = torch.tensor([[text.text in shared for text in of_clip] for of_clip in texts])
    return replace(
        batch,
        text_ids=torch.tensor(ids),
        clip_text_ids=torch.tensor([[*of_clip, *[NO_ID] * (width - len(of_clip))] for of_clip in all_ids]),
        shared=is_shared,
    )


@dataclass(frozen=True)
class _Steps:
    """Each step from `start` on with the clips of its batch: only the training process has their order in memory."""

    batches: TrainingBatches
    start: int

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        return ((step, self.batches.indices(step)) for step in range(self.start, self.batches.sampler.steps))

    def __len__(self) -> int:
        return self.batches.sampler.steps - self.start


class _DrawnBatches(Dataset[Batch]):
    """The batch of a step and its clips, as a loader's worker makes it."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __getitem__(self, drawn: tuple[int, NDArray[np.int64]]) -> Batch:
        return self.batches.make(*drawn)


def training_loader(batches: TrainingBatches, start_step: int, workers: int) -> DataLoader[Batch]:
    """The batches from `start_step` on, prepared by `workers` processes (0: by the training process itself)."""
    return DataLoader(
        _DrawnBatches(batches),
        batch_size=None,
        sampler=_Steps(batches, start_step),
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,  # Lance's threads do not survive a fork
        worker_init_fn=begin_worker,
        prefetch_factor=PREFETCHED if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def begin_worker(_: int) -> None:
    """What each worker of a loader does first: from then on it ends when the process that asked for it does."""
    end_with_parent()


def _long_enough(texts: Sequence[Text], words: int) -> Sequence[Text]:
    """Those of `texts` with at least `words` words, all of them where none has."""
    return [text for text in texts if len(text.text.split()) >= words] or texts


def _draw_texts(texts: Sequence[Text], count: int, rng: np.random.Generator) -> list[Text]:
    """`count` captions of one audio type, each drawn equally often, give or take one."""
    audio_type = texts[int(rng.integers(len(texts)))].audio_type
    alike = [text for text in texts if text.audio_type == audio_type]
    return [alike[int(index)] for index in np.resize(rng.permutation(len(alike)), count)]
