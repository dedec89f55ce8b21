"""`params.yaml`, typed, documented and frozen; this module is the only reader of it and of its presets.

In: a YAML file, and the files of the presets that it names, `presets/NAME.yaml` beside it. A preset has the same
sections; what it names is laid over the sections of `params.yaml`, what it doesn't name stays. Out: one `Config`, whose
small sections are what the parts of the package take.
An unknown key, a missing key, a duplicate key or a value out of range is a `ValueError` that names the file and the
key. A field with a default may be left out of the file; published constants are such defaults.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from clip4vla.records import SPLITS, TASKS, Modality, Split, TaskName


def _not_a_truth_value(value: object) -> object:
    """`value`; a truth value, which Python counts as a number, is none.

    Raises:
        ValueError: it is a truth value.
    """
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    return value


Whole = Annotated[int, Field(strict=True)]
"""Neither `true` nor `3.0`."""
Positive = Annotated[Whole, Field(gt=0, le=1_000_000)]
Large = Annotated[Whole, Field(gt=0, le=2**50)]
"""A number of bytes or pixels."""
Count = Annotated[Whole, Field(ge=0, le=1_000_000)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Tokens = Annotated[Whole, Field(ge=4, le=1024)]
Real = Annotated[float, BeforeValidator(_not_a_truth_value)]
"""A number, also as text: YAML reads `1e-3` as text."""
Fraction = Annotated[Real, Field(ge=0, le=1)]
Weight = Annotated[Real, Field(ge=0, le=1_000_000)]
Seconds = Annotated[Real, Field(gt=0, le=100_000_000)]
Score = Annotated[Real, Field(ge=-1_000_000, le=1_000_000)]
Decibels = Annotated[Real, Field(ge=-200, le=200)]
Momentum = Annotated[Real, Field(ge=0, lt=1)]
Range = tuple[Decibels, Decibels]

# a mistake is named by the branch that was meant, not by all
_BRANCH = Discriminator(lambda value: "auto" if value == "auto" else "number")
PositiveOrAuto = Annotated[Annotated[Positive, Tag("number")] | Annotated[Literal["auto"], Tag("auto")], _BRANCH]
GigabytesOrAuto = Annotated[
    Annotated[Real, Field(gt=0, le=1_000_000), Tag("number")] | Annotated[Literal["auto"], Tag("auto")], _BRANCH
]

AudioToken = Literal["none", "verbal", "nonverbal", "both", "sample"] | Fraction
"""The type token of the audio tower: none, one kind, both appended, the kind of each sample's text (`sample`), or a
number w that mixes (1 - w) verbal + w nonverbal."""
ExpertToken = Literal["none", "verbal", "nonverbal", "both"] | Fraction
"""The type token of an audio expert: any but `sample`, because a clip's expert does not depend on a text."""

Role = Literal["pretraining", "finetuning", "unseen"]
"""What a corpus is used for. One of the role `unseen` holds test clips of the role `finetuning`, by the same ids, in
another rendering, such as another voice; they are scored beside the original ones."""


NAME_LENGTH = 100
"""Most characters of a name: file systems and MLflow take few more than twice as many, with what is added to it."""
PLAIN_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_LENGTH - 1}}}")
"""Keys that become names of directories and of stages, and parts of parameters in `dvc.yaml`."""
Named = TypeVar("Named")


def _check_place(place: str) -> str:
    """`place`, if it can be the path of a file or directory.

    Raises:
        ValueError: it is empty, or has characters that a file system or a line of a log can't take.
    """
    if not place.strip():
        raise ValueError("a path is missing")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in place):
        raise ValueError(f"{place!r} has a control character")
    return place


Place = Annotated[str, AfterValidator(_check_place)]
"""Path of a file or directory, relative to the project."""
Fact = Annotated[str, Field(max_length=1000)]
"""What is known of a corpus, as the registry keeps it."""


def check_plain_names(kind: str, named: dict[str, Named]) -> dict[str, Named]:
    """`named`, if its keys are safe as names of directories, stages and parameters.

    Raises:
        ValueError: one isn't.
    """
    for name in named:
        if not PLAIN_NAME.fullmatch(name):
            raise ValueError(
                f"the {kind} name {name!r} must consist of letters, digits, '_' and '-', {NAME_LENGTH} at most, and "
                "begin with a letter or digit"
            )
    return named


def _all_differ(tokens: tuple[ExpertToken, ...]) -> tuple[ExpertToken, ...]:
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"each token must be there once, not as in {tokens}")
    return tokens


AudioExperts = Annotated[tuple[ExpertToken, ...], Field(min_length=1), AfterValidator(_all_differ)]


def _without_nulls(named: Any) -> Any:
    """`named` without the entries that are null: a preset removes one that params.yaml has by setting it to null."""
    return {name: value for name, value in named.items() if value is not None} if isinstance(named, dict) else named


def _as_list(names: Any) -> Any:
    return [names] if isinstance(names, str) else names


PRESET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
DEFAULT_PRESET = "default"
"""Changes nothing, and has no file."""
PRESETS = "presets"
"""Directory of the presets, beside params.yaml: one file for each, `NAME.yaml`."""
PresetNames = Annotated[
    tuple[Annotated[str, Field(pattern=f"^{PRESET_NAME.pattern}$")], ...], BeforeValidator(_as_list)
]


class FrozenConfig(BaseModel):
    """Base of every section: immutable, finite numbers only, and an undeclared key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class StampScenesConfig(FrozenConfig):
    """The embedded corpus, composed from Debian's `tuxpaint-stamps-default`; unseen pictures: `openclipart-svg`."""

    package: Place | None = None
    """Path of a downloaded .deb of the first; null downloads it with `apt-get download`."""
    clipart_package: Place | None = None
    """The same of the second."""
    language: Literal["bg", "ca", "es", "fr", "ro", "ru"]
    """Language of the voices and of the words that they say."""
    seed: Seed
    stamps: Annotated[Whole, Field(ge=8, le=10_000)]
    """Number of labelled stamps that can be shown and named; those with a sound effect come first."""
    pretraining_clips: Annotated[Whole, Field(ge=2, le=10_000_000)]
    """Clips of the pretraining corpus, narrated (verbal) or carrying the sound effect (nonverbal)."""
    narrated: Fraction = 0.5
    """Share of the pretraining clips that are narrated."""
    caption_pairs: dict[Split, Positive]
    """Pairs (sound effect, spoken word) of the caption corpus by split."""
    pictures_per_pair: dict[Split, Positive]
    """Different pictures shown with each pair, so that audio alone cannot tell the clips apart."""
    unrelated_sound: Fraction = 0.15
    """Caption clips whose captions do not name their sound, for each clip whose captions do."""
    no_sound: Fraction = 0.05
    """Caption clips without an audio track, likewise."""
    training_voices: Annotated[Whole, Field(ge=0, le=12)] = 0
    """Voices of espeak-ng that speak in training clips beside the package's own."""
    training_sounds: Annotated[Whole, Field(ge=0, le=12)] = 0
    """Variants of each sound effect that training clips have beside it, in other pitch, tempo, room and timbre."""
    training_pictures: Annotated[Whole, Field(ge=0, le=3)] = 0
    """Drawings of `openclipart-svg` that training clips show beside the stamps, where it has that many."""
    own_renderings: Fraction = 0.5
    """Share of the training clips that keep the package's own voice, sound or picture where there are others; each of
    the three is drawn by itself."""
    seconds: Annotated[Real, Field(gt=1, le=600)]
    size: Annotated[Whole, Field(ge=32, le=4096, multiple_of=2)]
    """Width and height of the videos in pixels."""
    fps: Annotated[Whole, Field(gt=0, le=240)]
    background_db: Range
    """Range of the level, relative to the leading sound, of the other kind of sound in a pretraining clip."""
    voice_db: Range
    """Range of the level of the voice in a caption clip, relative to the sound effect."""
    noise_db: Range
    """Range of the level of the noise, relative to the leading sound."""

    @property
    def further_renderings(self) -> tuple[int, int, int]:
        """How many voices, sounds and pictures training clips have beside the package's own."""
        return self.training_voices, self.training_sounds, self.training_pictures

    @field_validator("caption_pairs", "pictures_per_pair")
    @classmethod
    def _names_every_split(cls, value: dict[Split, int]) -> dict[Split, int]:
        if missing := [split for split in SPLITS if split not in value]:
            raise ValueError(f"there is no number for {', '.join(missing)}")
        return value

    @field_validator("background_db", "voice_db", "noise_db")
    @classmethod
    def _ascends(cls, value: Range) -> Range:
        if value[0] > value[1]:
            raise ValueError(f"the range {value[0]:g} to {value[1]:g} descends")
        return value


JsonKey = Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)*$")]
"""A key of a JSON object; `a.b` is the key `b` of the object, or of each object of the list, at `a`."""
Texts = Annotated[tuple[Annotated[str, Field(pattern=r"^\.?[^.]+(\.[^.]+)*$")], ...], BeforeValidator(_as_list)]
"""Where texts are: `.txt` is the member `KEY.txt`, without a dot before it it is a key of `KEY.json`."""


class ShardsConfig(FrozenConfig):
    """What the samples of a corpus in tar shards hold, for the adapter `webdataset`."""

    pattern: Annotated[str, Field(pattern=r"\.tar$")] = "*.tar"
    """Which files below `media` are shards, by their path in it; `*` is any text, folders included."""
    captions: Texts = (".txt",)
    """Texts without an audio type, or with that of `audio_type`."""
    verbal: Texts = ()
    """Texts that say what is spoken."""
    nonverbal: Texts = ()
    """Texts about other sounds."""
    audio_type: JsonKey | None = None
    """Key of the audio type of `captions`: verbal, nonverbal or null."""
    spans: JsonKey | None = None
    """Key of the spans of a sample, each of which is a clip: `[start, end]`, an object with `start` and `end`, or a
    list of such, in seconds or as `0:01:02.5`. Texts at keys below it, `SPANS.text`, are those of the span alone. Null,
    and the key's absence, take all of the file."""
    split: JsonKey | None = None
    """Key of the split: train, val or test; null: all samples are for training."""

    @model_validator(mode="after")
    def _has_texts(self) -> "ShardsConfig":
        if not (self.captions or self.verbal or self.nonverbal):
            raise ValueError("none of captions, verbal and nonverbal says where texts are")
        return self


SHARDS_ADAPTER = "webdataset"


class CorpusConfig(FrozenConfig):
    """One corpus: its adapter, where its published annotations and its media are, and what it is used for."""

    adapter: str
    """Name of the adapter in `clip4vla/corpora/`."""
    role: Role
    annotations: Place
    """Directory of the published annotation files, relative to the project; that of the media, for `webdataset`."""
    media: Place
    """Directory of the media, relative to the project."""
    track: Literal["content", "listing"] = "content"
    """How DVC notices changed media: by their bytes, which it reads all, or by a listing of path, size and time."""
    weight: Annotated[Real, Field(gt=0, le=1_000_000)] = 1.0
    """Share in the training mixture, relative to the other corpora of the role."""
    version: Fact | None = None
    """As its publisher calls it, for the model card; null: that of the package, for StampScenes, else unknown."""
    license: Fact | None = None
    """For the model card, such as `CC-BY-4.0`; null: unknown."""
    source: Fact | None = None
    """Address or name of where it was published, for the model card; null: unknown."""
    shards: ShardsConfig | None = None
    """What its shards hold, for `webdataset`; null: a text `KEY.txt` about each."""

    @model_validator(mode="before")
    @classmethod
    def _shards_are_their_own_annotations(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        if tree.get("adapter") != SHARDS_ADAPTER:
            if tree.get("shards") is not None:
                raise ValueError(f"shards is for the adapter {SHARDS_ADAPTER}")
            return tree
        if tree.get("annotations", tree.get("media")) != tree.get("media"):
            raise ValueError("the annotations of shards are in them: leave out annotations")
        return tree | ({"annotations": tree["media"]} if "media" in tree else {})


class MediaLimits(FrozenConfig):
    """What a media file may demand; one that demands more is rejected before it gets it."""

    max_pixels: Large = 40_000_000
    """Width times height of the video: 8K is 33 million. A decoder takes several frames of memory."""
    max_duration_s: Seconds = 86_400.0
    """Seconds that a file may last, or state that it does."""
    max_bytes: Large | None = None
    """Size of a file; null accepts any."""
    max_decode_s: Seconds = 300.0
    """Seconds that decoding a clip may take."""


class ClipsConfig(FrozenConfig):
    """What is stored of a clip."""

    frames: Annotated[Whole, Field(gt=0, le=10_000)]
    """Frames per clip, evenly spread over its span."""
    size: Annotated[Whole, Field(gt=0, le=4096)]
    """Shorter side of a stored frame in pixels."""
    jpeg_quality: Annotated[Whole, Field(ge=1, le=100)] = 90
    max_seconds: Annotated[Real, Field(gt=0, le=86_400)] = 10.0
    """The sound of a longer clip is cut to its middle."""
    verbal_above: Fraction | None = None
    """Texts without an audio type count as verbal where more than this share of the sound is speech, else as
    nonverbal; null leaves them untyped, and the audio tower gets both tokens in equal parts."""
    workers: Count = 0
    """Processes that decode; 0 means one per core."""
    dask: str | None = None
    """Address of a Dask cluster whose workers decode instead (`tcp://host:8786`), on a file system shared with it."""
    limits: MediaLimits = MediaLimits()
    """What a media file may demand."""
    max_reject_fraction: Fraction = 0.05
    """The stage fails when a larger share of its records is rejected."""


class AudioConfig(FrozenConfig):
    """The log-mel front end. Rows (time) and bands of a tile equal the tower's image size; published values."""

    sample_rate: Annotated[Whole, Field(ge=1000, le=384_000)] = 16_000
    n_fft: Annotated[Whole, Field(ge=16, le=65_536)] = 512
    hop: Annotated[Whole, Field(gt=0, le=65_536)] | None = None
    """Samples between rows; null takes the hop for which a tile lasts as long as the published one (1.792 s)."""
    tiles: Annotated[Whole, Field(gt=0, le=10_000)] = 6
    """Most tiles of a clip; a longer sound is cropped, at random in training and to its middle otherwise."""
    recipe: Literal["masked", "published"] = "masked"
    """`masked` keeps padding out of the statistics and fills SpecAugment's masks with the mean; `published` reproduces
    the authors' code, whose padding and masks are loud (0 dB)."""
    freq_mask_fraction: Fraction = 0.05
    """SpecAugment: frequency masks per band."""
    time_mask_fraction: Fraction = 0.15
    """SpecAugment: time masks per row."""
    mask_width: Count = 9
    """SpecAugment: the width of a mask is drawn from 0 to this."""


class ModelConfig(FrozenConfig):
    """The towers and their fusion."""

    architecture: str
    """An open_clip model name, or the name of a config in `clip4vla/model/architectures/`."""
    weights: Place | None = None
    """An open_clip pretrained tag (`openai`), the path of a checkpoint, or null to train from scratch."""
    fusion: Literal["mean", "sequence", "experts"] = "mean"
    """How video and audio are compared with a text: by their mean, by a transformer over their sequence, or each by
    itself with weights that the text decides (`experts`, for retrieval only)."""
    audio_experts: AudioExperts = ("verbal", "nonverbal")
    """Type tokens of the audio experts, of `fusion: experts`; `[none]` is one expert without a token."""
    fusion_layers: Annotated[Whole, Field(gt=0, le=100)] = 2
    audio_token: AudioToken = "both"
    """Type token in fine-tuning and evaluation, where a text describes all of the clip."""
    temperature: Literal["learned", "fixed"] = "learned"
    """Learned logit scale (CLIP), or fixed at 100 (published)."""


class OptimizerConfig(FrozenConfig):
    """AdamW or Muon, with linear warm-up and cosine decay."""

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` learns matrices from scratch in about half the steps of `adamw`, at the same rates. It needs whole
    matrices: no ZeRO."""
    lr: Annotated[Real, Field(gt=0, le=10)]
    """Peak rate of the audio tower and the fusion."""
    text_lr_ratio: Weight = 1.0
    """Rate of CLIP's text tower as a multiple of `lr`: far below 1 when it starts from pretrained weights."""
    video_lr_ratio: Weight = 1.0
    """The same of CLIP's image tower, which reads the frames."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.98)
    eps: Annotated[Real, Field(gt=0, le=1)] = 1e-6
    weight_decay: Weight = 0.2
    """On matrices only: norms, biases, embeddings and the logit scale have none."""
    warmup: Fraction = 0.1
    """Share of the steps."""
    clip_norm: Annotated[Real, Field(gt=0, le=1_000_000)] = 1.0


class AugmentationConfig(FrozenConfig):
    """Random changes of the clips that a training reads, drawn again each time; 0 or null turns one off."""

    speed: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Sound is played up to this share faster or slower: pitch, formants and tempo change together."""
    tilt: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Sound is made duller or brighter, by a filter of two taps whose second is at most this."""
    gain: Annotated[Real, Field(ge=0, le=200)] = 0.0
    """Decibels by which sound is made louder or softer, at most."""
    noise: Range | None = None
    """Decibels that white noise is below the sound: the least and the most."""
    mirror: Fraction = 0.0
    """Share of the clips whose frames are mirrored."""
    zoom: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Share of height and width that is cut off a frame before it is enlarged to its size of before, at most."""
    grey: Fraction = 0.0
    """Share of the clips whose frames lose their colours."""
    colour: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Brightness, contrast and saturation are changed by a factor of 1 plus or minus this, at most."""

    @field_validator("noise")
    @classmethod
    def _ascends(cls, value: Range | None) -> Range | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"the range {value[0]:g} to {value[1]:g} descends")
        return value


class TrainingConfig(FrozenConfig):
    """What pretraining and fine-tuning have in common."""

    epochs: Positive
    batch_size: Annotated[Whole, Field(ge=2, le=10_000_000)]
    """Clips per step over all ranks: the number that each clip is contrasted with."""
    micro_batch_size: PositiveOrAuto = 32
    """Clips per rank that pass through the towers at once; gradients are those of the full batch. `auto` chooses by
    `trainer.memory_gb` what takes least time, see docs/training.md."""
    frames: Positive = 12
    """Frames per clip, of those stored; others are drawn each epoch."""
    inference_frames: Positive | None = None
    """Frames that the trained model reads; null: as many as in training. Few in training and all afterwards cost little
    and lose little (ClipBERT, Lei et al., arXiv 2102.06183)."""
    max_tokens: Tokens = 32
    """Tokens of a text, start and end included; longer texts are cut."""
    captions_per_clip: Positive = 1
    """Captions of a clip in one step, drawn again each time; the terms with text are means over them."""
    circular_shift: bool = False
    """Circularly shift the waveform by a random offset each epoch."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of sounds and pictures."""
    optimizer: OptimizerConfig


class ContrastiveConfig(TrainingConfig):
    """What pretraining and retrieval have in common: the weight of each term, 0 turns it off."""

    identical_captions_match: bool = False
    """Whether a caption is right for every clip of the batch that has the identical caption, and the video of a clip
    for the audio of such clips."""


class PretrainingConfig(ContrastiveConfig):
    """Contrastive pretraining. The defaults are the paper's objective."""

    text_audio: Weight = 1.0
    video_audio: Weight = 1.0
    audio_audio: Weight = 1.0
    """Between the sound and its SpecAugment view (SimCLR)."""
    text_video: Weight = 0.0
    text_text: Weight = 0.0
    """Published with self-supervision: texts against themselves, which only pushes different clips apart."""
    video_video: Weight = 0.0
    """The same for video."""


class RetrievalConfig(ContrastiveConfig):
    """Retrieval fine-tuning."""

    text_both: Weight = 1.0
    text_video: Weight = 0.0
    text_audio: Weight = 0.0
    shared_text_both: Weight = 0.0
    """The same as `text_both` for shared captions, see `shared_captions_per_clip`."""
    text_experts: Weight = 0.0
    """With experts: likelihood of the right clips of shared captions under the mixture of the experts."""
    text_audio_experts: Weight = 0.0
    """With experts: InfoNCE of a clip's own captions with its audio experts alone, as `text_video` with the video."""
    text_text_experts: Weight = 0.0
    """With experts: own captions are found by the shared captions of their clip, expert by expert."""
    shared_captions_per_clip: Count = 0
    """Captions of a clip in one step, beside `captions_per_clip`, that other clips of the training set have, too, such
    as "a bell rings": they are contrasted apart from those that only one clip has."""
    cross_encoder: Weight = 0.0
    """Loss of the score that reads a text and a clip together, for `evaluation.rerank`; needs `model.fusion:
    sequence`. Its negatives are the nearest clips of a micro-batch."""


EXPERT_TERMS = ("text_experts", "text_audio_experts", "text_text_experts")
"""Terms of `retrieval` that need `model.fusion: experts`."""


class CaptioningConfig(TrainingConfig):
    """Captioning: what the decoder attends to and how it is trained."""

    modalities: Modality = "both"
    """What the decoder attends to."""
    modality_dropout: Fraction = 0.0
    """With `both`: share of the clips of a step in which only the video, or only the audio, is attended to, so that
    one model can caption by either alone."""
    min_words: Count = 0
    """Captions with fewer words, and clips that have only such captions, are neither trained on nor evaluated."""
    label_smoothing: Fraction = 0.0
    vocabulary: Literal["corpus", "full"] = "corpus"
    """Tokens that a caption may have: those of the training captions, or all of CLIP's, whose logits cost most of a
    step on a CPU."""


class AblationArm(FrozenConfig):
    """What one trial of the ablation changes in the `model` section."""

    fusion: Literal["mean", "sequence", "experts"]
    audio_token: AudioToken = "both"
    audio_experts: AudioExperts = ("verbal", "nonverbal")


class AblationConfig(FrozenConfig):
    """The comparison of fusions and audio tokens: a short fine-tuning for each arm, otherwise as `retrieval`."""

    arms: Annotated[dict[str, AblationArm], BeforeValidator(_without_nulls), Field(min_length=1)] = {
        "mean-none": AblationArm(fusion="mean", audio_token="none"),
        "mean-both": AblationArm(fusion="mean", audio_token="both"),
        "experts-none": AblationArm(fusion="experts", audio_experts=("none",)),
        "experts-types": AblationArm(fusion="experts", audio_experts=("verbal", "nonverbal")),
    }
    """The trials by name: the mean of video and audio without and with the paper's tokens, experts without and with
    type tokens."""
    epochs: Positive

    @field_validator("arms")
    @classmethod
    def _names_are_plain(cls, arms: dict[str, AblationArm]) -> dict[str, AblationArm]:
        return check_plain_names("arm", arms)


class TrainerConfig(FrozenConfig):
    """How training runs on this machine; no score of a model should depend on it."""

    ranks: Count = 0
    """Processes on this node; 0 means one per GPU, or `cpu_ranks` without one."""
    cpu_ranks: Annotated[Whole, Field(ge=1, le=1024)] = 1
    """Processes on a node without a GPU, which share its cores. For a small model several with one thread each are as
    fast as one with several threads, and lose less beside other work, since they wait for each other once a step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 on a GPU and fp32 on a CPU. On a CPU with instructions for bf16 (AMX or AVX-512 BF16), `bf16` is
    about twice as fast for a model of CLIP's size, and slower for a small one."""
    zero_stage: Annotated[Whole, Field(ge=0, le=3)] = 0
    """From 1 on, ranks share the optimizer's states, from 2 on the gradients, and at 3 the weights, too. With bf16 the
    weights themselves are bf16 then; without ZeRO they are float32, and products alone are bf16."""
    memory_gb: GigabytesOrAuto = "auto"
    """Memory that a rank may take, in GB: of its GPU, or of the machine where there is none. `auto` is what is free,
    shared equally among the ranks of a machine. Where it is too little for all activations, some are recomputed in the
    backward pass, no more than necessary; the weights stay the same to the last bit."""
    compile: bool = False
    """Compile the towers with torch.compile; where that fails they run eagerly, with a warning."""
    peak_tflops: Annotated[Real, Field(gt=0, le=1_000_000)] | None = None
    """Peak TFLOP/s of a device, for the MFU; null looks it up, and leaves the MFU out where it is unknown."""
    loader_workers: Count | None = None
    """Processes that prepare the batches of a rank; null means none on a CPU, whose cores they would take, and 8
    beside a GPU."""
    checkpoint_every: Positive = 100
    """Most steps between checkpoints."""
    checkpoint_minutes: Annotated[Real, Field(gt=0, le=1_000_000)] = 15.0
    """Most minutes between checkpoints; the step under way is finished first."""
    keep_checkpoints: Positive = 2
    log_every: Positive = 10
    """Steps between lines of progress and logged metrics."""

    def is_half(self, on_gpu: bool) -> bool:
        """Whether the towers compute in bf16 on a device."""
        return self.precision == "bf16" or (self.precision == "auto" and on_gpu)

    def has_half_weights(self, on_gpu: bool) -> bool:
        """Whether the weights themselves are bf16."""
        return self.is_half(on_gpu) and self.zero_stage > 0

    def moments_can_lie_on_disk(self, on_gpu: bool, optimizer: OptimizerConfig) -> bool:
        """Whether a rank's optimizer is AdamW in float32 on a CPU, without ZeRO."""
        return not on_gpu and self.zero_stage == 0 and optimizer.name == "adamw"


class BeamSearchConfig(FrozenConfig):
    """How captions are generated, in evaluation and by the served model."""

    beam: Annotated[Whole, Field(gt=0, le=1000)] = 4
    """Hypotheses that are followed at once; 1 is greedy."""
    length_penalty: Weight = 1.0
    """The log probability of a caption is divided by its number of tokens to this power; 0 favours short ones."""


class EvaluationConfig(FrozenConfig):
    """What is measured, and with what uncertainty."""

    batch_size: Positive = 64
    bootstrap: Annotated[Whole, Field(ge=100, le=1_000_000)] = 1000
    """Resamples behind the 95 % intervals."""
    seed: Seed = 0
    labels: Place | None = None
    """Labels of the caption clips, for the type-token probe and for slot accuracy; null where a corpus has none."""
    queries: Place | None = None
    """Test sentences of every kind, each with all clips that it is true of (`queries.json`); null where a corpus has
    none."""
    identical_captions_match: bool = False
    """Whether a test caption is right for every clip that has the identical caption; published figures count its own
    clip only."""
    rerank: Count = 0
    """Nearest clips of a caption that the cross encoder reorders, reported beside the first order; 0 turns it off."""
    beam_search: BeamSearchConfig = BeamSearchConfig()


class GuardConfig(FrozenConfig):
    """A score that may not get worse by more than `tolerance` (same unit as the score)."""

    score: str
    tolerance: Weight


MODEL_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]*"
"""Pattern of the names of registered models."""


class GateConfig(FrozenConfig):
    """When a candidate becomes champion."""

    model_name: Annotated[str, Field(pattern=rf"^{MODEL_NAME}$", max_length=NAME_LENGTH)]
    """Name of the registered model."""
    primary: str
    """The score that must not be worse, paired on the same queries or clips, such as `text_to_clip/both/R@1`."""
    require_better: bool = False
    """True: the lower bound of the paired difference must be above 0; false: the difference must not be below 0."""
    floors: Annotated[dict[str, Score], BeforeValidator(_without_nulls)] = {}
    """Least value of each named score; for MdR and MnR, where less is better, the greatest. Null: none."""
    guards: tuple[GuardConfig, ...] = ()
    min_clips: Positive = 50
    """A test set of fewer clips is too small to tell two models apart: no candidate replaces a champion by it."""
    never_worse_than_best_modality: Weight | None = None
    """Points by which R@1 of both modalities together may stay below that of the better single one, for any kind of
    query; null does not compare them."""
    export_on_promotion: Place | None = None
    """Directory in which each promoted version is exported, as `NAME-VERSION`; null exports none."""


class GatesConfig(FrozenConfig):
    """The gate of each task."""

    retrieval: GateConfig
    captioning: GateConfig

    def of(self, task: TaskName) -> GateConfig:
        """The gate of `task`."""
        return self.retrieval if task == "retrieval" else self.captioning

    @model_validator(mode="after")
    def _names_differ(self) -> "GatesConfig":
        if self.retrieval.model_name == self.captioning.model_name:
            raise ValueError(
                f"retrieval and captioning have the same model_name {self.retrieval.model_name!r}: a model of one "
                "would replace, or be compared with, one of the other"
            )
        return self


class GenerationConfig(BeamSearchConfig):
    """How a model with a caption decoder generates captions."""

    modalities: Modality
    """What the decoder attends to."""


class InferenceConfig(FrozenConfig):
    """How a trained model reads media and texts outside of training: as in training, but for the number of frames.

    It is stored in `config.json` of a model directory, and with each version in the registry.
    """

    clips: ClipsConfig
    frames: Positive
    max_tokens: Tokens
    generation: GenerationConfig | None = None
    """None for a model without a caption decoder."""

    @classmethod
    def of(
        cls, clips: ClipsConfig, training: TrainingConfig, beam_search: BeamSearchConfig | None = None
    ) -> "InferenceConfig":
        """Of a model trained with `training`; `beam_search` (None: the default) is for one that generates captions."""
        generation = None
        if isinstance(training, CaptioningConfig):
            search = beam_search or BeamSearchConfig()
            generation = GenerationConfig(modalities=training.modalities, **search.model_dump())
        frames = training.inference_frames or training.frames
        return cls(clips=clips, frames=frames, max_tokens=training.max_tokens, generation=generation)

    def with_beam_search(self, beam_search: BeamSearchConfig) -> "InferenceConfig":
        """The same with another beam search, where captions are generated at all."""
        if self.generation is None:
            return self
        generation = self.generation.model_copy(update=beam_search.model_dump())
        return self.model_copy(update={"generation": generation})

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_names(cls, tree: Any) -> Any:
        """Versions registered before 0.1.0 have `words` for `max_tokens` and `writing` for `generation`."""
        if not isinstance(tree, dict) or "words" not in tree:
            return tree
        current = {name: value for name, value in tree.items() if name not in ("words", "writing")}
        if (writing := tree.get("writing")) is not None:
            modalities = "video" if writing["modalities"] == "vision" else writing["modalities"]
            current["generation"] = {"modalities": modalities, **writing["search"]}
        return {**current, "max_tokens": tree["words"]}


class Config(FrozenConfig):
    """`params.yaml` with its presets laid over it."""

    preset: PresetNames = (DEFAULT_PRESET,)
    """Names of presets, one or a list, that are laid over the sections below one after the other; `default` changes
    nothing."""
    seed: Seed
    """Seed of training; the corpus and the bootstrap have their own."""
    stampscenes: StampScenesConfig
    corpora: Annotated[dict[str, CorpusConfig], BeforeValidator(_without_nulls)]
    """Every corpus by its name; one that is null isn't there."""
    clips: ClipsConfig
    audio: AudioConfig
    model: ModelConfig
    pretraining: PretrainingConfig
    retrieval: RetrievalConfig
    captioning: CaptioningConfig
    ablation: AblationConfig
    trainer: TrainerConfig
    evaluation: EvaluationConfig
    gates: GatesConfig

    def task(self, task: TaskName) -> RetrievalConfig | CaptioningConfig:
        """The training section of `task`."""
        return self.retrieval if task == "retrieval" else self.captioning

    @field_validator("corpora")
    @classmethod
    def _names_are_plain(cls, corpora: dict[str, CorpusConfig]) -> dict[str, CorpusConfig]:
        return check_plain_names("corpus", corpora)

    @model_validator(mode="after")
    def _roles_are_filled(self) -> "Config":
        for role in ("pretraining", "finetuning"):
            if not any(corpus.role == role for corpus in self.corpora.values()):
                raise ValueError(f"corpora: none has the role {role}")
        return self

    def model_of(self, task: str) -> ModelConfig:
        """The model section for a training; only retrieval uses experts, other trainings start from the mean."""
        if self.model.fusion == "experts" and task != "retrieval":
            return self.model.model_copy(update={"fusion": "mean"})
        return self.model

    @model_validator(mode="after")
    def _unseen_clips_are_asked_for(self) -> "Config":
        unseen = [name for name, corpus in self.corpora.items() if corpus.role == "unseen"]
        if unseen and self.evaluation.queries is None:
            raise ValueError(f"corpora.{unseen[0]} has the role unseen, which is scored by evaluation.queries: set it")
        return self

    @model_validator(mode="after")
    def _shared_captions_match(self) -> "Config":
        if bool(self.retrieval.shared_text_both) != bool(self.retrieval.shared_captions_per_clip):
            raise ValueError(
                f"retrieval.shared_text_both is {self.retrieval.shared_text_both:g}, but shared_captions_per_clip is "
                f"{self.retrieval.shared_captions_per_clip}: set both or neither"
            )
        for term in EXPERT_TERMS:
            weight = getattr(self.retrieval, term)
            if weight and not (self.model.fusion == "experts" and self.retrieval.shared_captions_per_clip):
                raise ValueError(
                    f"retrieval.{term} is {weight:g}, which needs model.fusion: experts and "
                    "retrieval.shared_captions_per_clip"
                )
        if self.retrieval.shared_captions_per_clip and not self.retrieval.identical_captions_match:
            raise ValueError(
                "retrieval.shared_captions_per_clip needs retrieval.identical_captions_match: true, because a shared "
                "caption is right for several clips"
            )
        return self

    @model_validator(mode="after")
    def _muon_has_whole_matrices(self) -> "Config":
        for task in ("pretraining", *TASKS):
            if getattr(self, task).optimizer.name == "muon" and self.trainer.zero_stage:
                raise ValueError(
                    f"{task}.optimizer.name is 'muon', which needs whole matrices: set trainer.zero_stage to 0, or "
                    "train with 'adamw'"
                )
        return self

    @model_validator(mode="after")
    def _cross_encoder_is_trained(self) -> "Config":
        if self.retrieval.cross_encoder and self.model.fusion != "sequence":
            raise ValueError(
                f"retrieval.cross_encoder is {self.retrieval.cross_encoder:g}, but model.fusion is "
                f"{self.model.fusion!r}: the cross encoder needs 'sequence'"
            )
        if self.evaluation.rerank and not self.retrieval.cross_encoder:
            raise ValueError(
                f"evaluation.rerank is {self.evaluation.rerank}, but retrieval.cross_encoder is 0: no cross encoder "
                "is trained"
            )
        if self.retrieval.cross_encoder and self.retrieval.micro_batch_size == "auto":
            raise ValueError(
                f"retrieval.micro_batch_size is auto, but retrieval.cross_encoder is {self.retrieval.cross_encoder:g}: "
                "its negatives are those of a micro-batch, whose size must be a number"
            )
        return self

    @model_validator(mode="after")
    def _frames_are_stored(self) -> "Config":
        sections = {"pretraining": self.pretraining, "retrieval": self.retrieval, "captioning": self.captioning}
        for section, training in sections.items():
            for name in ("frames", "inference_frames"):
                if (getattr(training, name) or 0) > self.clips.frames:
                    raise ValueError(
                        f"{section}.{name} is {getattr(training, name)}, but clips.frames, the number stored, is "
                        f"{self.clips.frames}"
                    )
        return self


@dataclass(frozen=True)
class _Layer:
    """A file and what it holds: `params.yaml`, or a preset."""

    path: Path
    tree: Any

    def names(self, place: Sequence[int | str]) -> bool:
        """Whether the file sets the value at `place`, as pydantic locates it."""
        tree = self.tree
        for key in place:
            if not isinstance(tree, dict):
                return True
            if key not in tree:
                return False
            tree = tree[key]
        return True


def load_config(path: Path = Path("params.yaml"), preset: str | Sequence[str] | None = None) -> Config:
    """Read and check `path` and its presets, with `preset` in place of those that the file names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file isn't YAML, a preset has no file, or a key is unknown, missing, twice there or out of range;
            the message names the file and the key.
    """
    tree = read_yaml(path)
    if preset is not None and isinstance(tree, dict):
        tree = {**tree, "preset": preset}
    layers = [_Layer(path, tree)]
    _add_presets(layers[0], path.parent / PRESETS, layers, ())
    try:
        return Config.model_validate(_merged(layers))
    except ValidationError as error:
        raise ValueError("\n".join(_lines_by_file(error, layers))) from None


def _merged(layers: Sequence[_Layer]) -> Any:
    """The tree of the first layer with the others laid over it; which presets they are, only the first one says."""
    tree = layers[0].tree
    for layer in layers[1:]:
        tree = _laid_over(tree, {key: value for key, value in layer.tree.items() if key != "preset"})
    return tree


def _add_presets(layer: _Layer, directory: Path, layers: list[_Layer], outer: tuple[Path, ...]) -> None:
    """Append the presets that `layer` names to `layers`, each after those that it names itself, and each once.

    Raises:
        ValueError: a name has no file, a file isn't a mapping in YAML, or a preset names itself.
    """
    names = _as_list(layer.tree.get("preset", [])) if isinstance(layer.tree, dict) else []
    if not isinstance(names, list | tuple):
        raise ValueError(f"{layer.path} is not valid:\n  preset: {names!r} is neither a name nor a list of names")
    for name in names:
        if name == DEFAULT_PRESET:
            continue
        path = directory / f"{name}.yaml"
        if not (isinstance(name, str) and PRESET_NAME.fullmatch(name) and path.is_file()):
            known = ", ".join([DEFAULT_PRESET, *sorted(file.stem for file in directory.glob("*.yaml"))])
            raise ValueError(f"{layer.path} is not valid:\n  preset: {name!r} is none of {known}")
        if path in outer:
            raise ValueError(f"{layer.path} is not valid:\n  preset: {name!r} leads back to itself")
        if any(path == other.path for other in layers):
            continue
        preset = _Layer(path, read_yaml(path))
        if not isinstance(preset.tree, dict):
            raise ValueError(f"{path} is not valid:\n  (top): a preset has sections of params.yaml")
        _add_presets(preset, directory, layers, (*outer, path))
        layers.append(preset)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't YAML, or a key is there twice; the message names file and place.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"{path} is not valid YAML: {error.problem}{place}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: not UTF-8, or a date that isn't one
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def to_yaml(tree: Mapping[str, Any]) -> str:
    """`tree` as YAML, in the order of its keys."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=120)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, for which a key that is given twice is an error; elsewhere the last one is taken."""

    def compose_mapping_node(self, anchor: dict[Any, Any]) -> yaml.MappingNode:
        """Compose a mapping; its keys are compared before merges (`<<`) add those of other mappings."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return node


def _lines_by_file(error: ValidationError, layers: Sequence[_Layer]) -> list[str]:
    """For each file with mistakes its name, then a line per mistake: where, and what.

    A value is a mistake of the last file that sets it; what is missing or contradicts itself, of the first, which names
    the others.
    """
    first, *presets = [str(layer.path) for layer in layers]
    found: dict[str, list[str]] = {}
    for mistake in error.errors():
        place = mistake["loc"]
        setting = [layer.path for layer in layers if place and layer.names(place)]
        file = str(setting[-1]) if setting else " with ".join(filter(None, [first, ", ".join(presets)]))
        where = ".".join(map(str, place)) or "(top)"
        found.setdefault(file, []).append(f"  {where}: {mistake['msg'].removeprefix('Value error, ')}")
    return [line for file, lines in found.items() for line in (f"{file} is not valid:", *lines)]


def _laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section: the other keys of a section stay."""
    nested = {
        k: _laid_over(base[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(base.get(k), dict)
    }
    return {**base, **changes, **nested}
