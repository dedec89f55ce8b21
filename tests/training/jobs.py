"""A tiny data set of clips, and trainings on it."""

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from PIL import Image

from clip4vla.clips.format import SCHEMA, encode_row
from clip4vla.media.decode import Span
from clip4vla.params import load_params
from clip4vla.records import SourceRecord, Text
from clip4vla.training.job import Corpus, Job
from tests.project import REPOSITORY
from tests.training.tiny import AUDIO, MODEL

CLIPS = 16
STEPS = 30


def write_clips(path: Path, mode: str = "create") -> Path:
    """A Lance data set of noise; the first clip has no sound."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(CLIPS):
        frame = Image.fromarray(rng.integers(0, 255, (36, 36, 3), np.uint8))
        audio = None if index == 0 else rng.integers(-9000, 9000, (1, 12000), np.int16)
        texts = (Text(f"word{index} there", "verbal"), Text(f"a thing {index}", "nonverbal"))
        rows.append(encode_row(SourceRecord(f"clip{index}", "m.mp4", "train", texts), Span([frame], audio), 90))
    lance.write_dataset(pa.Table.from_pylist(rows, SCHEMA), str(path), mode=mode)
    return path


def make_job(directory: Path, name: str, **trainer: object) -> Job:
    """A pretraining with every kind of term on two ranks, of 8 clips a step."""
    params = load_params(REPOSITORY / "params.yaml")
    settings = {"ranks": 2, "checkpoint_every": 3, "keep_checkpoints": 2, "log_every": 1, "loader_workers": 0}
    length = {
        "epochs": STEPS * 8 // CLIPS,
        "batch_size": 8,
        "micro_batch_size": 2,
        "frames": 1,
        "words": 12,
        "audio_audio": 0.5,
    }
    return Job(
        task="pretrain",
        seed=3,
        corpora=(Corpus(clips=directory / "train.lance", weight=1.0),),
        start_from=None,
        audio_token="sample",
        training=params.pretrain.model_copy(update=length | {"audio_audio": 0.5}),
        model=MODEL,
        audio=AUDIO,
        trainer=params.trainer.model_copy(update=settings | {"precision": "fp32"} | trainer),
        root=directory,
        checkpoints=directory / "checkpoints" / name,
        out=directory / "runs" / name,
        run_id=None,
    )
