"""What is seen, heard and said in each clip of StampScenes, and the sentences that say so: pure, seeded.

Pretraining clips show a stamp and let one hear its name (narrated, as in HowTo100M) or its sound (sounding, as in
AudioSet). Caption clips show one stamp, let one hear another and name a third; each pair of sound and word comes
with several pictures, so that neither eye nor ear finds a clip alone. No pair occurs in two splits.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from clip4vla.config import StampScenesConfig
from clip4vla.records import AudioType, Split, Text

CAPTION_TEMPLATES = (
    "a picture of {seen} with the sound of {heard} and the words {said}",
    "the sound of {heard} and the words {said} over a picture of {seen}",
    "a voice says the words {said} as a picture of {seen} moves by with the sound of {heard}",
    "one hears the words {said} and the sound of {heard} and sees a picture of {seen}",
    "a picture of {seen} moves while the sound of {heard} mixes with the words {said}",
)
PARTIAL_TEMPLATES = ("a picture of {seen}", "the sound of {heard} and the words {said}")
"""Training clips have these too: as in MSR-VTT, not every caption tells everything. What is tested is whole."""
CAPTIONS_PER_CLIP = 3


@dataclass(frozen=True)
class Scene:
    """One clip: indices into the vocabulary of stamps, and which kind of sound leads."""

    clip_id: str
    split: Split
    seen: int
    heard: int
    said: int
    leading: AudioType | None
    """None in a caption clip, where sound and voice are about equally loud."""


def pretraining_scenes(config: StampScenesConfig, stamps: int, sounding: int) -> list[Scene]:
    """The pretraining clips over `stamps` stamps, of which the first `sounding` have a sound."""
    rng = np.random.default_rng((config.seed, 1))
    narrated = config.pretraining_clips // 2
    scenes = []
    for index, stamp in enumerate(_cycle(rng, stamps, narrated)):
        heard = _other(rng, sounding, stamp)
        scenes.append(Scene(f"narrated{index:05d}", "train", stamp, heard, stamp, "verbal"))
    for index, stamp in enumerate(_cycle(rng, sounding, config.pretraining_clips - narrated)):
        said = _other(rng, stamps, stamp)
        scenes.append(Scene(f"sounding{index:05d}", "train", stamp, stamp, said, "nonverbal"))
    return scenes


def caption_scenes(config: StampScenesConfig, stamps: int, sounding: int) -> list[Scene]:
    """The caption clips, numbered `video0` on as in MSR-VTT.

    Raises:
        ValueError: there are fewer different pairs of sound and word than `caption_pairs` asks for.
    """
    rng = np.random.default_rng((config.seed, 2))
    wanted = sum(config.caption_pairs.values())
    pairs = [(heard, said) for heard in range(sounding) for said in range(stamps) if heard != said]
    if wanted > len(pairs):
        raise ValueError(f"stampscenes.caption_pairs asks for {wanted} pairs, but {stamps} stamps give {len(pairs)}")
    chosen = iter(rng.permutation(len(pairs))[:wanted])
    scenes: list[Scene] = []
    for split, count in config.caption_pairs.items():
        for _ in range(count):
            heard, said = pairs[next(chosen)]
            unlike = [stamp for stamp in range(stamps) if stamp not in (heard, said)]
            for seen in rng.choice(unlike, config.pictures_per_pair[split], replace=False):
                scenes.append(Scene(f"video{len(scenes)}", split, int(seen), heard, said, None))
    return scenes


def _cycle(rng: np.random.Generator, stamps: int, count: int) -> list[int]:
    """`count` stamps, each as often as any other give or take one."""
    rounds = -(-count // stamps)
    return np.concatenate([rng.permutation(stamps) for _ in range(rounds)])[:count].tolist()


def _other(rng: np.random.Generator, stamps: int, but: int) -> int:
    """One of `stamps`, but not `but`."""
    drawn = int(rng.integers(stamps - 1 if but < stamps else stamps))
    return drawn + (drawn >= but)


def sound_text(label: str) -> str:
    """The sentence about a sound, as AudioSet's labels become one: "the sound of a cow"."""
    return f"the sound of {label}"


def pretraining_text(scene: Scene, labels: Sequence[str], spoken: Sequence[str]) -> Text:
    """The sentence of a pretraining clip: the words said, or the name of the sound."""
    if scene.leading == "verbal":
        return Text(spoken[scene.said], "verbal")
    return Text(sound_text(labels[scene.heard]), "nonverbal")


def captions(scene: Scene, labels: Sequence[str], spoken: Sequence[str], seed: int) -> list[str]:
    """Three differently worded sentences that each say what is seen, heard and said; in training also parts of it."""
    rng = np.random.default_rng((seed, 3, int(scene.clip_id.removeprefix("video"))))
    chosen = rng.choice(len(CAPTION_TEMPLATES), CAPTIONS_PER_CLIP, replace=False)
    templates = [CAPTION_TEMPLATES[template] for template in chosen]
    if scene.split == "train":
        templates += PARTIAL_TEMPLATES
    words = {"seen": labels[scene.seen], "heard": labels[scene.heard], "said": spoken[scene.said]}
    return [template.format(**words) for template in templates]


def caption_slots(caption: str, right: Mapping[str, str]) -> dict[str, bool]:
    """Whether a caption names the right stamp in the right role, for each role of `right`.

    Args:
        caption: any sentence; one that follows no template of the corpus names nothing.
        right: what labels.json has of the clip: `seen`, `sound` (a sentence about it) and `speech`.
    """
    named = _read(caption)
    return {role: _plain(text) == named.get(role) for role, text in right.items()}


def _read(caption: str) -> dict[str, str]:
    """What a caption says of each role of labels.json, as `_plain` puts it."""
    for pattern in _patterns():
        found = pattern.fullmatch(_plain(caption))
        if found:
            said = found.groupdict()
            heard = {"sound": _plain(sound_text(said["heard"]))} if "heard" in said else {}
            return {role: said[name] for role, name in (("seen", "seen"), ("speech", "said")) if name in said} | heard
    return {}


@lru_cache
def _patterns() -> list[re.Pattern[str]]:
    """The templates, those of whole captions first, as patterns over `_plain` sentences."""
    blank = {role: f"blank{role}blank" for role in ("seen", "heard", "said")}
    patterns = []
    for template in (*CAPTION_TEMPLATES, *PARTIAL_TEMPLATES):
        pattern = re.escape(_plain(template.format(**blank))).replace(r"\ ", " ")
        for role, mark in blank.items():
            pattern = pattern.replace(mark, f"(?P<{role}>.+)")
        patterns.append(re.compile(pattern))
    return patterns


def _plain(text: str) -> str:
    """Letters and digits in lower case, and a space for whatever is between: tokenizers set punctuation apart."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
