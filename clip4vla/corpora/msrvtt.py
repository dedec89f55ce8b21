"""MSR-VTT (Xu et al., CVPR 2016), and the 1k-A split for retrieval (Yu et al., ECCV 2018).

`MSRVTT_data.json` or, where that isn't there, every `*videodatainfo*.json`: `videos` has an item per clip with
`video_id` and `split` (train, validate, test: 6,513, 497 and 2,990 clips), `sentences` one per caption with
`video_id` and `caption`.

The 1k-A split is named by lists beside it, which say which entries there are; the JSON has their sentences:
    MSRVTT_JSFUSION_test.csv   video_id, sentence: 1,000 clips, each with this one sentence
    MSRVTT_train.9k.csv        video_id: all the others (or MSRVTT_train.7k.csv: 7,010 of them)
    MSRVTT_val.csv             video_id: ours, if wanted; there is no published one. They leave the training clips.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip4vla.corpora.tables import place_of_item, read_csv, read_json
from clip4vla.records import Reject, SourceRecord, Split, Text

SPLITS: dict[str, Split] = {"train": "train", "validate": "val", "val": "val", "test": "test"}
PATTERNS = ("MSRVTT_data.json", "*videodatainfo*.json")
"""The first of which there are files says everything: the others would say it again."""


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of every annotation file under `annotations`, official splits; see `base.Adapter`."""
    for file in _find_files(annotations):
        yield from _read_file(file)


def read_1ka(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of the 1k-A split, trained on 9,000; see `base.Adapter`."""
    yield from _read_lists(annotations, "MSRVTT_train.9k.csv")


def read_1ka_7k(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of the 1k-A split, trained on 7,010; see `base.Adapter`."""
    yield from _read_lists(annotations, "MSRVTT_train.7k.csv")


def _find_files(annotations: Path) -> list[Path]:
    for pattern in PATTERNS:
        if files := sorted(annotations.glob(pattern)):
            return files
    raise ValueError(f"{annotations} has neither MSRVTT_data.json nor a *videodatainfo*.json")


def _read_file(file: Path) -> Iterator[SourceRecord | Reject]:
    tree = _load(file)
    captions = _captions(tree, file)
    for index, video in enumerate(tree["videos"]):
        video_id, split = (_field(video, key, file, "videos", index) for key in ("video_id", "split"))
        texts = tuple(captions.pop(video_id, ()))
        if split not in SPLITS:
            yield Reject(video_id, video_id, split, "unknown_split", f"{file}: split {split!r}")
        else:
            yield SourceRecord(video_id, video_id, SPLITS[split], texts)
    for video_id, texts_left in captions.items():
        yield Reject(video_id, video_id, "", "unknown_video", f"{file}: {len(texts_left)} sentences, no such video")


def _read_lists(annotations: Path, train_list: str) -> Iterator[SourceRecord | Reject]:
    captions: dict[str, list[Text]] = {}
    for file in _find_files(annotations):
        captions |= _captions(_load(file), file)
    test: dict[str, list[Text]] = defaultdict(list)
    for row in read_csv(annotations / "MSRVTT_JSFUSION_test.csv", ("video_id", "sentence")):
        test[row.cells["video_id"].strip()].append(Text(row.cells["sentence"]))
    for video_id, texts in test.items():
        yield _listed(video_id, "test", texts, "MSRVTT_JSFUSION_test.csv")
    val = _read_ids(annotations / "MSRVTT_val.csv") if (annotations / "MSRVTT_val.csv").exists() else []
    train = _read_ids(annotations / train_list)
    of_val = {video_id for video_id, _ in val}
    splits: tuple[tuple[Split, list[tuple[str, str]]], ...] = (("val", val), ("train", train))
    for split, ids in splits:
        for video_id, where in ids:
            if video_id in test:
                yield Reject(video_id, video_id, split, "in_test", where)
            elif split == "val" or video_id not in of_val:
                yield _listed(video_id, split, captions.get(video_id, []), where)


def _listed(video_id: str, split: Split, texts: list[Text], where: str) -> SourceRecord | Reject:
    if not video_id:
        return Reject("", "", split, "no_id", where)
    return SourceRecord(video_id, video_id, split, tuple(texts))


def _read_ids(file: Path) -> list[tuple[str, str]]:
    """The ids of a list, each with the place where it is."""
    return [(row.cells["video_id"].strip(), row.where) for row in read_csv(file, ("video_id",))]


def _load(file: Path) -> dict[str, Any]:
    tree = read_json(file)
    for key in ("videos", "sentences"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise ValueError(f"{file}:1: no list {key!r}; MSR-VTT's schema has videos and sentences")
    return tree


def _captions(tree: dict[str, Any], file: Path) -> dict[str, list[Text]]:
    captions: dict[str, list[Text]] = defaultdict(list)
    for index, sentence in enumerate(tree["sentences"]):
        caption = sentence.get("caption") if isinstance(sentence, dict) else None
        if not isinstance(caption, str):
            raise _lacking("caption", sentence, file, "sentences", index)
        captions[_field(sentence, "video_id", file, "sentences", index)].append(Text(caption))
    return captions


def _field(item: Any, key: str, file: Path, table: str, index: int) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str) or not value:
        raise _lacking(key, item, file, table, index)
    return value


def _lacking(key: str, item: Any, file: Path, table: str, index: int) -> ValueError:
    where = place_of_item(file, index, table)
    return ValueError(f"{where}: item {index} of {table!r} has no {key!r}: {json.dumps(item)[:200]}")
