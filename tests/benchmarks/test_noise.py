"""Levels of what is mixed, and scores that are the evaluator's where the sound is the clips' own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.clips import write_clips
from benchmarks.noise import Mixer, Scorer
from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import EvaluationConfig, load_config
from clip4vla.corpora.stampscenes.scenes import Scene
from clip4vla.corpora.stampscenes.stamps import Stamp
from clip4vla.evaluation.queries import Query, QuerySet
from clip4vla.evaluation.retrieval_evaluator import RetrievalEvaluator
from clip4vla.inference.embedder import Embedder
from tests.inference.tiny import INFERENCE, expert_model, tiny_model
from tests.project import REPOSITORY

RATE = 16_000
VOICE_HZ, EFFECT_HZ = 500, 3000
CLIPS = 6


def tone(frequency: int) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(4 * RATE) / RATE).astype(np.float32)


@pytest.fixture
def mixer() -> Mixer:
    stamp = Stamp("a bell", "una campana", Image.new("RGBA", (8, 8)), tone(VOICE_HZ), tone(EFFECT_HZ))
    scenes = [
        Scene("video0", "test", 0, 0, 0, None),
        Scene("video1", "test", 0, None, None, None, soundtrack="none"),
    ]
    composition = load_config(REPOSITORY / "params.yaml").stampscenes.model_copy(update={"noise_db": (-60.0, -60.0)})
    return Mixer([stamp], scenes, composition, seed=0)


def levels(wave: np.ndarray) -> tuple[float, float, float]:
    """Decibels of the voice, the effect and the rest."""
    power = np.abs(np.fft.rfft(wave[0] / 32767)) ** 2
    bins = np.fft.rfftfreq(wave.shape[1], 1 / RATE)
    of_voice, of_effect = (np.abs(bins - frequency) < 20 for frequency in (VOICE_HZ, EFFECT_HZ))
    parts = (power[of_voice].sum(), power[of_effect].sum(), power[~of_voice & ~of_effect].sum())
    return tuple(10 * np.log10(part) for part in parts)


@pytest.mark.parametrize("level", [-5.0, 0.0, 15.0])
def test_the_competing_sound_is_as_far_below_what_is_asked_for(mixer: Mixer, level: float) -> None:
    voice, effect, _ = levels(mixer.with_competitor("said", level)["video0"])
    assert voice - effect == pytest.approx(level, abs=0.3)
    voice, effect, _ = levels(mixer.with_competitor("heard", level)["video0"])
    assert effect - voice == pytest.approx(level, abs=0.3)


@pytest.mark.parametrize("level", [-10.0, 0.0, 20.0])
def test_the_noise_is_as_far_below_the_effect_and_silent_clips_stay_so(mixer: Mixer, level: float) -> None:
    sounds = mixer.with_noise(level)
    assert sounds.keys() == {"video0"}
    _, effect, noise = levels(sounds["video0"])
    assert effect - noise == pytest.approx(level, abs=0.5)
    np.testing.assert_array_equal(sounds["video0"], mixer.with_noise(level)["video0"])


def test_scores_of_the_clips_own_sound_are_the_evaluator_s(tmp_path: Path) -> None:
    clips = ClipDataset([write_clips(tmp_path / "test.lance", CLIPS)])
    ids = clips.clip_ids
    queries = QuerySet(
        tuple(
            Query(query=f"{text} {index}", kind=kind, phrasing="trained", clips=(ids[index],))
            for kind, text in (("heard", "the sound of"), ("said", "the words"))
            for index in range(1, CLIPS)
        )
    )
    embedder = Embedder(expert_model(), INFERENCE, batch_size=4)
    scorer = Scorer(embedder, clips, queries)
    own = {clip.clip_id: clip.audio for clip in clips.take(range(CLIPS)) if clip.audio is not None}
    found = scorer.score(own)
    evaluator = RetrievalEvaluator(embedder, EvaluationConfig(bootstrap=100, batch_size=4))
    expected = evaluator.score(evaluator.embed(clips, queries))
    for kind in ("heard", "said"):
        assert found[kind]["default"] == pytest.approx(expected.values[f"by_query/{kind}/both/R@1"])
        assert found[kind].keys() == {"default", "right token", "other token"}
    curves = scorer.curves([own, {}])
    assert all(len(values) == 2 for by_score in curves.values() for values in by_score.values())
    silent = scorer.score({})
    assert silent["heard"]["right token"] == pytest.approx(100 / CLIPS, abs=20)  # all clips alike: chance


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    clips = ClipDataset([write_clips(tmp_path / "test.lance", CLIPS)])
    query = Query(query="a bell", kind="heard", phrasing="trained", clips=(clips.clip_ids[0],))
    queries = QuerySet((query, query.model_copy(update={"kind": "said"})))
    with pytest.raises(ValueError, match="the model has no expert 'nonverbal'"):
        Scorer(Embedder(tiny_model(), INFERENCE), clips, queries)
