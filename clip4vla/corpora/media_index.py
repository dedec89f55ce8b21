"""Which file a record means: media are found by name anywhere under a directory, whatever their suffix."""

import unicodedata
from collections import defaultdict
from pathlib import Path, PurePosixPath

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp", ".ogv")
)
AUDIO_SUFFIXES = frozenset((".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma"))


class MediaIndex:
    """The files under `directory`.

    A name is first looked up as a path, then as a path without its suffix, then as the name of a file, with or
    without suffix, in any folder. Only the suffixes above can be left out, so an id may have dots and notes may lie
    beside the media. A video is preferred to a sound of the same name, which is what is made of it.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise ValueError(f"there is no directory of media {directory}")
        self._tiers: tuple[dict[str, list[str]], ...] = (defaultdict(list), defaultdict(list), defaultdict(list))
        for path in sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()):
            if not PurePosixPath(path).name.startswith("."):
                self._add(path)

    def _add(self, path: str) -> None:
        exact, bare, anywhere = self._tiers
        pure = PurePosixPath(_same(path))
        exact[_same(path)].append(path)
        if pure.suffix.lower() in VIDEO_SUFFIXES | AUDIO_SUFFIXES:
            bare[str(pure.with_suffix(""))].append(path)
            anywhere[pure.name].append(path)
            anywhere[pure.stem].append(path)

    def find(self, name: str) -> list[str]:
        """Paths relative to the directory: none if there is no such file, several if it can't be told which."""
        wanted = _same(name)
        for tier in self._tiers:
            if paths := tier.get(wanted):
                return [p for p in paths if PurePosixPath(p).suffix.lower() in VIDEO_SUFFIXES] or paths
        return []


def _same(name: str) -> str:
    """One spelling of names that differ only in `./` or in how accents are coded, as they do between systems."""
    return str(PurePosixPath(unicodedata.normalize("NFC", name)))
