"""Which file a record means: media are found by name anywhere under a directory, whatever their suffix."""

import csv
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from clip4vla.utils.files import atomic_file, file_state


def _suffixes(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


VIDEO_SUFFIXES = _suffixes(
    "mp4 mkv webm avi mov m4v mpg mpeg mpe m2v ts mts m2ts vob flv f4v wmv asf 3gp 3g2 ogv divx rm rmvb mxf y4m"
)
AUDIO_SUFFIXES = _suffixes("wav flac mp3 mp2 ogg oga opus m4a aac ac3 wma aif aiff aifc amr caf mka wv au")
OTHER_SUFFIXES = _suffixes(
    "json jsonl csv tsv txt md xml html yaml yml log pkl pickle npy npz h5 pt vtt srt ass lrc description jpg jpeg png"
    " webp gif bmp tif tiff part ytdl tmp crdownload aria2 zip tar gz 7z md5 sha1 sha256"
)
"""What lies beside media: notes, subtitles, thumbnails, downloads that aren't finished."""


class MediaIndex:
    """The files under `directory`, in folders that are linked too.

    A name is first looked up as a path, then as a path without its suffix, then as the name of a file, with or
    without suffix, in any folder; the known suffixes first, then any but those of OTHER_SUFFIXES. A video is preferred
    to a sound of the same name, which is what is made of it.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ValueError(f"there is no directory of media {directory}")
        self._exact: dict[str, list[str]] = defaultdict(list)
        self._media, self._unknown = _Names(), _Names()
        for path in sorted(walk_files(directory)):
            pure = PurePosixPath(same_name(path))
            self._exact[str(pure)].append(path)
            suffix = pure.suffix.lower()
            if suffix in VIDEO_SUFFIXES | AUDIO_SUFFIXES:
                self._media.add(pure, path)
            elif suffix not in OTHER_SUFFIXES:
                self._unknown.add(pure, path)

    def __contains__(self, path: str) -> bool:
        """Whether there is a file of just this path."""
        return path in self._exact.get(same_name(path), ())

    def find(self, name: str) -> list[str]:
        """Paths relative to the directory: none if there is no such file, several if the name is ambiguous."""
        wanted = same_name(name)
        for tier in (self._exact, *self._media.tiers, *self._unknown.tiers):
            if paths := tier.get(wanted):
                return [path for path in paths if is_video(path)] or paths
        return []


class _Names:
    """What files can be called: by the path without suffix, then by the name in any folder."""

    def __init__(self) -> None:
        self.tiers: tuple[dict[str, list[str]], dict[str, list[str]]] = (defaultdict(list), defaultdict(list))

    def add(self, pure: PurePosixPath, path: str) -> None:
        bare, anywhere = self.tiers
        has_suffix = pure.suffix[1:2].isalpha()  # what follows the dot of `v1.5` is part of its name
        bare[str(pure.with_suffix("") if has_suffix else pure)].append(path)
        for name in {pure.name, pure.stem if has_suffix else pure.name}:
            anywhere[name].append(path)


def is_video(path: str) -> bool:
    """Whether the file has the suffix of a video."""
    return PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def is_unicode(name: str) -> bool:
    """Whether a name of the file system, or a text, is valid Unicode."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def walk_files(directory: Path) -> Iterator[str]:
    """Paths relative to `directory` of the files that aren't hidden; no folder is entered twice by way of a link."""
    entered: set[str] = set()
    for folder, folders, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(directory).as_posix()


def linked_folders(directory: Path) -> Iterator[str]:
    """Paths relative to `directory` of the links to folders under it that aren't hidden; none where it isn't there."""
    for folder, folders, _ in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(folder, name) for name in folders]
        yield from (path.relative_to(directory).as_posix() for path in paths if path.is_symlink())


def write_listing(directory: Path, out: Path) -> int:
    """Write a line for each file under `directory`: path, size in bytes, time of its last change in ns; their number.

    A file that is removed meanwhile is left out.

    Raises:
        ValueError: there is no such directory.
    """
    if not directory.is_dir():
        raise ValueError(f"there is no directory of media {directory}")
    states = ((path, file_state(directory / path)) for path in sorted(walk_files(directory)))
    count = 0
    with (
        atomic_file(out) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        lines = csv.writer(file)
        for path, state in states:
            if state is not None:
                lines.writerow([path, *state[:2]])
                count += 1
    return count


def same_name(name: str) -> str:
    """One spelling of names that differ only in `./` or in how accents are coded, as they do between systems."""
    return str(PurePosixPath(unicodedata.normalize("NFC", name)))
