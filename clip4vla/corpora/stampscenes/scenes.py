"""What is seen, heard and said in each clip of StampScenes, and the sentences that say so: pure, seeded.

Pretraining clips show a stamp and let one hear its name (narrated, as in HowTo100M) or its sound (sounding, as in
AudioSet). Caption clips show one stamp, let one hear another and name a third; each pair of sound and word comes
with several pictures, so that neither eye nor ear finds a clip alone. No pair occurs in two splits.

As in most of MSR-VTT, a part of the caption clips has sound that is unrelated to its captions, and some have no audio
track: their captions name what is seen only. In val and test no other clip shows the stamps that these show.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.stampscenes.phrasings import CAPTION_TEMPLATES, ROLES, TEMPLATES, Role
from clip4vla.records import AudioType, Split, Text

CAPTIONS_PER_CLIP = 3
OTHER_WHOLE_CAPTIONS = 5
"""How many more captions of a training clip name everything, in the trained phrasings beyond `CAPTION_TEMPLATES`."""
PART_CAPTIONS = {1: 3, 2: 2}
"""How many captions of a training clip name the same one or two roles: as in MSR-VTT, few name everything."""
SEEN_CAPTIONS: Mapping[Split, int] = {"train": 5, "val": 3, "test": 3}
"""Captions of a clip whose sound is unrelated or missing: they name what is seen."""
CLIPS_SHOWN_APART = 4
"""How many clips of val and test with unrelated or missing sound show the same stamp."""

Soundtrack = Literal["related", "unrelated", "none"]
"""Whether a clip's captions are about its sound as well; `none` is a clip without an audio track."""


@dataclass(frozen=True)
class Scene:
    """One clip: indices into the vocabulary of stamps, and which kind of sound leads."""

    clip_id: str
    split: Split
    seen: int
    heard: int | None
    """None, like `said`, in a clip without an audio track."""
    said: int | None
    leading: AudioType | None
    """None in a caption clip, where sound and voice are about equally loud."""
    soundtrack: Soundtrack = "related"

    @property
    def stamps(self) -> dict[Role, int]:
        """What is seen, heard and said, whether or not the captions name it."""
        roles: dict[Role, int | None] = {"seen": self.seen, "heard": self.heard, "said": self.said}
        return {role: stamp for role, stamp in roles.items() if stamp is not None}


def pretraining_scenes(config: StampScenesConfig, stamps: int, sounding: int) -> list[Scene]:
    """The pretraining clips over `stamps` stamps, of which the first `sounding` have a sound."""
    rng = np.random.default_rng((config.seed, 1))
    narrated = round(config.narrated * config.pretraining_clips)
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
    pairs = [(heard, said) for heard in range(sounding) for said in range(stamps) if heard != said]
    shuffled = iter([pairs[index] for index in rng.permutation(len(pairs))])
    scenes: list[Scene] = []

    def add(split: Split, seen: int, pair: tuple[int, int] | None, soundtrack: Soundtrack) -> None:
        heard, said = pair or (None, None)
        scenes.append(Scene(f"video{len(scenes)}", split, int(seen), heard, said, None, soundtrack))

    try:
        for split, count in config.caption_pairs.items():
            apart = _shown_apart(config, split, stamps, rng)
            reserved = {stamp for _, stamp in apart} if split != "train" else set()
            for _ in range(count):
                pair = next(shuffled)
                unlike = [stamp for stamp in range(stamps) if stamp not in reserved.union(pair)]
                for seen in rng.choice(unlike, config.pictures_per_pair[split], replace=False):
                    add(split, seen, pair, "related")
            for soundtrack, seen in apart:
                add(split, seen, None if soundtrack == "none" else _without(seen, shuffled), soundtrack)
    except StopIteration:
        raise ValueError(
            f"stampscenes.caption_pairs asks for {sum(config.caption_pairs.values())} pairs besides those of unrelated "
            f"sound, but {stamps} stamps give {len(pairs)}"
        ) from None
    return scenes


def _shown_apart(
    config: StampScenesConfig, split: Split, stamps: int, rng: np.random.Generator
) -> list[tuple[Soundtrack, int]]:
    """What the clips without related sound have for a soundtrack and show: few stamps in val and test, else all."""
    related = config.caption_pairs[split] * config.pictures_per_pair[split]
    shares: dict[Soundtrack, float] = {"unrelated": config.unrelated_sound, "none": config.no_sound}
    order = rng.permutation(stamps).tolist()
    apart: list[tuple[Soundtrack, int]] = []
    for soundtrack, share in shares.items():
        clips = math.ceil(share * related)
        number = stamps if split == "train" else min(math.ceil(clips / CLIPS_SHOWN_APART), stamps // 6)
        shown, order = order[:number], order[number:] + order[:number]
        apart += [(soundtrack, shown[index % number]) for index in range(clips)]
    return apart


def _without(stamp: int, pairs: Iterator[tuple[int, int]]) -> tuple[int, int]:
    """The next pair that `stamp` isn't in."""
    return next(pair for pair in pairs if stamp not in pair)


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
    words = words_of(scene.stamps, labels, spoken)
    if scene.leading == "verbal":
        return Text(words["said"], "verbal")
    return Text(sound_text(words["heard"]), "nonverbal")


def words_of(stamps: Mapping[Role, int], labels: Sequence[str], spoken: Sequence[str]) -> dict[Role, str]:
    """What a sentence calls each of `stamps`: what is said by its word in the voices' language."""
    return {role: (spoken if role == "said" else labels)[stamp] for role, stamp in stamps.items()}


def fill(template: str, words: Mapping[Role, str]) -> str:
    """The sentence of a template that names the roles of `words` or some of them."""
    return template.format(**{str(role): word for role, word in words.items()})


def captions(scene: Scene, labels: Sequence[str], spoken: Sequence[str], seed: int) -> list[str]:
    """The differently worded sentences about a caption clip.

    Three say what is seen, heard and said; in training more say that, and more a part of it. Where the sound is not
    related or there is none, all name what is seen; clips of val and test that show the same stamp then have the same.
    """
    number = int(scene.clip_id.removeprefix("video"))
    words = words_of(scene.stamps, labels, spoken)
    if scene.soundtrack != "related":
        rng = np.random.default_rng((seed, 5, number if scene.split == "train" else scene.seen))
        return _draw(TEMPLATES[frozenset({"seen"})]["trained"], SEEN_CAPTIONS[scene.split], words, rng)
    rng = np.random.default_rng((seed, 3, number))
    sentences = _draw(CAPTION_TEMPLATES, CAPTIONS_PER_CLIP, words, rng)
    if scene.split == "train":
        others = TEMPLATES[frozenset(ROLES)]["trained"][len(CAPTION_TEMPLATES) :]
        sentences += _draw(others, OTHER_WHOLE_CAPTIONS, words, rng)
        for roles, phrasings in TEMPLATES.items():
            sentences += _draw(phrasings["trained"], PART_CAPTIONS.get(len(roles), 0), words, rng)
    return sentences


def _draw(templates: Sequence[str], count: int, words: Mapping[Role, str], rng: np.random.Generator) -> list[str]:
    """`count` sentences of different templates."""
    return [fill(templates[index], words) for index in rng.choice(len(templates), count, replace=False)]


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
    """The templates, those that name most first, as patterns over `_plain` sentences."""
    blank = {role: f"blank{role}blank" for role in ROLES}
    patterns = []
    for template in _templates():
        pattern = re.escape(_plain(template.format(**blank))).replace(r"\ ", " ")
        for role, mark in blank.items():
            pattern = pattern.replace(mark, f"(?P<{role}>.+)")
        patterns.append(re.compile(pattern))
    return patterns


def _templates() -> list[str]:
    """All templates but the bare ones, which any sentence would fit; before each those with more words of their own."""
    templates = [
        (len(roles), len(template), template)
        for roles, phrasings in TEMPLATES.items()
        for template in (*phrasings["trained"], *phrasings["held_out"])
        if " " in template
    ]
    return [template for _, _, template in sorted(templates, reverse=True)]


def _plain(text: str) -> str:
    """Letters and digits in lower case, and a space for whatever is between: tokenizers set punctuation apart."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))
