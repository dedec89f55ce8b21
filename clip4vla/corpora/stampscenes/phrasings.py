"""The words in which StampScenes names what a clip shows: templates by the roles that a sentence names.

A phrasing with `held_out` occurs in no training clip: it measures whether a model reads sentences or remembers them.
"""

from typing import Literal

Role = Literal["seen", "heard", "said"]
ROLES: tuple[Role, ...] = ("seen", "heard", "said")
Phrasing = Literal["trained", "held_out"]

CAPTION_TEMPLATES = (
    "a picture of {seen} with the sound of {heard} and the words {said}",
    "the sound of {heard} and the words {said} over a picture of {seen}",
    "a voice says the words {said} as a picture of {seen} moves by with the sound of {heard}",
    "one hears the words {said} and the sound of {heard} and sees a picture of {seen}",
    "a picture of {seen} moves while the sound of {heard} mixes with the words {said}",
)
"""The captions of every clip whose sound belongs to it are drawn from these, in all splits."""

TEMPLATES: dict[frozenset[Role], dict[Phrasing, tuple[str, ...]]] = {
    frozenset(ROLES): {
        "trained": (
            *CAPTION_TEMPLATES,
            "{seen} is seen, {heard} is heard and someone says {said}",
            "{seen} can be seen while a voice says {said} and {heard} makes a sound",
            "there is {seen} in it, the noise of {heard} and a voice saying {said}",
            "there is {seen} in it, someone says {said} and one hears {heard}",
            "you see {seen}, you hear {heard} and a person says {said}",
            "you see {seen} while a person says {said} and {heard} is heard",
            "a video of {seen} in which {heard} can be heard and {said} is said",
            "a video of {seen}, the words {said} and the sound of {heard}",
            "it shows {seen} and you hear {heard} and the spoken words {said}",
            "{heard} makes a sound, {seen} moves across the screen and the voice says {said}",
            "{heard} is heard and someone says {said} while {seen} is seen",
            "you hear {heard} and a person says {said} and there is {seen} in it",
            "you hear {heard} over a picture of {seen} and a voice says {said}",
            "the noise of {heard}, the words {said} and a video of {seen}",
            "one hears {heard} and sees {seen} and a voice says the words {said}",
            "someone says {said} while {heard} is heard and {seen} moves across the screen",
            "a voice says {said}, there is {seen} in it and {heard} can be heard",
            "a person says {said} over a video of {seen} with the noise of {heard}",
            "the words {said} and the noise of {heard} while {seen} moves by",
            "the words {said}, a picture of {seen} and the sound of {heard}",
            "{said} is said, you see {seen} and {heard} is heard",
        ),
        "held_out": (
            "the words {said}, the sound of {heard} and a picture of {seen}",
            "you hear {heard} and someone says {said} while {seen} moves by",
            "{heard} is heard and {said} is said in a video of {seen}",
            "someone says {said}, there is {seen} in it and you hear the noise of {heard}",
        ),
    },
    frozenset({"seen", "heard"}): {
        "trained": (
            "a picture of {seen} with the sound of {heard}",
            "{seen} is seen and {heard} is heard",
            "there is {seen} in it and the noise of {heard}",
            "{seen} moves by while {heard} makes a sound",
            "you see {seen} and one hears {heard}",
            "you hear {heard} and see {seen}",
            "the noise of {heard} over a video of {seen}",
            "{heard} can be heard while {seen} moves across the screen",
            "the sound of {heard} and a picture of {seen}",
            "one hears {heard} and there is {seen} in it",
        ),
        "held_out": ("there is {seen} in it and you hear {heard}", "the sound of {heard} while {seen} is seen"),
    },
    frozenset({"seen", "said"}): {
        "trained": (
            "a picture of {seen} with the words {said}",
            "{seen} is seen and {said} is said",
            "there is {seen} in it and a voice says {said}",
            "{seen} moves by while a person says {said}",
            "you see {seen} and a person says {said}",
            "someone says {said} while {seen} is seen",
            "a voice says {said} over a video of {seen}",
            "the words {said} and a picture of {seen}",
            "you hear the words {said} while {seen} moves across the screen",
            "a person says {said} and there is {seen} in it",
        ),
        "held_out": ("there is {seen} in it and someone says {said}", "the words {said} while {seen} moves by"),
    },
    frozenset({"heard", "said"}): {
        "trained": (
            "the sound of {heard} and the words {said}",
            "{heard} is heard and someone says {said}",
            "you hear {heard} and a person says {said}",
            "{heard} makes a sound while {said} is said",
            "the noise of {heard} with a voice saying {said}",
            "a voice says {said} with the noise of {heard}",
            "someone says {said} while {heard} is heard",
            "the words {said} over the noise of {heard}",
            "a person says {said} and you hear {heard}",
            "you hear the words {said} and the sound of {heard}",
        ),
        "held_out": ("the words {said} and the sound of {heard}", "someone says {said} while you hear {heard}"),
    },
    frozenset({"seen"}): {
        "trained": (
            "a picture of {seen}",
            "{seen}",
            "there is {seen} in it",
            "{seen} is seen",
            "you see {seen}",
            "one sees {seen}",
            "a video of {seen}",
            "it shows {seen}",
            "{seen} can be seen",
            "{seen} moves across the screen",
            "a clip that shows {seen}",
            "the picture shows {seen}",
            "a video in which {seen} moves by",
        ),
        "held_out": (
            "a video that shows {seen}",
            "one can see {seen}",
            "there is a picture of {seen}",
            "a clip in which {seen} is seen",
        ),
    },
    frozenset({"heard"}): {
        "trained": (
            "the sound of {heard}",
            "{heard} is heard",
            "you hear {heard}",
            "one hears {heard}",
            "the noise of {heard}",
            "it sounds like {heard}",
            "{heard} can be heard",
            "{heard} makes a sound",
            "the noise that {heard} makes",
            "a clip with the noise of {heard}",
            "listen to {heard}",
            "there is the sound of {heard} in it",
            "a video in which one hears {heard}",
        ),
        "held_out": (
            "the sound that {heard} makes",
            "one can hear {heard}",
            "there is the noise of {heard}",
            "a clip in which {heard} is heard",
        ),
    },
    frozenset({"said"}): {
        "trained": (
            "the words {said}",
            "{said}",
            "someone says {said}",
            "a voice says {said}",
            "{said} is said",
            "a person says {said}",
            "the voice says the words {said}",
            "one hears the words {said}",
            "you hear someone say {said}",
            "a clip with the words {said}",
            "a voice saying {said}",
            "somebody speaks the words {said}",
            "a video in which a voice says {said}",
        ),
        "held_out": (
            "somebody says {said}",
            "a person saying {said}",
            "you hear the words {said}",
            "a clip in which someone says {said}",
        ),
    },
}
"""By the roles named. A bare noun is about what is seen, bare words in the voices' language about what is said."""
