"""Files that people have, of every kind that went wrong: the right content, or a reason, in bounded memory."""

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip4vla.config import MediaLimits
from clip4vla.media import source
from clip4vla.media.decode import decode, duration_s
from clip4vla.media.inspect import Inspection, inspect
from clip4vla.media.source import MediaError
from tests.media.sample import grey, index_of, onset, tone, write_media
from tests.project import REPOSITORY

FILES = REPOSITORY / "tests/data/media"
RATE = 16_000


def look_at(path: Path, limits: MediaLimits | None = None) -> Inspection:
    return inspect(path, frames=4, short_side=48, sample_rate=RATE, limits=limits or MediaLimits())


@pytest.mark.parametrize(
    ("name", "seconds", "frames"),
    [
        ("base.mp4", 4.0, 4),
        ("vbr_loud_quiet_noxing.mp3", 60.0, 0),
        ("junkfirst.mp3", 4.1, 0),
        ("snd_adpcm.wav", 4.0, 0),
        ("snd.wma", 4.0, 0),
        ("two_ogg.ogg", 8.0, 0),
        ("video_unknown.mp4", 4.0, 0),
    ],
)
def test_all_of_a_sound_is_used(name: str, seconds: float, frames: int) -> None:
    found = look_at(FILES / name)
    assert (found.reason, found.frames) == (None, frames)
    assert found.duration_s == pytest.approx(seconds, abs=0.06)
    assert found.audio_s == pytest.approx(seconds, abs=0.06)
    assert found.audio_rms is not None
    assert found.audio_rms > 0.05


def test_a_stream_without_decoder_is_noted() -> None:
    assert look_at(FILES / "video_unknown.mp4").notes == ("video stream 0 has no decoder",)


def test_a_track_without_packets_is_no_sound() -> None:
    found = look_at(FILES / "empty_audio.mkv")
    assert (found.frames, found.audio_s, found.audio_rms, found.channels) == (4, 0.0, None, 0)
    assert found.notes == ("audio stream 1 is empty",)
    span = decode(FILES / "empty_audio.mkv", 0, None, frames=1, short_side=48, sample_rate=RATE)
    assert span.audio is None
    assert span.notes == found.notes


@pytest.mark.parametrize("name", ["mkv_dur_1e9.mkv", "flac_total_huge.flac"])
def test_an_absurd_duration_is_a_reason(name: str) -> None:
    found = look_at(FILES / name)
    assert found.reason == "too_long"
    assert name in found.notes[0]


def test_of_a_stated_day_only_what_is_there_is_held() -> None:
    found = look_at(FILES / "mkv_dur_1e9.mkv", MediaLimits(max_duration_s=1e7))
    assert found.reason == "truncated"


def picture(path: Path) -> np.ndarray:
    span = decode(path, 0, None, frames=1, short_side=48, sample_rate=RATE)
    return np.asarray(span.frames[0], int)


def test_mirrored_display_matrices_are_obeyed() -> None:
    upright = picture(FILES / "base.mp4")
    assert np.abs(picture(FILES / "matrix_hflip.mp4") - upright[:, ::-1]).mean() < 1
    assert np.abs(picture(FILES / "matrix_transpose.mp4") - upright.transpose(1, 0, 2)).mean() < 1


def matrix(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((1, 0, 0, -1), lambda seen: seen[::-1]),
        ((-1, 0, 0, -1), lambda seen: seen[::-1, ::-1]),
        ((0, -1, -1, 0), lambda seen: seen[::-1, ::-1].transpose(1, 0, 2)),
        ((0, 1, -1, 0), lambda seen: np.rot90(seen, -1)),
    ],
)
def test_every_display_matrix_is_obeyed(tmp_path: Path, parts: tuple[int, int, int, int], expected) -> None:
    data = (FILES / "base.mp4").read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    path = tmp_path / "turned.mp4"
    path.write_bytes(data[:place] + matrix(*parts) + data[place + 36 :])
    assert np.abs(picture(path) - expected(picture(FILES / "base.mp4"))).mean() < 1


def test_pixels_that_are_not_square_are_shown_as_wide_as_they_are() -> None:
    assert picture(FILES / "sar_wide.mp4").shape == (48, 91, 3)  # 160 x 64/45 by 120


def test_the_default_track_is_used() -> None:
    found = look_at(FILES / "two_audio_default2.mkv")
    assert found.notes == ("audio stream 2 is preferred to 1",)
    assert found.audio_rms == pytest.approx(0.0884, abs=0.002)


def test_of_a_long_sound_the_middle_is_kept(tmp_path: Path) -> None:
    path = write_media(tmp_path / "long.wav", None, "pcm_s16le", wave=tone(RATE, 30.0, 14.0))
    span = decode(path, 0, None, frames=1, short_side=48, sample_rate=RATE, max_sound_s=4.0)
    assert span.audio is not None
    assert span.audio.shape == (1, 4 * RATE)
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=0.01)


def test_frames_far_apart_are_sought_and_are_the_same(tmp_path: Path) -> None:
    times = [index / 2 for index in range(120)]
    path = write_media(tmp_path / "long.mp4", audio=None, times=times)
    sought = decode(path, 0, None, frames=4, short_side=24, sample_rate=RATE).frames
    for index, frame in enumerate(sought):
        middle = duration_s(path) * (index + 0.5) / 4
        alone = decode(path, middle - 0.2, middle + 0.2, frames=1, short_side=24, sample_rate=RATE).frames[0]
        assert np.array_equal(np.asarray(frame), np.asarray(alone))


def test_limits_are_reasons() -> None:
    base = FILES / "base.mp4"
    assert look_at(base, MediaLimits(max_pixels=160 * 120 - 1)).reason == "too_large"
    assert look_at(base, MediaLimits(max_pixels=160 * 120)).reason is None
    assert look_at(base, MediaLimits(max_bytes=1000)).reason == "too_large"
    assert look_at(base, MediaLimits(max_duration_s=3.5)).reason == "too_long"
    assert look_at(base, MediaLimits(max_decode_s=1e-6)).reason == "too_slow"


def test_a_huge_picture_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (16_000, 16_000)).save(path)
    assert look_at(path).reason in {"too_large", "too_short"}


@pytest.mark.parametrize(
    "name", ["12:30 talk.mp4", "http:host?.mp4", "a%03d.mp4", "file:x.mp4", "pipe:0", "b\udcff.mp4"]
)
def test_any_name_is_a_file(tmp_path: Path, name: str) -> None:
    shutil.copy(FILES / "base.mp4", tmp_path / name)
    assert look_at(tmp_path / name).reason is None


def test_a_name_without_a_file_is_missing(tmp_path: Path) -> None:
    for name in ("x" * 300 + ".mp4", "nothing.mp4", "http:"):
        assert look_at(tmp_path / name).reason == "missing"
    assert look_at(Path("http://localhost:9/x.mp4")).reason == "missing"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{file}\n#EXT-X-ENDLIST\n"),
        ("list.mp4", "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{file}\n#EXT-X-ENDLIST\n"),
        ("script.mp4", "ffconcat version 1.0\nfile '{file}'\n"),
        ("session.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n"),
    ],
)
def test_playlists_and_scripts_are_no_media(tmp_path: Path, name: str, content: str) -> None:
    shutil.copy(FILES / "base.mp4", tmp_path / "base.mp4")
    (tmp_path / name).write_text(content.format(file="base.mp4"))
    assert look_at(tmp_path / name).reason in {"not_media", "corrupt"}


def test_chained_streams_of_transport_packets_are_added_up(tmp_path: Path) -> None:
    first = write_media(tmp_path / "first.ts", rate=44_100)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() * 2)
    assert look_at(path).audio_s == pytest.approx(4.0, abs=0.2)


def flv(path: Path) -> Path:
    """Without an index of its pictures, the first of which comes after the first sound."""
    return write_media(path, "flv", "libmp3lame", rate=22_050)


def test_a_file_that_has_no_position_before_its_first_picture_is_read_from_its_beginning(tmp_path: Path) -> None:
    found = look_at(flv(tmp_path / "plain.flv"))
    assert (found.reason, found.frames) == (None, 4)
    assert found.audio_s == pytest.approx(2.1, abs=0.1)


@pytest.mark.parametrize("stated", [0.0, 0.5, -1.0, 1e9, float("nan")])
def test_what_an_flv_states_as_its_length_is_counted(tmp_path: Path, stated: float) -> None:
    path = flv(tmp_path / "stated.flv")
    data = path.read_bytes()
    place = data.index(b"duration") + len(b"duration") + 1  # after the type of the value
    path.write_bytes(data[:place] + struct.pack(">d", stated) + data[place + 8 :])
    assert look_at(path).duration_s == pytest.approx(2.1, abs=0.1)


@pytest.mark.parametrize("stated", [-2000.0, float("nan")])
def test_a_stated_length_that_is_none_is_counted(tmp_path: Path, stated: float) -> None:
    path = write_media(tmp_path / "stated.mkv")
    data = path.read_bytes()
    place = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration, of eight bytes
    path.write_bytes(data[:place] + struct.pack(">d", stated) + data[place + 8 :])
    assert look_at(path).duration_s == pytest.approx(2.1, abs=0.1)


@pytest.mark.parametrize("options", [{}, {"live": "1"}])
def test_a_matroska_file_that_goes_on_after_its_stated_end_is_used_to_its_end(
    tmp_path: Path, options: dict[str, str]
) -> None:
    path = write_media(tmp_path / "stated.mkv", options=options)
    data = path.read_bytes()
    if b"\x44\x89\x88" in data:  # a live one states nothing
        place = data.index(b"\x44\x89\x88") + 3
        path.write_bytes(data[:place] + struct.pack(">d", 500.0) + data[place + 8 :])
    found = look_at(path)
    assert found.duration_s == pytest.approx(2.1, abs=0.1)
    assert found.audio_s == pytest.approx(2.1, abs=0.1)


def with_cover(sound: bytes, picture: bytes) -> bytes:
    """An MP3 with a picture in an ID3 tag before it."""
    content = b"\0image/png\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">I", len(content)) + b"\0\0" + content
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + frame + sound


def test_the_picture_on_the_cover_of_a_raw_stream_is_not_counted(tmp_path: Path) -> None:
    plain, covered = tmp_path / "plain.mp3", tmp_path / "covered.mp3"
    write_media(plain, None, "libmp3lame")
    Image.new("RGB", (64, 64)).save(tmp_path / "cover.png")
    covered.write_bytes(with_cover(plain.read_bytes(), (tmp_path / "cover.png").read_bytes()))
    alone, found = look_at(plain), look_at(covered)
    assert (found.reason, found.frames, found.duration_s) == (None, 0, alone.duration_s)
    assert (found.audio_s, found.audio_rms) == (alone.audio_s, alone.audio_rms)


@pytest.mark.parametrize("name", ["zeros.mp3", "zeros.h264", "gap.mp3"])
def test_a_long_stretch_of_nothing_ends_the_search_for_a_packet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As in a download that was given its whole size at once; FFmpeg would hold all of it."""
    monkeypatch.setattr(source, "MOST_BETWEEN", 1 << 24)
    path = tmp_path / name
    path.touch()
    if name.startswith("gap"):
        write_media(path, None, "libmp3lame")
    os.truncate(path, 1 << 26)
    found = look_at(path)
    assert found.reason == "corrupt"
    assert found.notes[0].endswith("bytes without anything in them")


def test_a_file_without_positions_says_so(tmp_path: Path) -> None:
    path = write_media(tmp_path / "raw.h264", "libx264", None)
    with pytest.raises(MediaError, match="unseekable"):
        decode(path, 0.0, None, frames=4, short_side=48, sample_rate=RATE)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "flv"])
def test_sound_before_the_first_picture_is_heard(tmp_path: Path, suffix: str) -> None:
    path = write_media(tmp_path / f"late.{suffix}", times=[3 + index / 10 for index in range(20)])
    found = look_at(path)
    assert (found.reason, found.frames) == (None, 4)
    assert found.audio_s == pytest.approx(2.1, abs=0.1)
    sound = decode(path, 0, None, frames=1, short_side=48, sample_rate=RATE).audio
    assert sound is not None
    assert onset(sound, RATE) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("suffix", "codec", "first", "second"),
    [
        ("ogg", "flac", (44_100, "stereo"), (16_000, "mono")),
        ("aac", "aac", (44_100, "stereo"), (16_000, "mono")),
        ("aac", "aac", (16_000, "mono"), (48_000, "mono")),
        ("mp3", "libmp3lame", (16_000, "mono"), (48_000, "stereo")),
        ("flac", "flac", (16_000, "mono"), (16_000, "mono")),
        ("flac", "flac", (44_100, "stereo"), (16_000, "mono")),
    ],
)
def test_sounds_of_other_rates_strung_together_are_as_long_as_they_are(
    tmp_path: Path, suffix: str, codec: str, first: tuple[int, str], second: tuple[int, str]
) -> None:
    path = tmp_path / f"both.{suffix}"
    parts = [
        write_media(tmp_path / f"{rate}.{suffix}", None, codec, rate=rate, layout=layout, wave=tone(rate))
        for rate, layout in (first, second)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert look_at(path).audio_s == pytest.approx(4.0, abs=0.2)
    sound = decode(path, 0, None, frames=1, short_side=48, sample_rate=RATE).audio
    assert sound is not None
    assert onset(sound[:, 2 * RATE + RATE // 4 :], RATE) == pytest.approx(0.75, abs=0.2)  # the second tone


def flac(path: Path, seconds: float, rate: int, layout: str = "mono") -> bytes:
    wave = tone(rate, seconds, 0.0)
    return write_media(path, None, "flac", rate=rate, layout=layout, wave=wave).read_bytes()


def test_flac_streams_strung_together_are_all_heard(tmp_path: Path) -> None:
    lengths = ((0.3, 8_000, "mono"), (1.0, 44_100, "stereo"), (0.3, 8_000, "mono"), (2.0, 48_000, "mono"))
    streams = [flac(tmp_path / "one.flac", *length) for length in lengths]
    unstated = bytearray(streams[0])
    unstated[21] &= 0xF0
    unstated[22:26] = bytes(4)  # the number of samples: unknown
    path = tmp_path / "all.flac"
    for first in (streams[0], bytes(unstated)):
        path.write_bytes(b"".join([first, *streams[1:]]))
        found = look_at(path)
        assert (found.reason, found.notes) == (None, ())
        assert found.duration_s == pytest.approx(3.6, abs=0.001)
        assert found.audio_s == pytest.approx(3.6, abs=0.01)
        late = decode(path, 1.7, 3.5, frames=1, short_side=48, sample_rate=RATE).audio
        assert late is not None
        assert late.shape == (1, round(1.8 * RATE))
        assert np.abs(late[:, -RATE:]).max() > 10_000


def test_of_flac_streams_one_that_is_damaged_is_noted(tmp_path: Path) -> None:
    first, second = flac(tmp_path / "first.flac", 2.0, RATE), flac(tmp_path / "second.flac", 1.0, RATE)
    path = tmp_path / "both.flac"
    path.write_bytes(first + second[:12] + bytes(len(second) - 12))
    found = look_at(path)
    assert (found.reason, found.audio_s) == (None, 2.0)
    assert found.notes == ("1 of 2 streams that follow one another can't be decoded",)


def test_a_flac_file_that_is_cut_off_is_truncated(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    path.write_bytes(flac(tmp_path / "all.flac", 4.0, RATE)[:20_000])
    assert look_at(path).reason == "truncated"


@pytest.mark.parametrize(
    ("suffix", "video", "audio"),
    [
        *(("wav", None, "pcm_s16le"), ("aiff", None, "pcm_s16be"), ("m4a", None, "aac"), ("mka", None, "flac")),
        ("mp4", "libx264", "aac"),
    ],
)
def test_a_file_that_follows_another_and_is_not_read_is_noted(
    tmp_path: Path, suffix: str, video: str | None, audio: str
) -> None:
    path = write_media(tmp_path / f"first.{suffix}", video, audio)
    assert look_at(path).notes == ()
    content = path.read_bytes()
    path.write_bytes(content * 2)
    found = look_at(path)
    assert (found.reason, found.audio_s) == (None, pytest.approx(2.0, abs=0.1))
    assert found.notes == (f"another file seems to begin at byte {len(content):,}: what follows isn't used",)


def test_an_animated_avif_moves(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (64, 48), (grey(index),) * 3) for index in range(10)]
    path = tmp_path / "moving.avif"
    shades[0].save(path, save_all=True, append_images=shades[1:], duration=200)
    frames = decode(path, 0, None, frames=4, short_side=48, sample_rate=RATE).frames
    assert [index_of(frame) for frame in frames] == pytest.approx([1, 3, 6, 8], abs=1)


def test_a_display_matrix_that_leaves_nothing_to_be_seen_is_ignored(tmp_path: Path) -> None:
    data = (FILES / "base.mp4").read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    path = tmp_path / "flat.mp4"
    path.write_bytes(data[:place] + matrix(0, 0, 0, 0) + data[place + 36 :])
    assert np.array_equal(picture(path), picture(FILES / "base.mp4"))
