"""Clips in, batches out: a seeded order over one or several data sets, split by rank, resumable at any step.

The batch of step s is a pure function of (seed, s): a resumed run, on any number of ranks, goes on with the very
next clips. Shape legend: see `clip4vla.batch`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip4vla.batch import AUDIO_TYPE_INDEX, Batch
from clip4vla.clips.format import Clip, decode_frame, decode_row
from clip4vla.records import Text

COLUMNS = ["clip_id", "frames", "audio", "channels", "texts"]
Tokenize = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class View:
    """What of a clip reaches the towers."""

    frames: int
    image_size: int
    max_samples: int
    """Longest sound in samples; a longer one is cropped."""
    tokenize: Tokenize
    """Sentences to (B, L) int64; pickled to the workers."""
    sentences: int = 1
    """Sentences of a clip in a training batch."""
    time_shift: bool = False
    """Whether training turns each sound round by a random amount."""
    min_words: int = 0
    """Shorter sentences are left out of training, but for clips that have no others."""


class ClipStore:
    """Random access to the clips of one or several Lance data sets, one after the other.

    Opened on first use, so that it can be sent to a worker process.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        missing = [str(path) for path in paths if not path.is_dir()]
        if missing or not paths:
            raise ValueError(f"no clips at {', '.join(missing) or 'all'}: run `dvc repro clips` first")
        self.paths = tuple(paths)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    @cached_property
    def _datasets(self) -> list[Any]:
        import lance

        return [lance.dataset(str(path)) for path in self.paths]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Clips in each data set."""
        return tuple(dataset.count_rows() for dataset in self._datasets)

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def clip_ids(self) -> tuple[str, ...]:
        """The id of every clip, in order; an id that two data sets share is there twice."""
        tables = [dataset.to_table(columns=["clip_id"]) for dataset in self._datasets]
        return tuple(clip_id for table in tables for clip_id in table["clip_id"].to_pylist())

    def sentences(self) -> Iterator[str]:
        """All sentences of all clips, of which nothing else is read."""
        for dataset in self._datasets:
            for batch in dataset.to_batches(columns=["texts"]):
                for texts in batch.column("texts").to_pylist():
                    yield from (text["text"] for text in texts)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Clip]:
        """The clips at `indices`, in that order.

        Raises:
            IndexError: there is no such clip.
        """
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        wanted = np.asarray(indices)
        clips: list[Clip | None] = [None] * len(wanted)
        for dataset, low, high in zip(self._datasets, starts[:-1], starts[1:], strict=True):
            places = np.flatnonzero((wanted >= low) & (wanted < high))
            if len(places):
                rows = dataset.take((wanted[places] - low).tolist(), columns=COLUMNS).to_pylist()
                for place, row in zip(places, rows, strict=True):
                    clips[place] = decode_row(row)
        if None in clips:
            raise IndexError(f"of {len(self)} clips there is none at {wanted[[clip is None for clip in clips]]}")
        return clips  # type: ignore[return-value]


@dataclass(frozen=True)
class Order:
    """Which clips the batch of a step holds: a fresh permutation per epoch, the last odd clips left out.

    `weights` gives each data set its share of an epoch (None: every clip once).
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None
    batch_size: int
    epochs: int
    seed: int

    @property
    def clips_per_step(self) -> int:
        """`batch_size`, or all clips where there are fewer."""
        return min(self.batch_size, sum(self.sizes))

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return sum(self.sizes) // self.clips_per_step

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def indices(self, step: int) -> NDArray[np.int64]:
        """The clips of `step`, over all ranks."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.clips_per_step
        return _permutation(self, epoch)[start : start + self.clips_per_step]

    def quotas(self) -> list[int]:
        """Clips of each data set in an epoch."""
        if self.weights is None:
            return list(self.sizes)
        bounds = np.round(np.cumsum([0.0, *self.weights]) / sum(self.weights) * sum(self.sizes)).astype(int)
        return np.diff(bounds).tolist()


@lru_cache(maxsize=2)
def _permutation(order: Order, epoch: int) -> NDArray[np.int64]:
    rng = np.random.default_rng((order.seed, epoch))
    parts, low = [], 0
    for size, quota in zip(order.sizes, order.quotas(), strict=True):
        rounds = -(-quota // size)
        drawn = np.concatenate([rng.permutation(size) for _ in range(rounds)]) if rounds else np.zeros(0, int)
        parts.append(low + drawn[:quota])
        low += size
    return rng.permutation(np.concatenate(parts))


class TrainingBatches(Dataset[Batch]):
    """The batches of one rank by step; cropping, frames and sentences are drawn anew each epoch.

    What is drawn for a clip depends on its place in the whole batch, so that it's the same on any number of ranks.
    """

    def __init__(self, store: ClipStore, view: View, order: Order, rank: int, world_size: int) -> None:
        self.store, self.view, self.order = store, view, order
        self.rank, self.world_size = rank, world_size

    def __getitem__(self, step: int) -> Batch:
        places = range(self.rank, self.order.clips_per_step, self.world_size)
        rngs = [np.random.default_rng((self.order.seed, step, place)) for place in places]
        clips = self.store.take(self.order.indices(step)[places])
        told = [_long_enough(clip.texts, self.view.min_words) for clip in clips]
        texts = [_draw_texts(of_clip, self.view.sentences, rng) for of_clip, rng in zip(told, rngs, strict=True)]
        return collate(clips, texts, self.view, rngs)


def training_loader(batches: TrainingBatches, start_step: int, workers: int) -> DataLoader[Batch]:
    """The batches from `start_step` on, prepared by `workers` processes (0: by the training process itself)."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(start_step, batches.order.steps),
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,  # Lance's threads do not survive a fork
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def _long_enough(texts: Sequence[Text], words: int) -> Sequence[Text]:
    """Those of `texts` with at least so many words, all where none has."""
    return [text for text in texts if len(text.text.split()) >= words] or texts


def _draw_texts(texts: Sequence[Text], count: int, rng: np.random.Generator) -> list[Text]:
    """`count` sentences of one audio type, each as often as any other give or take one."""
    audio_type = texts[int(rng.integers(len(texts)))].audio_type
    alike = [text for text in texts if text.audio_type == audio_type]
    return [alike[int(index)] for index in np.resize(rng.permutation(len(alike)), count)]


def collate(
    clips: Sequence[Clip], texts: Sequence[Sequence[Text]], view: View, rngs: Sequence[np.random.Generator] | None
) -> Batch:
    """Clips and K sentences each to a batch.

    Args:
        clips: B of them.
        texts: the sentences of each, of one audio type.
        view: what of a clip is wanted.
        rngs: draw the crops and frames of each clip; None takes the middle of everything.
    """
    drawn: Sequence[np.random.Generator | None] = rngs or [None] * len(clips)
    frames, video_mask = _stack_frames(clips, view, drawn)
    waveform, samples = _stack_audio(clips, view, drawn)
    return Batch(
        clip_ids=tuple(clip.clip_id for clip in clips),
        frames=frames,
        video_mask=video_mask,
        waveform=waveform,
        samples=samples,
        tokens=view.tokenize([text.text for of_clip in texts for text in of_clip]).unflatten(0, (len(clips), -1)),
        audio_types=torch.tensor([AUDIO_TYPE_INDEX[of_clip[0].audio_type] for of_clip in texts]),
    )


def _stack_frames(
    clips: Sequence[Clip], view: View, rngs: Sequence[np.random.Generator | None]
) -> tuple[Tensor, Tensor]:
    """(B, F, 3, H, W) uint8 and (B, F) bool."""
    size = view.image_size
    frames = np.zeros((len(clips), view.frames, size, size, 3), np.uint8)
    mask = np.zeros((len(clips), view.frames), bool)
    for row, (clip, rng) in enumerate(zip(clips, rngs, strict=True)):
        chosen = _choose(len(clip.frames), view.frames, rng)
        corner = rng.uniform(0, 1, 2) if rng else np.array([0.5, 0.5])
        for place, index in enumerate(chosen):
            frames[row, place] = _crop(decode_frame(clip.frames[index]), size, corner)
            mask[row, place] = True
    return torch.from_numpy(frames).permute(0, 1, 4, 2, 3), torch.from_numpy(mask)


def _choose(stored: int, wanted: int, rng: np.random.Generator | None) -> list[int]:
    """Indices of `wanted` evenly spread frames of those stored: the middle of each share, or anywhere in it."""
    count = min(stored, wanted)
    share = stored / max(count, 1)
    places = rng.uniform(0, 1, count) if rng else np.full(count, 0.5)
    return [min(stored - 1, int((i + place) * share)) for i, place in enumerate(places)]


def _crop(frame: NDArray[np.uint8], size: int, corner: NDArray[np.float64]) -> NDArray[np.uint8]:
    room = np.array(frame.shape[:2]) - size
    if (room < 0).any():
        raise ValueError(f"a stored frame is {frame.shape[:2]}, smaller than the tower's {size}: raise clips.size")
    top, left = np.round(corner * room).astype(int)
    return frame[top : top + size, left : left + size]


def _stack_audio(
    clips: Sequence[Clip], view: View, rngs: Sequence[np.random.Generator | None]
) -> tuple[Tensor, Tensor]:
    """(B, C, S) float32 in -1..1 and (B,) int64; mono becomes two equal channels beside a stereo clip."""
    channels = max((clip.audio.shape[0] for clip in clips if clip.audio is not None), default=1)
    waveform = np.zeros((len(clips), channels, view.max_samples), np.float32)
    samples = np.zeros(len(clips), np.int64)
    for row, (clip, rng) in enumerate(zip(clips, rngs, strict=True)):
        if clip.audio is not None:
            piece = _window(clip.audio, view.max_samples, rng)
            if rng and view.time_shift:
                piece = np.roll(piece, rng.integers(max(1, piece.shape[1])), axis=1)
            samples[row] = piece.shape[1]
            waveform[row, :, : piece.shape[1]] = piece / np.float32(32768)
    return torch.from_numpy(waveform), torch.from_numpy(samples)


def _window(audio: NDArray[np.int16], longest: int, rng: np.random.Generator | None) -> NDArray[np.int16]:
    room = max(0, audio.shape[1] - longest)
    start = int(rng.integers(room + 1)) if rng else room // 2
    return audio[:, start : start + longest]
