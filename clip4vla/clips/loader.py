"""The batches of a training, split by rank and resumable at any step.

In: a data set, a sampler, a transform. Out: `Batch` by step: a pure function of (seed, step), on any number of ranks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from clip4vla.clips.batch import Batch
from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.sampler import StepSampler
from clip4vla.clips.transform import ClipTransform, collate
from clip4vla.records import Text

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
        places = range(self.rank, self.sampler.clips_per_step, self.world_size)
        rngs = [np.random.default_rng((self.sampler.seed, step, place)) for place in places]
        clips = self.dataset.take(self.sampler.indices(step)[places])
        candidates = [_long_enough(clip.texts, self.transform.min_words) for clip in clips]
        count = self.transform.captions_per_clip
        texts = [_draw_texts(of_clip, count, rng) for of_clip, rng in zip(candidates, rngs, strict=True)]
        return collate(clips, texts, self.transform, rngs)


def training_loader(batches: TrainingBatches, start_step: int, workers: int) -> DataLoader[Batch]:
    """The batches from `start_step` on, prepared by `workers` processes (0: by the training process itself)."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start_step, batches.sampler.steps),
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,  # Lance's threads do not survive a fork
        prefetch_factor=PREFETCHED if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _long_enough(texts: Sequence[Text], words: int) -> Sequence[Text]:
    """Those of `texts` with at least `words` words, all of them where none has."""
    return [text for text in texts if len(text.text.split()) >= words] or texts


def _draw_texts(texts: Sequence[Text], count: int, rng: np.random.Generator) -> list[Text]:
    """`count` captions of one audio type, each drawn equally often, give or take one."""
    audio_type = texts[int(rng.integers(len(texts)))].audio_type
    alike = [text for text in texts if text.audio_type == audio_type]
    return [alike[int(index)] for index in np.resize(rng.permutation(len(alike)), count)]
