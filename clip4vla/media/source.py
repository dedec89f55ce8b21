"""A stranger's media file, opened: its usable streams, its clock, and what was decoded by whom at which moment.

Names are opened as local files, or as members of a tar file, only, by demuxers of single media files: no playlist, no
script, no network. Every limit of `config.MediaLimits` is kept here. Times are seconds from the first moment of the
file, also where a container counts from elsewhere (MPEG-TS).
"""

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import av
from av.container import InputContainer
from av.stream import Disposition, Stream

from clip4vla.config import MediaLimits
from clip4vla.media.shard import Member, MemberFile, find_member, find_shard

DEMUXERS = (
    "3dostr,aa,aac,aax,ac3,ac4,aiff,amr,amrnb,amrwb,apc,ape,apng,asf,asf_o,au,av1,avi,avr,"
    "avs,avs2,avs3,bink,bit,bmp_pipe,caf,cavsvideo,codec2,daud,dirac,dnxhd,dsf,dss,dts,dtshd,"
    "dv,eac3,evc,filmstrip,flac,flic,flv,g722,g723_1,g726,g726le,g729,gif,gsm,gxf,h261,h263,"
    "h264,hcom,hevc,iamf,ilbc,image2,iv8,ivf,jpeg_pipe,jpegxl_pipe,kux,live_flv,lmlm4,loas,m4v,"
    "matroska,mjpeg,mjpeg_2000,mlp,mov,mp3,mpc,mpc8,mpeg,mpegts,mpegvideo,msf,mtaf,mv,mxf,nsv,"
    "nut,nuv,obu,ogg,oma,osq,png_pipe,pva,qcp,qoa,r3d,rm,roq,rso,sbc,shn,smjpeg,sox,tak,"
    "tiff_pipe,truehd,tta,ty,vc1,vivo,voc,vvc,w64,wav,webm,webp_pipe,wsaud,wsvqa,wtv,wv,xa,"
    "xwma,yuv4mpegpipe"
)
"""FFmpeg's names of formats in which one file holds pictures or sound and refers to no other file."""
COUNTED = frozenset(
    ("mp3", "aac", "ac3", "eac3", "dts", "loas", "amr", "amrnb", "amrwb", "ogg", "mpegts", "mpeg", "flv")
)
"""Formats whose length FFmpeg estimates, or takes from the last of several chained streams or from what the program
supposed that wrote the file; packets are counted."""
MOST_BETWEEN = 1 << 28
"""Bytes that are read in search of the next packet: FFmpeg keeps them all."""
SEEK_BACK_S = (0.25, 5.0, 60.0, math.inf)
"""How far before a moment to begin to decode; the next one where the container had nothing so early."""
BAD_PACKETS, BAD_SHARE = 3, 0.02
"""How many packets, and which share of them, may be undecodable: two sounds strung together, junk between them."""
PRIMING_S = 0.15
"""A clock that begins this little before zero does so for what a codec hears to get going, which isn't played."""
CODED_BEYOND = 1_000_000
"""Pixels by which a coded picture may be larger than the one that is shown: codecs fill up blocks."""
COUNTS_KEPT = 64
"""Files whose counted packets a process remembers."""
RATE_BITS = {"mp3": (0x18, 0x0C), "aac": (0, 0x3C)}
"""Of raw streams, the bits in the second and third byte of each packet that state the rate of the sound."""
FLAC_STREAM = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
"""How a FLAC stream begins: its mark, and the header of a block of 34 bytes."""
SEARCHED = 1 << 20
"""Bytes that are searched at once for the beginning of another stream or file."""
SET_BACK_S = 0.5
"""Timestamps that fall back by more than this begin a new stream, chained to the one before."""

Media = av.VideoStream | av.AudioStream
Frame = av.VideoFrame | av.AudioFrame
StreamType = TypeVar("StreamType", av.VideoStream, av.AudioStream)


class MediaError(Exception):
    """A file that can't be used. `reason` is one of a few words, `detail` says what happened."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Source:
    """An open file.

    Attributes:
        video, audio: streams that have a decoder, the one that a player would choose first; a cover is no video.
        duration_s: seconds from the first moment to the last.
        notes: what of the file isn't used, and why, as sentences.
    """

    def __init__(self, container: InputContainer, path: Path, limits: MediaLimits) -> None:
        self.path = path
        self.limits = limits
        self.notes: list[str] = []
        self._container = container
        self._ends = time.monotonic() + limits.max_decode_s
        self.video = self._with_decoder([s for s in container.streams.video if not _is_cover(s)])
        self.audio = self._with_decoder(list(container.streams.audio))
        if not self.video and not self.audio:
            raise MediaError("no_streams", "; ".join([f"{path} has neither video nor audio", *self.notes]))
        for stream in self.video:
            self.check_size(stream.codec_context.width, stream.codec_context.height)
        self._origin_s = _origin(container)
        self._is_chained = False
        self._has_clock = True
        self._parts: Sequence[Member] = _locate(path)[1:]
        self._read_until = 0
        self.duration_s = self._find_duration()
        if not self.duration_s <= limits.max_duration_s:
            raise MediaError("too_long", f"{path} states {self.duration_s:,.0f} s, more than {limits.max_duration_s:g}")

    def _with_decoder(self, streams: list[StreamType]) -> list[StreamType]:
        """Those with a decoder, default tracks first, and last a picture that doesn't move."""
        for stream in streams:
            if stream.codec_context is None:
                self.notes.append(f"{stream.type} stream {stream.index} has no decoder")
        usable = [stream for stream in streams if stream.codec_context is not None]
        for stream in usable:
            _prepare(stream, self.limits)
        return sorted(usable, key=lambda stream: (_is_still(stream), not stream.disposition & Disposition.default))

    def check_size(self, width: int, height: int) -> None:
        """Raise MediaError when a picture has more pixels than the limits allow."""
        if width * height > self.limits.max_pixels:
            raise MediaError(
                "too_large", f"{self.path} is {width} x {height} pixels, more than {self.limits.max_pixels:,}"
            )

    def describe_tracks(self) -> list[str]:
        """Which tracks a player would choose among several, and how pictures are turned or stretched."""
        notes = []
        for streams in (self.video, self.audio):
            if len(streams) > 1:
                others = ", ".join(str(stream.index) for stream in streams[1:])
                notes.append(f"{streams[0].type} stream {streams[0].index} is preferred to {others}")
        if self.video and (self.video[0].sample_aspect_ratio or 1) != 1:
            notes.append(f"pixels are {self.video[0].sample_aspect_ratio} times as wide as high")
        return notes

    def _check_time(self) -> None:
        if time.monotonic() > self._ends:
            raise MediaError("too_slow", f"{self.path} takes longer than {self.limits.max_decode_s:g} s to decode")

    def _find_duration(self) -> float:
        container = self._container
        stated_s = (container.duration or 0) / av.time_base
        stat = (find_shard(self.path) or self.path).stat()
        state = stat.st_size, stat.st_mtime_ns
        if container.format.name == "flac" and stated_s <= self.limits.max_duration_s:
            parts = _find_flac_streams(self.path, state, self.limits)
            if len(parts) > 1:  # FFmpeg loses its way where one stream follows another: each is opened by itself
                return self._chain(parts, _count_parts(self.path, state, self.limits, parts))
        if stated_s > 0 and not COUNTED.intersection(container.format.name.split(",")):
            if not _is_matroska(container) or stated_s > self.limits.max_duration_s:
                return stated_s
            # the timestamp of the last moment; a recorder that was interrupted has stated one before it
            return max(stated_s, _find_end(self.path, state, self.limits, stated_s)) - self._origin_s
        count = _count_packets(self.path, state, self.limits)
        self._is_chained, self._has_clock = count.is_chained, count.has_clock
        return count.end_s - self._origin_s

    def _chain(self, parts: Sequence[Member], lengths_s: Sequence[float]) -> float:
        """Decode `parts` of the file one after the other, and say how long they are together."""
        usable = [part for part, length_s in zip(parts, lengths_s, strict=True) if length_s]
        unused = len(parts) - len(usable)
        if unused:
            self.notes.append(f"{unused} of {len(parts)} streams that follow one another can't be decoded")
        self._parts, self._is_chained, self._has_clock = usable, True, False
        return sum(lengths_s)

    def find_next_file(self) -> int | None:
        """The byte at which another file of the same format begins, behind all packets; None where none does.

        Of several files strung together FFmpeg reads the first alone where it says how long it is (WAV, MP4).
        """
        if self._is_chained or not self._read_until:
            return None
        shard, member = _locate(self.path)
        with MemberFile(shard, member, self._ends) as file:
            head = file.read(8) or b""
            begin = head[4:] if head[4:] == b"ftyp" else head[:4]  # MP4 begins with the length of its first box
            found = next(_find_all(file, self._read_until, re.compile(re.escape(begin))), None)
        return None if found is None else found - head.index(begin)

    def pictures(self, stream: av.VideoStream, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames with the moment at which each appears, from the one on screen at `start_s` on or earlier."""
        for time_s, frame in self._decode_from(stream, start_s):
            assert isinstance(frame, av.VideoFrame)
            self.check_size(frame.width, frame.height)
            yield time_s, frame

    def sounds(self, stream: av.AudioStream, start_s: float) -> Iterator[tuple[float, av.AudioFrame]]:
        """Pieces of sound with the moment at which each begins, from `start_s` on or earlier."""
        for time_s, frame in self._decode_from(stream, start_s):
            assert isinstance(frame, av.AudioFrame)
            yield time_s, frame

    def last_moment(self, stream: Media, near_s: float) -> float:
        """End of the last packet of the stream before `near_s`, without decoding."""
        if self._is_chained:
            return self.duration_s  # counted
        self._seek(self._origin_s + max(0.0, near_s - SEEK_BACK_S[1]))
        end_s = 0.0
        for packet in self._container.demux(stream):
            if packet.pts is not None and packet.time_base is not None:
                end_s = float((packet.pts + (packet.duration or 0)) * packet.time_base) - self._origin_s
            if end_s >= near_s:
                break
        return end_s

    def _decode_from(self, stream: Media, start_s: float) -> Iterator[tuple[float, Frame]]:
        """Some demuxers (MPEG-TS) land after what was asked for: then again, from further back."""
        for back_s in SEEK_BACK_S:
            frames = self._decode_near(stream, start_s - back_s)
            first = next(frames, None)
            if first is not None and (first[0] <= start_s or start_s <= back_s):
                yield first
                yield from frames
                return

    def _decode_near(self, stream: Media, time_s: float) -> Iterator[tuple[float, Frame]]:
        """Decode from about `time_s` on, or from the beginning; nothing where it isn't known where that landed."""
        if self._is_chained:  # a position in one of the chained streams can't be told from one in another
            yield from self._decode_again(stream)
        elif time_s <= 0:
            yield from self._decode_from_first(stream)
        elif self._seek(self._origin_s + time_s):
            yield from self._decode_stream(self._container, stream, _Clock(None))

    def _decode_from_first(self, stream: Media) -> Iterator[tuple[float, Frame]]:
        """A seek may land at the first picture, behind sound that begins before it: then the file is opened again."""
        sought = self._seek(self._first_s())
        frames = self._decode_stream(self._container, stream, _Clock(0.0))
        first = next(frames, None) if sought else None
        if not sought or self._is_behind(stream, first):
            yield from self._decode_again(stream)
        elif first is not None:
            yield first
            yield from frames

    def _is_behind(self, stream: Media, first: tuple[float, Frame] | None) -> bool:
        """Whether a seek to the beginning missed the first packets of a stream."""
        if stream.start_time is None or stream.time_base is None:
            return False
        return first is None or first[0] > float(stream.start_time * stream.time_base) - self._origin_s + PRIMING_S

    def _decode_again(self, stream: Media) -> Iterator[tuple[float, Frame]]:
        """The frames of a stream from the very first packet on, without a seek, and of those chained to it."""
        clock = _Clock(0.0)
        for part in self._parts:
            with _open(self.path, self.limits, part) as container:
                again = container.streams[stream.index]
                assert isinstance(again, Media)
                _prepare(again, self.limits)
                yield from self._decode_stream(container, again, clock)

    def _decode_stream(
        self, container: InputContainer, stream: Media, clock: "_Clock"
    ) -> Iterator[tuple[float, Frame]]:
        for frame in self._decode_packets(container, stream):
            if frame.time is None and not clock.is_set:
                return
            now_s = None if frame.time is None or not self._has_clock else frame.time - self._origin_s
            yield clock.moment(now_s, _seconds(frame), may_restart=self._is_chained), frame

    def _first_s(self) -> float:
        # not every container can be asked for less than 0
        return 0.0 if self._origin_s >= 0 else self._origin_s - SEEK_BACK_S[1]

    def _seek(self, moment_s: float) -> bool:
        """Whether the container has a position for a moment: some have none before their first picture."""
        try:
            self._container.seek(int(moment_s * av.time_base))
        except PermissionError:
            return False
        return True

    def _decode_packets(self, container: InputContainer, stream: Media) -> Iterator[Frame]:
        """The frames of a stream, without those of a few packets that can't be decoded; players skip them, too."""
        bad = 0
        for number, packet in enumerate(container.demux(stream), 1):
            self._check_time()
            self._read_until = max(self._read_until, (packet.pos or 0) + packet.size)
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                bad += 1
                if bad > max(BAD_PACKETS, BAD_SHARE * number):
                    raise
                continue
            for frame in frames:
                assert isinstance(frame, Frame)
                yield frame


class _Clock:
    """Moments of what follows one another in a stream, in seconds.

    What has no timestamp begins where the one before it ended; timestamps that are set back go on from there.
    """

    def __init__(self, next_s: float | None = None) -> None:
        self.was_set_back = False
        self._next_s = next_s
        self._offset_s = 0.0

    @property
    def is_set(self) -> bool:
        """Whether it is known when something without a timestamp begins."""
        return self._next_s is not None

    def moment(self, time_s: float | None, seconds: float, may_restart: bool = True) -> float:
        """The moment of what has the timestamp `time_s` and lasts `seconds`."""
        expected_s = self._next_s
        if time_s is None:
            moment_s = expected_s or 0.0
        else:
            moment_s = time_s + self._offset_s
            if may_restart and expected_s is not None and moment_s < expected_s - SET_BACK_S:
                self._offset_s += expected_s - moment_s
                moment_s = expected_s
                self.was_set_back = True
        self._next_s = moment_s + seconds
        return moment_s


@dataclass(frozen=True)
class _Count:
    """What reading all packets of a file shows."""

    end_s: float
    """Timestamp of the end of the last packet; the durations of chained streams are added up."""
    is_chained: bool
    """Whether streams follow one another, with clocks or rates of their own."""
    has_clock: bool
    """Whether timestamps hold: FFmpeg gives all streams of a chain in Ogg, and all of a raw stream, the first rate."""


@lru_cache(maxsize=COUNTS_KEPT)
def _count_packets(path: Path, state: tuple[int, int], limits: MediaLimits) -> _Count:  # noqa: ARG001
    """Read all packets of a file.

    Args:
        path: a media file; the clips of a long one ask for it one after the other.
        state: its size and moment of change, or those of its shard.
        limits: what it may demand.
    """
    clocks: dict[int, _Clock] = {}
    rates = set[tuple[int, int]]()
    end_s, is_timed, stop_at = 0.0, False, time.monotonic() + limits.max_decode_s
    with _open_watched(path, limits) as (container, file):
        is_ogg, rate_bits = "ogg" in container.format.name, RATE_BITS.get(container.format.name)
        for packet in container.demux():
            file.forget()
            if not packet.size or _is_cover(packet.stream):
                continue  # the end of a stream, or no part of any
            _check_time(path, limits, stop_at)
            seconds, decoding_s, later_s = _packet_times(packet)
            is_timed = is_timed or decoding_s is not None
            moment_s = clocks.setdefault(packet.stream_index, _Clock()).moment(decoding_s, seconds)
            end_s = max(end_s, moment_s + later_s + seconds)
            if rate_bits is not None and packet.size > len(rate_bits):
                second, third = memoryview(packet)[1:3]
                rates.add((second & rate_bits[0], third & rate_bits[1]))
    if clocks and not is_timed:
        raise MediaError("unseekable", f"{path} has no timestamps: put it into a container, such as .mkv")
    is_chained, is_mixed = any(clock.was_set_back for clock in clocks.values()), len(rates) > 1
    if is_mixed or (is_ogg and is_chained):
        return _Count(_count_frames(path, limits, stop_at), is_chained=True, has_clock=False)
    return _Count(end_s, is_chained, has_clock=True)


@lru_cache(maxsize=COUNTS_KEPT)
def _find_end(path: Path, state: tuple[int, int], limits: MediaLimits, stated_s: float) -> float:  # noqa: ARG001
    """Timestamp of the end of the last packet, 0 where there is none from shortly before `stated_s` on.

    Args:
        path, state, limits: see `_count_packets`.
        stated_s: where the file says that it ends.
    """
    end_s, stop_at = 0.0, time.monotonic() + limits.max_decode_s
    with _open(path, limits) as container:
        with suppress(PermissionError):  # then from the beginning
            container.seek(int(max(0.0, stated_s - SEEK_BACK_S[0]) * av.time_base))
        for packet in container.demux():
            _check_time(path, limits, stop_at)
            if packet.pts is not None and packet.time_base is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return end_s


def _count_frames(path: Path, limits: MediaLimits, stop_at: float, part: Member | None = None) -> float:
    """Seconds of the longest stream, by decoding the file, or a part of it."""
    lengths_s: dict[int, float] = defaultdict(float)
    with _open(path, limits, part) as container:
        streams = [s for s in container.streams if isinstance(s, Media) and s.codec_context and not _is_cover(s)]
        for stream in streams:
            _prepare(stream, limits)
        for packet in container.demux(streams):
            _check_time(path, limits, stop_at)
            with suppress(av.error.InvalidDataError):  # few are passed over later, and many are a reason then
                for frame in packet.decode():
                    assert isinstance(frame, Frame)
                    lengths_s[packet.stream_index] += _seconds(frame)
    return max(lengths_s.values(), default=0.0)


@lru_cache(maxsize=COUNTS_KEPT)
def _count_parts(
    path: Path,
    state: tuple[int, int],  # noqa: ARG001
    limits: MediaLimits,
    parts: tuple[Member, ...],
) -> list[float]:
    """Seconds of each part of a file, 0 of one that can't be opened; see `_count_packets`."""
    lengths_s, stop_at = [0.0] * len(parts), time.monotonic() + limits.max_decode_s
    for place, part in enumerate(parts):
        with suppress(av.error.InvalidDataError):
            lengths_s[place] = _count_frames(path, limits, stop_at, part)
    return lengths_s


def _check_time(path: Path, limits: MediaLimits, stop_at: float) -> None:
    if time.monotonic() > stop_at:
        raise MediaError("too_slow", f"{path} takes longer than {limits.max_decode_s:g} s to read")


def _packet_times(packet: av.Packet) -> tuple[float, float | None, float]:
    """Seconds that a packet lasts, when it is decoded (None: after the one before), and how much later it is shown."""
    base = packet.time_base or 0
    decoded_at = packet.pts if packet.dts is None else packet.dts
    later = packet.pts - packet.dts if packet.pts is not None and packet.dts is not None else 0
    decoded_s = None if decoded_at is None else float(decoded_at * base)
    return float((packet.duration or 0) * base), decoded_s, float(later * base)


@contextmanager
def open_source(path: Path, limits: MediaLimits) -> Iterator[Source]:
    """Open a media file; whatever is raised while it is open becomes its reason.

    Raises:
        MediaError: `missing`, `too_large` (pixels or bytes), `too_long`, `too_slow`, `not_media` (a format that isn't
            allowed), `no_streams`, `unseekable` or `corrupt`.
    """
    _check_file(path, limits)
    try:
        with _open(path, limits) as container:
            yield Source(container, path, limits)
    except MediaError:
        raise
    except (av.error.ExitError, TimeoutError) as error:
        raise MediaError("too_slow", f"{path} can't be read within {limits.max_decode_s:g} s") from error
    except Exception as error:  # a damaged file makes libraries raise what they don't document
        raise MediaError("corrupt", f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What happened, in words: the text of FFmpeg's errors also has a number and the name of the file."""
    words = error.strerror if isinstance(error, OSError | av.error.FFmpegError) else str(error)
    return words or type(error).__name__


def _check_file(path: Path, limits: MediaLimits) -> None:
    try:
        found = find_member(path)
        if found is None and not path.is_file():
            raise MediaError("missing", f"no file {path}")
        size = path.stat().st_size if found is None else found[1].size
    except OSError as error:
        raise MediaError("missing", f"{path}: {error.strerror}") from error
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise MediaError("too_large", f"{path} has {size:,} bytes, more than {limits.max_bytes:,}")


def _locate(path: Path) -> tuple[Path, Member]:
    """The file that holds the bytes of `path`, which may be a shard, and where in it."""
    return find_member(path) or (path, Member(path.name, 0, path.stat().st_size))


def _find_all(file: MemberFile, start: int, begin: re.Pattern[bytes]) -> Iterator[int]:
    """Places from `start` on at which `begin`, which has no more than eight bytes, is found."""
    place, kept = start, b""
    file.seek(start)
    while block := file.read(SEARCHED):
        kept = kept[-7:]
        for found in begin.finditer(kept + block):
            if found.end() > len(kept):
                yield place - len(kept) + found.start()
        place, kept = place + len(block), kept + block


@lru_cache(maxsize=COUNTS_KEPT)
def _find_flac_streams(path: Path, state: tuple[int, int], limits: MediaLimits) -> tuple[Member, ...]:  # noqa: ARG001
    """The parts of a FLAC file that are streams of their own, in order; what is before the first belongs to it.

    Args:
        path, state, limits: see `_count_packets`.
    """
    shard, member = _locate(path)
    with MemberFile(shard, member, time.monotonic() + limits.max_decode_s) as file:
        places = [0, *list(_find_all(file, 0, FLAC_STREAM))[1:], member.size]
    return tuple(Member(member.name, member.offset + start, end - start) for start, end in pairwise(places))


@contextmanager
def _open(path: Path, limits: MediaLimits, part: Member | None = None) -> Iterator[InputContainer]:
    with _open_watched(path, limits, part) as (container, file):
        file.most = math.inf  # to find a position may take all of a file
        yield container


@contextmanager
def _open_watched(
    path: Path, limits: MediaLimits, part: Member | None = None
) -> Iterator[tuple[InputContainer, MemberFile]]:
    """The container, and the file, or the part of it, that it reads, whose `forget` must be called for each packet.

    FFmpeg gets the open file, never a name that it could take for something else, such as `http:x.mp4`.
    """
    shard, member = _locate(path)
    options = {
        "format_whitelist": DEMUXERS,
        "protocol_whitelist": "none",
        "max_pixels": str(limits.max_pixels + CODED_BEYOND),
    }
    with MemberFile(shard, part or member, time.monotonic() + limits.max_decode_s, MOST_BETWEEN) as file:
        try:
            container = av.open(file, metadata_errors="ignore", options=options, timeout=limits.max_decode_s)
        except av.error.ArgumentError as error:
            raise MediaError("not_media", f"{path} is in no format of media files") from error
        assert isinstance(container, InputContainer)
        with container:
            file.forget()
            yield container, file


def _prepare(stream: Media, limits: MediaLimits) -> None:
    stream.codec_context.thread_count = 1  # processes decode in parallel, one for each core
    stream.codec_context.options = {"max_pixels": str(limits.max_pixels + CODED_BEYOND)}


def _is_cover(stream: Stream) -> bool:
    """Whether a stream is the picture on the cover of a sound file."""
    return bool(stream.disposition & Disposition.attached_pic)


def _seconds(frame: Frame) -> float:
    if isinstance(frame, av.AudioFrame):
        return frame.samples / frame.sample_rate
    return float((frame.duration or 0) * (frame.time_base or 0))


def _is_still(stream: Media) -> bool:
    """Whether a stream is one picture, such as an animated AVIF has beside what moves."""
    return isinstance(stream, av.VideoStream) and stream.frames == 1


def _is_matroska(container: InputContainer) -> bool:
    return "matroska" in container.format.name


def _origin(container: InputContainer) -> float:
    """Timestamp of the first moment that is played; Matroska has none before 0."""
    start_s = (container.start_time or 0) / av.time_base
    return max(0.0, start_s) if _is_matroska(container) or start_s >= -PRIMING_S else start_s
