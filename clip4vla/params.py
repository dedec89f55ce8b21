"""The whole of `params.yaml`, typed, documented and frozen; this module is its only reader.

In: a YAML file. Out: one `Params` tree, whose small sections are what the parts of the package take.
An unknown key, a missing key or a value out of range is a `ValueError` that names the file and the key.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clip4vla.records import Modality

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]

AudioToken = Literal["none", "verbal", "nonverbal", "both", "sample"] | Annotated[float, Field(ge=0, le=1)]
"""What tells the audio tower what to listen for: no token, one kind, both appended, the kind of each sample's
text, or a number w mixing (1 - w) verbal + w nonverbal."""


class Section(BaseModel):
    """Base of every section: immutable, and a key that isn't declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StampScenesParams(Section):
    """The embedded corpus, composed from Debian's `tuxpaint-stamps-default`."""

    package: str | None
    """Path of an already downloaded .deb; null downloads it with `apt-get download`."""
    language: Literal["bg", "ca", "es", "fr", "ro", "ru"]
    """Language of the voices and of the words that they say."""
    seed: int
    things: Annotated[int, Field(ge=8)]
    """How many labelled things can be seen and named; those with a sound effect come first."""
    pretrain_clips: Positive
    """Clips of the pretraining corpus; half are narrated (verbal), half are sounding (nonverbal)."""
    caption_pairs: dict[Literal["train", "val", "test"], Positive]
    """Pairs (sound heard, word said) of the caption corpus by split."""
    pictures_per_pair: dict[Literal["train", "val", "test"], Positive]
    """Each pair is shown with this many different pictures, so that hearing alone can't tell the clips apart."""
    seconds: Annotated[float, Field(gt=1)]
    size: Annotated[int, Field(ge=32, multiple_of=2)]
    """Width and height of the videos in pixels."""
    fps: Positive
    background_db: tuple[float, float]
    """Range of the level, relative to the leading sound, of the other kind of sound in a pretraining clip."""
    voice_db: tuple[float, float]
    """Range of the level of the voice in a caption clip, relative to the sound effect."""
    noise_db: tuple[float, float]
    """Range of the level of the noise, relative to the leading sound."""


class CorpusParams(Section):
    """One corpus: where its published annotations and its media lie, and what it is used for."""

    adapter: str
    """Name of the adapter in `clip4vla/corpora/`."""
    role: Literal["pretrain", "finetune"]
    annotations: str
    """Directory of the published annotation files, relative to the project."""
    media: str
    """Directory of the media, relative to the project."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share in the pretraining mixture, relative to the other pretraining corpora."""


class ClipsParams(Section):
    """What is stored of a clip."""

    frames: Positive
    """Frames per clip, evenly spread over its span."""
    size: Positive
    """Shorter side of a stored frame in pixels."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)]
    max_seconds: Annotated[float, Field(gt=0)]
    """A longer clip keeps the middle of its sound."""
    verbal_above: Fraction | None
    """Texts whose corpus doesn't say what they are about count as verbal where more of the sound than this is speech,
    else as nonverbal; null leaves them as they are, and the tower listens for both."""
    workers: Annotated[int, Field(ge=0)]
    """Processes that decode; 0 means one per core."""
    dask: str | None
    """Address of a Dask cluster whose workers decode instead (`tcp://host:8786`), on a file system shared with it."""
    max_reject_fraction: Fraction
    """The stage fails when a larger fraction of its records is rejected."""


class AudioParams(Section):
    """The log-mel front end. Rows (time) and bands of a tile equal the tower's image size."""

    sample_rate: Positive
    n_fft: Positive
    hop: Positive | None
    """Samples between rows; null takes the hop whose tile lasts as long as the published one (1.792 s)."""
    tiles: Positive
    """Most tiles of a clip; a longer sound is cropped, at random in training and to its middle otherwise."""
    recipe: Literal["masked", "published"]
    """`masked` keeps padding out of the statistics and fills SpecAugment with the mean; `published` reproduces
    the published code, whose padding and masks are loud (0 dB)."""
    freq_mask_fraction: Fraction
    """SpecAugment: frequency masks per band (published 0.05)."""
    time_mask_fraction: Fraction
    """SpecAugment: time masks per row (published 0.15)."""
    mask_width: Annotated[int, Field(ge=0)]
    """SpecAugment: a mask's width is drawn from 0 to this (published 9)."""


class ModelParams(Section):
    """The towers and how they are joined."""

    architecture: str
    """An open_clip model name, or the name of a config in `clip4vla/model/architectures/`."""
    weights: str | None
    """An open_clip pretrained tag (`openai`), the path of a checkpoint, or null to train from scratch."""
    fusion: Literal["mean", "sequence"]
    """How vision and audio become one vector: mean of the two, or a transformer over their sequence."""
    fusion_layers: Positive
    audio_token: AudioToken
    """Type token in fine-tuning and evaluation, where a text speaks of everything."""
    temperature: Literal["learned", "fixed"]
    """Learned logit scale (CLIP), or fixed at 100 (published)."""


class OptimizerParams(Section):
    """AdamW with linear warm-up and cosine decay."""

    lr: Annotated[float, Field(gt=0)]
    """Peak rate of the audio tower and the fusion."""
    text_lr_ratio: Weight
    """Rate of CLIP's text tower, as a multiple of `lr`: far below 1 when it starts from weights worth keeping."""
    vision_lr_ratio: Weight
    """The same of CLIP's image tower."""
    betas: tuple[Fraction, Fraction]
    eps: Annotated[float, Field(gt=0)]
    weight_decay: Weight
    """On matrices only: norms, biases, embeddings and the logit scale have none."""
    warmup: Fraction
    """Fraction of the steps."""
    clip_norm: Annotated[float, Field(gt=0)]


class TrainingParams(Section):
    """What pretraining and fine-tuning have in common."""

    epochs: Positive
    batch_size: Positive
    """Clips per step over all ranks, which is the number each clip is contrasted with."""
    micro_batch_size: Positive
    """Clips per rank that pass through the towers at once; gradients are those of the whole batch."""
    frames: Positive
    """Frames per clip, of those stored."""
    words: Annotated[int, Field(ge=4)]
    """Text tokens, start and end included."""
    sentences: Positive
    """Sentences of a clip that a step reads, drawn anew each time; the terms with text are means over them."""
    time_shift: bool
    """Begin each sound anywhere in itself and go round, anew each epoch: when a thing sounds tells nothing."""
    optimizer: OptimizerParams


class PretrainParams(TrainingParams):
    """Contrastive pretraining: the weight of each term, 0 turning it off."""

    text_audio: Weight
    video_audio: Weight
    audio_audio: Weight
    text_video: Weight
    text_text: Weight
    """Published with self-supervision: texts against themselves, which only pushes different clips apart."""
    video_video: Weight
    """The same of what is seen: it only pushes different clips apart."""


class FinetuneParams(TrainingParams):
    """Retrieval fine-tuning: the weight of each term, 0 turning it off."""

    text_both: Weight
    text_video: Weight
    text_audio: Weight
    text_cross: Weight
    """Of the score that reads a text and a clip together, for `evaluate.rerank`; wants `model.fusion: sequence`. It is
    taught with the nearest clips of a micro-batch."""


class CaptionParams(TrainingParams):
    """Captioning: what the decoder attends to and how it is trained."""

    modalities: Modality
    """What the decoder attends to."""
    modality_dropout: Fraction
    """With `both`: fraction of the clips of a step of which only what is seen, or only what is heard, is attended to,
    so that one model captions by either alone as well."""
    min_words: Annotated[int, Field(ge=0)]
    """Shorter sentences aren't learnt from, unless a clip has no others: they leave out what captions should say."""
    label_smoothing: Fraction
    vocabulary: Literal["corpus", "full"]
    """The tokens that a caption may have: those of the training captions, or all of CLIP's, whose logits cost most of
    a step on a CPU."""


class AblateParams(Section):
    """The sweep over audio tokens: one fine-tuning each, on the fine-tuning settings but for its length."""

    audio_tokens: tuple[AudioToken, ...]
    epochs: Positive


class TrainerParams(Section):
    """How training runs on this machine; no figure of a model should depend on it."""

    ranks: Annotated[int, Field(ge=0)]
    """Processes on this node; 0 means one per GPU, or one on a CPU."""
    precision: Literal["auto", "fp32", "bf16"]
    """`auto` is bf16 on a GPU and fp32 on a CPU."""
    zero_stage: Annotated[int, Field(ge=0, le=3)]
    activation_checkpointing: bool
    compile: bool
    """Compile the towers with torch.compile; where that fails they run eagerly, with a warning."""
    peak_tflops: Annotated[float, Field(gt=0)] | None
    """Peak TFLOP/s of a device, of which the MFU is the used share; null looks it up, and leaves the MFU out where
    it isn't known."""
    loader_workers: Annotated[int, Field(ge=0)] | None
    """Processes that prepare a rank's batches; null means none on a CPU, where they would take its cores, and 8
    beside a GPU."""
    checkpoint_every: Positive
    """Steps between checkpoints."""
    keep_checkpoints: Positive
    log_every: Positive
    """Steps between lines of progress and logged metrics."""


class SearchParams(Section):
    """How captions are searched for, in evaluation and by the served model."""

    beam: Positive
    """Hypotheses that are followed at once; 1 is greedy."""
    length_penalty: Weight
    """A caption's log probability is divided by its number of tokens to this power: 0 favours short ones, 1 none."""


class EvaluateParams(Section):
    """What is measured, and how sure we are of it."""

    batch_size: Positive
    bootstrap: Annotated[int, Field(ge=100)]
    """Resamplings behind the 95 % intervals."""
    seed: int
    labels: str | None
    """The labels behind the caption clips, for the type-token probe and for what captions should name; null where a
    corpus has none."""
    rerank: Annotated[int, Field(ge=0)]
    """Nearest clips of a caption that a model with a cross-attending score puts in order by it, a second opinion which
    is reported beside the first; 0 asks for none."""
    search: SearchParams


class GuardParams(Section):
    """A score that may not get worse by more than `tolerance` (same unit as the score)."""

    score: str
    tolerance: Weight


class GateParams(Section):
    """When a candidate becomes champion."""

    model_name: str
    primary: str
    """The score that must not be worse, paired on the same queries or clips; `text_to_clip/both/R@1` and so on."""
    require_better: bool
    """True: the lower bound of the paired difference must be above 0; false: the difference must not be below it."""
    floors: dict[str, float]
    """Least value of each named score; of MdR and MnR, where less is better, the greatest."""
    guards: tuple[GuardParams, ...]


PresetSection = Literal["audio", "model", "pretrain", "finetune", "caption"]
"""What a preset may change: how a model is trained, not the data that it is trained on."""


class Params(Section):
    """`params.yaml`, whole, with the chosen preset laid over it."""

    preset: str
    """Which of `presets` is laid over the sections below."""
    presets: dict[str, dict[PresetSection, dict[str, Any]]]
    """Named changes to the sections below; what a preset doesn't name stays."""
    seed: int
    """Seed of training; the corpus and the bootstrap have their own."""
    stampscenes: StampScenesParams
    corpora: dict[str, CorpusParams]
    clips: ClipsParams
    audio: AudioParams
    model: ModelParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    caption: CaptionParams
    ablate: AblateParams
    trainer: TrainerParams
    evaluate: EvaluateParams
    gate: GateParams
    """Of the retrieval model."""
    caption_gate: GateParams
    """Of the captioning model."""

    @model_validator(mode="before")
    @classmethod
    def _lay_preset_over(cls, tree: Any) -> Any:
        presets = tree.get("presets") if isinstance(tree, dict) else None
        if not isinstance(presets, dict) or "preset" not in tree:
            return tree
        if tree["preset"] not in presets:
            raise ValueError(f"preset: {tree['preset']!r} is none of {', '.join(presets)}")
        changes = presets[tree["preset"]]
        return _laid_over(tree, changes) if isinstance(changes, dict) else tree

    @model_validator(mode="after")
    def _every_preset_is_right(self) -> "Params":
        for name, preset in self.presets.items():
            for section, changes in preset.items():
                base = getattr(self, section)
                try:
                    type(base).model_validate(_laid_over(base.model_dump(), changes))
                except ValidationError as error:
                    raise ValueError(f"presets.{name}.{section}.{_lines(error)[0].strip()}") from None
        return self

    @model_validator(mode="after")
    def _roles_are_filled(self) -> "Params":
        for role in ("pretrain", "finetune"):
            if not any(corpus.role == role for corpus in self.corpora.values()):
                raise ValueError(f"corpora: none has the role {role}")
        return self

    @model_validator(mode="after")
    def _a_second_opinion_is_taught(self) -> "Params":
        if self.finetune.text_cross and self.model.fusion != "sequence":
            raise ValueError(
                f"finetune.text_cross is {self.finetune.text_cross:g}, but model.fusion is {self.model.fusion!r}: "
                "texts and clips are read together only by 'sequence'"
            )
        if self.evaluate.rerank and not self.finetune.text_cross:
            raise ValueError(
                f"evaluate.rerank is {self.evaluate.rerank}, but finetune.text_cross is 0, so nothing teaches the score"
            )
        return self

    @model_validator(mode="after")
    def _frames_are_stored(self) -> "Params":
        trainings = {"pretrain": self.pretrain, "finetune": self.finetune, "caption": self.caption}
        for name, training in trainings.items():
            frames = training.frames
            if frames > self.clips.frames:
                raise ValueError(f"{name}.frames is {frames}, but clips.frames, those stored, is {self.clips.frames}")
        return self


def load_params(path: Path = Path("params.yaml"), preset: str | None = None) -> Params:
    """Read and check `path`, with `preset` in place of the one that the file chooses.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file isn't YAML, or a key is unknown, missing or out of range; the message names it.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        if preset is not None and isinstance(tree, dict):
            tree["preset"] = preset
        return Params.model_validate(tree)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        raise ValueError("\n".join([f"{path} is not right:", *_lines(error)])) from None


def _lines(error: ValidationError) -> list[str]:
    """A line per mistake: where, and what."""
    return [f"  {'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}" for e in error.errors()]


def _laid_over(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, section by section: a section's other keys stay."""
    nested = {k: _laid_over(base[k], v) for k, v in changes.items() if _is_section(v) and _is_section(base.get(k))}
    return {**base, **changes, **nested}


def _is_section(value: Any) -> bool:
    return isinstance(value, dict)
