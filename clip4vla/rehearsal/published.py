"""Corpora like the published ones, made: annotation files in their formats, and media named as theirs are.

In: an adapter's name and how many clips each split has. Out: files that the adapter reads without a reject. What a clip
is called and like depends on its split and number alone, so that a corpus can grow without its other clips changing.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip4vla.config import FrozenConfig, read_yaml
from clip4vla.records import SPLITS, Split
from clip4vla.rehearsal.footage import write_sound, write_video
from clip4vla.utils.files import write_json

SIZES = Path(__file__).with_name("corpora.yaml")
WORDS = (
    *("red", "small", "loud", "old", "round", "quiet", "green", "tall", "slow", "bright", "wooden", "wet", "happy"),
    *("dog", "train", "river", "singer", "hammer", "kitchen", "bell", "bird", "crowd", "engine", "door", "guitar"),
)
FEWEST_WORDS = 9
START_S = 20
"""Where in a recording from YouTube a clip begins."""
APART = 1_000_000
"""Between the numbers of clips of different splits."""


class MadeVideo(FrozenConfig):
    """What a made video is like."""

    width: int
    height: int
    fps: int


class PublishedCorpus(FrozenConfig):
    """An entry of `corpora.yaml`, which describes the fields."""

    clips: dict[Split, int]
    captions: dict[Split, int]
    seconds: float
    video: MadeVideo | None
    source: str


FOLDER = PublishedCorpus(
    clips={},
    captions=dict.fromkeys(SPLITS, 2),
    seconds=10,
    video=MadeVideo(width=640, height=360, fps=25),
    source="a folder of one's own: its size is not known here",
)


@dataclass(frozen=True)
class MadeClip:
    """A clip to be made."""

    number: int
    """Over all splits."""
    split: Split
    captions: tuple[str, ...]
    seconds: float

    @property
    def youtube_id(self) -> str:
        """Eleven characters, as YouTube's ids have."""
        return f"made{self.number:07d}"

    @property
    def span(self) -> tuple[int, int]:
        """Of the recording, in seconds."""
        return START_S, START_S + round(self.seconds)


def published_corpora() -> dict[str, PublishedCorpus]:
    """What is known of the published corpora, by adapter."""
    return {name: PublishedCorpus.model_validate(tree) for name, tree in read_yaml(SIZES).items()}


def published_corpus(adapter: str) -> PublishedCorpus:
    """What is known of the corpus that `adapter` reads.

    Raises:
        ValueError: nothing is.
    """
    known = published_corpora() | {"folder": FOLDER}
    if adapter not in known:
        raise ValueError(f"no corpus can be made for the adapter {adapter!r}, only for {', '.join(sorted(known))}")
    return known[adapter]


def make_corpus(
    adapter: str, annotations: Path, media: Path, counts: Mapping[Split, int], min_words: int = FEWEST_WORDS
) -> None:
    """Write the annotation files of `counts` clips of each split, and those of their media that aren't there yet.

    Args:
        adapter: its name, see `clip4vla.corpora.base`.
        annotations: directory of the annotation files.
        media: directory of the media.
        counts: clips of each split; a split that the published corpus lacks is left out.
        min_words: words that a caption has at least.

    Raises:
        ValueError: no corpus can be made for the adapter.
    """
    corpus = published_corpus(adapter)
    clips = list(_clips(corpus, counts, max(min_words, FEWEST_WORDS)))
    annotations.mkdir(parents=True, exist_ok=True)
    media.mkdir(parents=True, exist_ok=True)
    files = WRITERS[adapter](annotations, clips)
    for number, (name, seconds) in enumerate(files.items()):
        if (media / name).exists():
            continue
        if corpus.video is None:
            write_sound(media / name, seconds, number)
        else:
            write_video(media / name, seconds, **corpus.video.model_dump(), seed=number)


def _clips(corpus: PublishedCorpus, counts: Mapping[Split, int], words: int) -> Iterator[MadeClip]:
    for place, split in enumerate(SPLITS):
        for index in range(counts.get(split, 0) if split in corpus.captions else 0):
            number = place * APART + index
            captions = [_caption(number, which, words) for which in range(corpus.captions[split])]
            if len(captions) > 1:
                captions[-1] = _caption(0, 1, words)  # several clips have it, as trainings with shared captions need
            yield MadeClip(number, split, tuple(captions), corpus.seconds)


def _caption(number: int, which: int, words: int) -> str:
    """A sentence of `words` words that no other clip has."""
    start = 7 * number + 3 * which
    said = [WORDS[(start + step * (1 + number % 5)) % len(WORDS)] for step in range(words - 2)]
    return f"clip {number * 100 + which} {' '.join(said)}"


Writer = Callable[[Path, Sequence[MadeClip]], dict[str, float]]
"""Writes annotation files to a directory; returns the seconds of each media file by its name."""


def _write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


def _of(clips: Sequence[MadeClip], *splits: Split) -> list[MadeClip]:
    return [clip for clip in clips if clip.split in splits]


MSRVTT_SPLITS: dict[Split, str] = {"train": "train", "val": "validate", "test": "test"}


def _msrvtt(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
    videos = [
        {
            "category": 0,
            "url": f"https://www.youtube.com/watch?v={clip.youtube_id}",
            "video_id": f"video{clip.number}",
            "start time": float(clip.span[0]),
            "end time": float(clip.span[1]),
            "split": MSRVTT_SPLITS[clip.split],
            "id": clip.number,
        }
        for clip in clips
    ]
    said = [(f"video{clip.number}", caption) for clip in clips for caption in clip.captions]
    sentences = [{"caption": text, "video_id": name, "sen_id": index} for index, (name, text) in enumerate(said)]
    info = {"year": "2016", "version": "1.0", "description": "made", "contributor": "none", "data_created": ""}
    write_json(annotations / "MSRVTT_data.json", {"info": info, "videos": videos, "sentences": sentences})
    return {f"video{clip.number}.mp4": clip.seconds for clip in clips}


def _msrvtt_1ka(train_list: str) -> Writer:
    def write(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
        files = _msrvtt(annotations, clips)
        test = [
            [f"ret{index}", f"msr{clip.number}", f"video{clip.number}", clip.captions[0]]
            for index, clip in enumerate(_of(clips, "test"))
        ]
        _write_csv(annotations / "MSRVTT_JSFUSION_test.csv", ["key", "vid_key", "video_id", "sentence"], test)
        # the published list has all clips but those of the test; those of validation are taken out of it
        for name, splits in ((train_list, ("train", "val")), ("MSRVTT_val.csv", ("val",))):
            ids = [[f"video{clip.number}"] for clip in clips if clip.split in splits]
            _write_csv(annotations / name, ["video_id"], ids)
        return files

    return write


def _vatex_id(clip: MadeClip) -> str:
    start, end = clip.span
    return f"{clip.youtube_id}_{start:06d}_{end:06d}"


def _vatex_json(path: Path, clips: Sequence[MadeClip], has_chinese: bool) -> None:
    chinese = {"chCap": ["一个人在打鼓。"]} if has_chinese else {}
    write_json(path, [{"videoID": _vatex_id(clip), "enCap": list(clip.captions), **chinese} for clip in clips])


def _vatex(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
    _vatex_json(annotations / "vatex_training_v1.0.json", _of(clips, "train"), has_chinese=True)
    _vatex_json(annotations / "vatex_validation_v1.0.json", _of(clips, "val"), has_chinese=True)
    _vatex_json(annotations / "vatex_public_test_english_v1.1.json", _of(clips, "test"), has_chinese=False)
    return {f"{_vatex_id(clip)}.mp4": clip.seconds for clip in clips}


def _vatex_hgr(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
    _vatex_json(annotations / "vatex_training_v1.0.json", _of(clips, "train"), has_chinese=True)
    _vatex_json(annotations / "vatex_validation_v1.0.json", _of(clips, "val", "test"), has_chinese=True)
    for split in SPLITS:
        lines = "".join(f"{_vatex_id(clip)}\n" for clip in _of(clips, split))
        (annotations / f"{split}_list.txt").write_text(lines, encoding="utf-8")
    return {f"{_vatex_id(clip)}.mp4": clip.seconds for clip in clips}


def _audiocaps(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
    for split in SPLITS:
        rows = [
            [100 * clip.number + which, clip.youtube_id, clip.span[0], caption]
            for clip in _of(clips, split)
            for which, caption in enumerate(clip.captions)
        ]
        _write_csv(annotations / f"{split}.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows)
    return {f"{clip.youtube_id}_{clip.span[0]}.mp4": clip.seconds for clip in clips}


def _clotho(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
    head = ["file_name", *(f"caption_{number}" for number in range(1, 6))]
    parts: dict[Split, str] = {"train": "development", "val": "validation", "test": "evaluation"}
    for split, part in parts.items():
        rows = [[f"made {clip.number}.wav", *clip.captions] for clip in _of(clips, split)]
        _write_csv(annotations / f"clotho_captions_{part}.csv", head, rows)
    return {f"made {clip.number}.wav": clip.seconds for clip in clips}


LABELS = {"/m/09x0r": "Speech", "/t/dd00088": "Gush", "/m/068hy": "Domestic animals, pets"}


def _audioset(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
    names = [[index, mid, name] for index, (mid, name) in enumerate(LABELS.items())]
    _write_csv(annotations / "class_labels_indices.csv", ["index", "mid", "display_name"], names)
    train = _of(clips, "train")
    parts = {"balanced_train": train[::2], "unbalanced_train": train[1::2], "eval": _of(clips, "test")}
    for part, of_part in parts.items():
        lines = [
            f"# Segments csv made\n# num_ytids={len(of_part)}\n# YTID, start_seconds, end_seconds, positive_labels"
        ]
        for clip in of_part:
            start, end = clip.span
            labels = ",".join(list(LABELS)[: 1 + clip.number % len(LABELS)])
            lines.append(f'{clip.youtube_id}, {start}.000, {end}.000, "{labels}"')
        (annotations / f"{part}_segments.csv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return {f"{clip.youtube_id}_{clip.span[0]}.mp4": clip.seconds for clip in clips}


CAPTIONS_PER_VIDEO = 4


def _howto100m(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
    videos = [clips[first : first + CAPTIONS_PER_VIDEO] for first in range(0, len(clips), CAPTIONS_PER_VIDEO)]
    rows = [[video[0].youtube_id, "Food and Entertaining", "Recipes", 1, 1] for video in videos]
    _write_csv(annotations / "HowTo100M_v1.csv", ["video_id", "category_1", "category_2", "rank", "task_id"], rows)
    said = {
        video[0].youtube_id: {
            "start": [place * clip.seconds for place, clip in enumerate(video)],
            "end": [(place + 1) * clip.seconds for place, clip in enumerate(video)],
            "text": [clip.captions[0] for clip in video],
        }
        for video in videos
    }
    (annotations / "raw_caption.json").write_text(json.dumps(said), encoding="utf-8")
    return {f"{video[0].youtube_id}.mp4": sum(clip.seconds for clip in video) for video in videos}


def _folder(annotations: Path, clips: Sequence[MadeClip]) -> dict[str, float]:
    rows = [[f"{c.number}.mp4", text, 0, c.seconds, c.split, ""] for c in clips for text in c.captions]
    _write_csv(annotations / "clips.csv", ["path", "text", "start", "end", "split", "audio_type"], rows)
    return {f"{clip.number}.mp4": clip.seconds for clip in clips}


WRITERS: dict[str, Writer] = {
    "audiocaps": _audiocaps,
    "audioset": _audioset,
    "clotho": _clotho,
    "folder": _folder,
    "howto100m": _howto100m,
    "msrvtt": _msrvtt,
    "msrvtt-1ka": _msrvtt_1ka("MSRVTT_train.9k.csv"),
    "msrvtt-1ka-7k": _msrvtt_1ka("MSRVTT_train.7k.csv"),
    "vatex": _vatex,
    "vatex-hgr": _vatex_hgr,
}
