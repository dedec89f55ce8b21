"""Whatever the container, the codec and its habits: the right frames, the right sound, or a reason why not."""

import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clip4vla.media.decode import Span, decode, duration_s
from clip4vla.media.encode import encode
from clip4vla.media.source import MediaError
from tests.media.sample import GREYS, SECONDS, encode_sound, grey, index_of, onset, rotate_metadata, tone, write_media

RATE = 16000


def read(path: Path, start: float = 0.0, end: float | None = None, frames: int = 4, side: int = 24) -> Span:
    return decode(path, start, end, frames=frames, short_side=side, sample_rate=RATE)


def reason(path: Path, start: float = 0.0, end: float | None = None) -> str:
    with pytest.raises(MediaError) as error:
        read(path, start, end)
    assert str(path) in error.value.detail
    return error.value.reason


FILES = [
    ("mp4", "libx264", "aac", 16000, "mono"),
    ("mp4", "libx264", "aac", 44100, "stereo"),
    ("mp4", "mpeg4", "libmp3lame", 22050, "stereo"),
    ("mp4", "libx264", "aac", 48000, "5.1"),
    ("mkv", "libx264", "libopus", 48000, "stereo"),
    ("mkv", "libvpx-vp9", "libopus", 48000, "5.1"),
    ("mkv", "mpeg4", "libmp3lame", 44100, "mono"),
    ("webm", "libvpx-vp9", "libopus", 8000, "mono"),
    ("avi", "mpeg4", "libmp3lame", 44100, "stereo"),
    ("avi", "mpeg4", "aac", 32000, "mono"),
    ("ts", "libx264", "aac", 44100, "stereo"),
    ("mov", "mpeg4", "aac", 8000, "mono"),
]


@pytest.mark.parametrize(("suffix", "video", "audio", "rate", "layout"), FILES)
def test_every_format_gives_the_same_frames_and_sound(tmp_path, suffix, video, audio, rate, layout) -> None:
    path = write_media(tmp_path / f"clip.{suffix}", video, audio, rate=rate, layout=layout)
    span = read(path)
    # the middles of four shares of 2 s at 10 frames a second; containers that estimate their length may be off by one
    assert [index_of(frame) for frame in span.frames] == pytest.approx([2, 7, 12, 17], abs=1)
    assert all(frame.size == (32, 24) and frame.mode == "RGB" for frame in span.frames)
    assert span.audio is not None
    assert span.audio.dtype == np.int16
    assert span.audio.shape[0] == (1 if layout == "mono" else 2)
    assert span.audio.shape[1] == pytest.approx(SECONDS * RATE, abs=0.24 * RATE)
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=0.04)
    middle = span.audio[0, int(1.3 * RATE) : int(1.8 * RATE)].astype(float)
    spectrum = np.abs(np.fft.rfft(middle))
    assert np.argmax(spectrum) * RATE / len(middle) == pytest.approx(440, abs=4)


@pytest.mark.parametrize(("suffix", "video", "audio", "rate", "layout"), FILES)
def test_picture_and_sound_agree_after_a_seek(tmp_path, suffix, video, audio, rate, layout) -> None:
    times = [i / 10 for i in range(60)]
    wave = tone(rate, seconds=6.0, onset_s=4.5)
    path = write_media(tmp_path / f"long.{suffix}", video, audio, rate=rate, layout=layout, times=times, wave=wave)
    complete = read(path, frames=60)
    span = read(path, 4.0, 5.0, frames=2)  # in the middle of a group of pictures
    assert span.audio is not None
    assert complete.audio is not None
    assert span.audio.shape[1] == RATE
    assert onset(span.audio, RATE) == pytest.approx(0.5, abs=0.04)
    assert onset(complete.audio, RATE) == pytest.approx(4.5, abs=0.04)
    assert [index_of(frame) for frame in span.frames] == pytest.approx([42 % GREYS, 47 % GREYS], abs=1)
    assert [index_of(complete.frames[i]) for i in (10, 40)] == pytest.approx([10, 40 % GREYS], abs=1)


def test_frames_come_from_their_own_moment(tmp_path: Path) -> None:
    path = write_media(tmp_path / "clip.mp4", audio=None)
    for start, end, expected in [(0, 1, [2, 7]), (1, 2, [12, 17]), (0.3, 0.5, [3, 4]), (1.5, 99, [16, 18])]:
        assert [index_of(f) for f in read(path, start, end, frames=2).frames] == expected


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx-vp9")])
def test_variable_frame_rate_goes_by_timestamps(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_media(tmp_path / f"vfr.{suffix}", codec, "libopus", rate=48000, times=[0.0, 0.1, 0.2, 1.0, 1.9, 1.95])
    # on screen at 0.1, 0.3, ... 1.9 s
    expected = [1, 2, 2, 2, 2, 3, 3, 3, 3, 4]
    assert [index_of(f) for f in read(path, 0, 2.0, frames=10).frames] == expected


def test_a_frame_asked_for_exactly_when_it_appears_is_that_frame(tmp_path: Path) -> None:
    path = write_media(tmp_path / "clip.mkv", audio=None)
    assert [index_of(f) for f in read(path, 0.45, 0.55, frames=1).frames] == [5]


def test_more_frames_than_there_are_repeat_what_is_on_screen(tmp_path: Path) -> None:
    path = write_media(tmp_path / "clip.mp4", audio=None, times=[0.0, 0.5])
    shown = [index_of(f) for f in read(path, frames=8).frames]
    assert shown == sorted(shown)
    assert set(shown) == {0, 1}


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_in_the_metadata_is_obeyed(tmp_path: Path, turns: int) -> None:
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:24, :24] = 255  # white in the upper left corner
    path = tmp_path / "turned.mp4"
    encode(path, np.repeat(picture[None], 8, 0), 8, np.zeros(RATE, np.float32), RATE)
    frame = np.asarray(read(rotate_metadata(path, turns), frames=1, side=48).frames[0])
    expected = np.rot90(picture, -turns)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 12


def test_resizing_is_bicubic_and_keeps_the_aspect(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grain = Image.fromarray(rng.integers(0, 255, (60, 100), dtype=np.uint8))
    noise = grain.resize((400, 240), Image.Resampling.BICUBIC).convert("RGB")
    path = tmp_path / "noise.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 400, 240, "yuv420p"
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(noise)))
        container.mux(stream.encode(None))
    frame = read(path, frames=1, side=48).frames[0]
    assert frame.size == (80, 48)

    def distance(filter_: Image.Resampling) -> float:
        return float(np.abs(np.asarray(frame, int) - np.asarray(noise.resize((80, 48), filter_), int)).mean())

    assert distance(Image.Resampling.BICUBIC) < 2
    assert distance(Image.Resampling.BICUBIC) < min(map(distance, (Image.Resampling.BOX, Image.Resampling.BILINEAR)))


def test_an_odd_portrait_size_is_read(tmp_path: Path) -> None:
    frame = read(write_media(tmp_path / "clip.mkv", "libx264", None, size=(46, 82)), side=33).frames[0]
    assert frame.size == (33, 59)


def test_video_without_audio_has_no_audio(tmp_path: Path) -> None:
    span = read(write_media(tmp_path / "silent.mp4", audio=None))
    assert span.audio is None
    assert len(span.frames) == 4


@pytest.mark.parametrize(("suffix", "codec"), [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("flac", "flac"),
                                               ("m4a", "aac"), ("ogg", "libopus")])  # fmt: skip
def test_audio_without_video_has_no_frames(tmp_path: Path, suffix: str, codec: str) -> None:
    rate = 48000 if codec == "libopus" else 44100
    path = write_media(tmp_path / f"sound.{suffix}", None, codec, rate=rate, wave=tone(rate, 6.0, 4.5))
    for start, end, expected in [(0.0, None, 4.5), (4.0, 5.0, 0.5), (4.4, 6.0, 0.1)]:
        span = read(path, start, end)
        assert span.frames == ()
        assert span.audio is not None
        assert onset(span.audio, RATE) == pytest.approx(expected, abs=0.01)


def test_a_picture_on_the_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")
        container.mux(cover.encode(image.reformat(format="yuvj420p")))
        container.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(tone(RATE)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    span = read(path)
    assert span.frames == ()
    assert span.audio is not None


def test_sound_that_starts_later_stays_later(tmp_path: Path) -> None:
    path = write_media(tmp_path / "late.mkv", audio_at=0.5, wave=tone(RATE, 1.5, 0.0))
    span = read(path)
    assert span.audio is not None
    assert onset(span.audio, RATE) == pytest.approx(0.5, abs=0.04)
    assert not span.audio[:, : int(0.4 * RATE)].any()
    later = read(path, 0.25, 2.0)
    assert later.audio is not None
    assert onset(later.audio, RATE) == pytest.approx(0.25, abs=0.04)


def test_a_gap_in_the_sound_is_silence(tmp_path: Path) -> None:
    wave = tone(RATE, 2.0, 0.0)
    wave[: int(1.5 * RATE)] *= 0.02
    path = write_media(tmp_path / "gap.mkv", "libx264", "pcm_s16le", wave=wave, gap=(0.5, 1.2))
    span = read(path)
    assert span.audio is not None
    assert not span.audio[:, int(0.6 * RATE) : int(1.1 * RATE)].any()
    assert onset(span.audio, RATE) == pytest.approx(1.5, abs=0.02)


def test_channels_are_kept_apart(tmp_path: Path) -> None:
    wave = np.stack([tone(RATE, onset_s=0.0), np.zeros(2 * RATE, np.float32)])
    span = read(write_media(tmp_path / "left.mkv", "libx264", "pcm_s16le", layout="stereo", wave=wave))
    assert span.audio is not None
    assert np.abs(span.audio[0]).max() > 10000
    assert np.abs(span.audio[1]).max() == 0


def test_a_span_beyond_the_end_is_cut_to_the_file(tmp_path: Path) -> None:
    path = write_media(tmp_path / "clip.mp4")
    span = read(path, 1.0, 50.0)
    assert span.audio is not None
    assert span.audio.shape[1] == RATE
    assert [index_of(frame) for frame in span.frames] == [11, 13, 16, 18]
    assert reason(path, 2.0) == "too_short"
    assert reason(path, 30.0, 40.0) == "too_short"
    assert reason(path, 1.0, 1.05) == "too_short"


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_a_clock_that_does_not_begin_at_zero(tmp_path: Path, suffix: str) -> None:
    times = [7 + i / 10 for i in range(20)]
    path = write_media(tmp_path / f"late.{suffix}", rate=48000, times=times, audio_at=7.0)
    span = read(path)
    assert [index_of(frame) for frame in span.frames] == pytest.approx([2, 7, 12, 17], abs=1)
    assert span.audio is not None
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=0.04)
    later = read(path, 0.8, 1.8, frames=1)
    assert later.audio is not None
    assert onset(later.audio, RATE) == pytest.approx(0.2, abs=0.04)
    assert index_of(later.frames[0]) == pytest.approx(12.5, abs=1)


def test_a_live_webm_states_no_duration(tmp_path: Path) -> None:
    path = write_media(tmp_path / "live.webm", "libvpx-vp9", "libopus", rate=48000, options={"live": "1"})
    span = read(path)
    assert span.audio is not None
    assert span.audio.shape[1] == pytest.approx(2 * RATE, abs=0.1 * RATE)
    assert [index_of(frame) for frame in span.frames] == pytest.approx([2, 7, 12, 17], abs=1)


@pytest.mark.parametrize(("suffix", "video", "audio"), [("mp4", "libx264", "aac"), ("webm", "libvpx-vp9", "libopus")])
def test_how_long_a_file_lasts(tmp_path: Path, suffix: str, video: str, audio: str) -> None:
    path = write_media(tmp_path / f"two.{suffix}", video, audio, rate=48000)
    assert duration_s(path) == pytest.approx(2.0, abs=0.1)
    with pytest.raises(MediaError, match="missing: no file"):
        duration_s(tmp_path / "missing.mp4")
    path.write_text("no media")
    with pytest.raises(MediaError, match="corrupt: "):
        duration_s(path)


def test_a_clock_that_begins_before_zero(tmp_path: Path) -> None:
    options = {"avoid_negative_ts": "disabled"}
    times = [-1 + i / 10 for i in range(20)]
    path = write_media(tmp_path / "early.ts", rate=48000, times=times, audio_at=-1.0, options=options)
    with av.open(str(path)) as container:
        assert container.start_time is not None
        assert container.start_time < -900_000
    span = read(path)
    assert [index_of(frame) for frame in span.frames] == pytest.approx([2, 7, 12, 17], abs=1)
    assert span.audio is not None
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=0.07)


PIXELS = [
    ("mkv", "libx264", "yuv420p10le", (64, 48)),
    ("mkv", "libx264", "yuv444p", (65, 49)),
    ("mkv", "libx264", "gray", (65, 49)),
    ("mp4", "libx264", "yuv422p10le", (64, 48)),
    ("webm", "libvpx-vp9", "yuva420p", (65, 49)),
    ("mkv", "ffv1", "gray16le", (64, 48)),
    ("mkv", "ffv1", "bgr0", (65, 49)),
    ("mov", "prores_ks", "yuv422p10le", (64, 48)),
    ("avi", "mjpeg", "yuvj420p", (65, 49)),
    ("wmv", "wmv2", "yuv420p", (64, 48)),
    ("flv", "flv", "yuv420p", (64, 48)),
]


@pytest.mark.parametrize(("suffix", "codec", "pixels", "size"), PIXELS)
def test_depths_and_samplings_of_pictures(tmp_path: Path, suffix: str, codec: str, pixels: str, size) -> None:
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        for index in range(50):
            picture = np.full((size[1], size[0], 3), grey(index // 5), np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = read(path).frames
    assert [index_of(frame) for frame in frames] == pytest.approx([1, 3, 6, 8], abs=1)
    assert {frame.mode for frame in frames} == {"RGB"}
    assert {frame.size for frame in frames} == {(round(24 * size[0] / size[1]), 24)}


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 22050, 24000, 32000, 48000])
def test_rates_of_sound(tmp_path: Path, rate: int) -> None:
    span = read(write_media(tmp_path / "sound.mkv", None, "pcm_s16le", rate=rate))
    assert span.audio is not None
    assert span.audio.shape == (1, pytest.approx(SECONDS * RATE, abs=0.01 * RATE))
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=0.005)


def test_a_huge_picture_is_read_and_a_thread_of_one_is_not(tmp_path: Path) -> None:
    times = (0.0, 0.1, 0.2, 0.3)
    huge = write_media(tmp_path / "huge.mkv", "mpeg4", None, times=times, size=(3840, 2160))
    assert [frame.size for frame in read(huge, frames=2).frames] == [(43, 24)] * 2
    assert reason(write_media(tmp_path / "thread.mkv", "mpeg4", None, times=times, size=(6000, 4))) == "too_thin"


def test_pictures_of_nothing_that_moves(tmp_path: Path) -> None:
    for suffix in ("jpg", "png", "webp"):
        Image.new("RGB", (64, 48)).save(tmp_path / f"picture.{suffix}")
        assert reason(tmp_path / f"picture.{suffix}") == "too_short"
    shades = [Image.new("RGB", (64, 48), (grey(i),) * 3) for i in range(10)]
    shades[0].save(tmp_path / "moving.gif", save_all=True, append_images=shades[1:], duration=200)
    assert [index_of(frame) for frame in read(tmp_path / "moving.gif").frames] == pytest.approx([1, 3, 6, 8], abs=1)


@pytest.mark.parametrize("suffix", ["mp3", "flac"])
def test_a_cover_inside_a_sound_file_is_no_video(tmp_path: Path, suffix: str) -> None:
    codec = {"mp3": "libmp3lame", "flac": "flac"}[suffix]
    path = tmp_path / f"song.{suffix}"
    with av.open(str(path), "w") as container:
        sound = container.add_stream(codec, rate=44100, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")
        packets = [*cover.encode(image.reformat(format="yuvj420p")), *cover.encode(None)]
        packets += list(encode_sound(sound, tone(44100), 44100, "mono"))
        for packet in packets:
            container.mux(packet)
    span = read(path)
    assert span.frames == ()
    assert span.audio is not None
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(("codec", "layout"), [("pcm_f32le", "mono"), ("pcm_f64le", "stereo")])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_finite_numbers_are_silent(tmp_path: Path, codec: str, layout: str, value: float) -> None:
    wave = tone(16_000, onset_s=0.0)
    wave = np.stack([wave] * 2) if layout == "stereo" else wave[None]
    whole = write_media(tmp_path / "whole.wav", None, codec, layout=layout, wave=wave)
    expected = read(whole).audio
    assert expected is not None
    kind = np.dtype({"pcm_f32le": "<f4", "pcm_f64le": "<f8"}[codec])
    data = whole.read_bytes()
    begin = data.index(b"data") + 8
    samples = np.frombuffer(data[begin:], kind).copy()
    channels = len(wave)
    samples[8_000 * channels : 8_100 * channels] = value
    path = tmp_path / "wrong.wav"
    path.write_bytes(data[:begin] + samples.tobytes())
    span = read(path)
    assert span.audio is not None
    assert not span.audio[:, 8_000:8_100].any()
    np.testing.assert_array_equal(span.audio[:, :8_000], expected[:, :8_000])
    np.testing.assert_array_equal(span.audio[:, 8_100:], expected[:, 8_100:])
    number = f"{100 * channels:,} of {len(samples):,} samples"
    assert span.notes == (f"{number} of audio stream 0 are no finite numbers: they count as silence",)
    path.write_bytes(data[:begin] + np.full_like(samples, value).tobytes())
    with pytest.raises(MediaError, match="audio stream 0 has no sample that is a finite number") as refused:
        read(path)
    assert refused.value.reason == "corrupt"


def test_nothing_at_all_in_a_container(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "zero.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(RATE)
    assert reason(tmp_path / "zero.wav") == "too_short"
    for suffix in ("mp4", "mkv", "avi"):
        with av.open(str(tmp_path / f"zero.{suffix}"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.start_encoding()
        assert reason(tmp_path / f"zero.{suffix}") in {"too_short", "no_streams", "corrupt"}


def test_a_little_junk_in_a_sound_is_skipped_and_much_is_not(tmp_path: Path) -> None:
    complete = write_media(tmp_path / "complete.mp3", None, "libmp3lame", rate=44100).read_bytes()
    junk = np.random.default_rng(0).bytes(700)
    for name, data in [
        ("middle", complete[:9000] + junk + complete[9000:]),
        ("end", complete + junk),
        ("tag", complete + b"TAG"),
    ]:
        path = tmp_path / f"{name}.mp3"
        path.write_bytes(data)
        span = read(path)
        assert span.audio is not None
        assert onset(span.audio, RATE) == pytest.approx(1.0, abs=0.06)
    pieces = [complete[start : start + 1000] + junk for start in range(0, len(complete), 1000)]
    (tmp_path / "much.mp3").write_bytes(b"".join(pieces))
    assert reason(tmp_path / "much.mp3") in {"corrupt", "truncated"}


def test_sound_whose_kind_changes_on_the_way_is_read_to_its_end(tmp_path: Path) -> None:
    first = write_media(tmp_path / "first.mp3", None, "libmp3lame", rate=48000, layout="stereo", wave=tone(48000, 2, 9))
    second = write_media(tmp_path / "second.mp3", None, "libmp3lame", rate=44100, wave=tone(44100, 2, 0.5))
    both = tmp_path / "both.mp3"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    span = read(both)
    assert span.audio is not None
    assert onset(span.audio, RATE) == pytest.approx(2.5, abs=0.1)


def test_what_is_no_media_says_why(tmp_path: Path) -> None:
    empty, text, half = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "half.mp4"
    empty.touch()
    text.write_text("this is not a video\n" * 1000)
    complete = write_media(tmp_path / "complete.mp4")
    half.write_bytes(complete.read_bytes()[: complete.stat().st_size // 2])  # its index is at the end: nothing to find
    assert reason(empty) == "corrupt"
    assert reason(text) == "corrupt"
    assert reason(half) == "corrupt"
    assert reason(tmp_path / "missing.mp4") == "missing"
    assert reason(tmp_path) == "missing"


@pytest.mark.parametrize(("suffix", "options"), [("mp4", {"movflags": "faststart"}), ("mkv", {})])
def test_a_file_that_breaks_off_is_never_padded(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    times = [i / 10 for i in range(60)]
    complete = write_media(tmp_path / f"complete.{suffix}", times=times, wave=tone(RATE, 6.0, 1.0), options=options)
    broken = tmp_path / f"broken.{suffix}"
    broken.write_bytes(complete.read_bytes()[: int(complete.stat().st_size * 0.6)])
    assert reason(broken) in {"truncated", "corrupt"}
    span = read(broken, 0.0, 1.5)
    assert [index_of(frame) for frame in span.frames] == [1, 5, 9, 13]


def test_garbage_inside_is_corrupt_or_harmless(tmp_path: Path) -> None:
    data = bytearray(write_media(tmp_path / "clip.mkv").read_bytes())
    rng = np.random.default_rng(0)
    for trial in range(12):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 40):
            damaged[place] = int(rng.integers(256))
        path = tmp_path / f"{trial}.mkv"
        path.write_bytes(bytes(damaged))
        try:
            span = read(path)
        except MediaError as error:
            assert error.reason in {"corrupt", "truncated", "too_short", "no_streams"}  # noqa: PT017
        else:
            assert len(span.frames) in {0, 4}
