"""Files of any origin, read by processes that can be ended: a request in, a clip or the reason against it out.

A file may be made to crash a decoder, to take all memory, or to block whoever opens it (a pipe, a network that hangs).
So it is opened only in a process of its own with bounded memory, which is killed when its time is up.

Between the processes pass JSON and Arrow, nothing that is executed when it is read.
"""

import os
import queue
import resource
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import pyarrow as pa

import clip4vla
from clip4vla.clips.format import SCHEMA, Clip, decode_row
from clip4vla.inference.limits import ReaderLimits
from clip4vla.inference.media_row import ReadRequest, read_row_within
from clip4vla.media.source import MediaError

START_S = 60.0
"""Time in which a reader must have started."""
READY = b"ready"


class MediaReader:
    """Reads files within limits, several at once, from any number of threads.

    Args:
        limits: what a file may cost, and how many are read at once.
    """

    def __init__(self, limits: ReaderLimits) -> None:
        self.limits = limits
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._progress = time.monotonic()
        """When a process was last given to a file, or came back from one."""
        for _ in range(limits.readers):
            self._idle.put(_Process(limits))

    def read(self, request: ReadRequest) -> Clip:
        """The clip of a file.

        Raises:
            MediaError: `busy` (no process becomes free), `timeout`, `crashed`, or what `read_row_within` raises.
        """
        process = self._take()
        try:
            return process.read(request)
        except (TimeoutError, EOFError, OSError) as error:
            process.end()
            process = _Process(self.limits)
            if isinstance(error, TimeoutError):
                reason, detail = "timeout", f"could not be read within {self.limits.max_decode_s:g} s"
            else:
                reason, detail = "crashed", "ended the process that read it"
            raise MediaError(reason, f"{request.name} {detail}") from error
        finally:
            self._progress = time.monotonic()
            self._idle.put(process)

    def close(self) -> None:
        """End the processes that are idle."""
        while not self._idle.empty():
            self._idle.get().end()

    def _take(self) -> "_Process":
        """A free process, waited for as long as one was given to a file, or came back, within the last `wait_s`."""
        while True:
            left_s = self._progress + self.limits.wait_s - time.monotonic()
            try:
                process = self._idle.get(timeout=max(0.0, left_s))
            except queue.Empty:
                if left_s <= 0:
                    raise MediaError("busy", "all readers are at files that take long: try again later") from None
            else:
                self._progress = time.monotonic()
                return process


class _Process:
    """A process that reads one file after the other."""

    def __init__(self, limits: ReaderLimits) -> None:
        self._read_s = limits.max_decode_s
        self._is_ready = False
        self._connection, theirs = Pipe()
        places = [str(Path(clip4vla.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = limits.model_dump_json(include=set(ReaderLimits.model_fields))
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), settings]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        )
        theirs.close()

    def read(self, request: ReadRequest) -> Clip:
        """The clip of a file.

        Raises:
            MediaError: the file can't be used.
            TimeoutError: it took too long.
            EOFError, OSError: the process has ended.
        """
        if not self._is_ready:
            self._receive(START_S)
            self._is_ready = True
        self._connection.send_bytes(request.model_dump_json().encode())
        reason, detail = self._receive(self._read_s).decode().split(":", 1)
        if reason:
            raise MediaError(reason, detail)
        return _unpack(self._receive(self._read_s))

    def end(self) -> None:
        """Kill it, without waiting: what is blocked by the system ends later."""
        self._process.kill()
        self._connection.close()

    def _receive(self, seconds: float) -> bytes:
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv_bytes()


def _pack(row: dict[str, object]) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(pa.Table.from_pylist([row], SCHEMA))
    return bytes(sink.getvalue())


def _unpack(data: bytes) -> Clip:
    with pa.ipc.open_stream(data) as reader:
        [row] = reader.read_all().to_pylist()
    return decode_row(row)


def _serve(connection: Connection, limits: ReaderLimits) -> None:
    """Answer requests until the other side is gone.

    Raises:
        EOFError, ConnectionError: it is gone.
    """
    _pack({})  # Arrow imports pandas for its first table, which is not to count as time of the first file
    connection.send_bytes(READY)
    while True:
        request = ReadRequest.model_validate_json(connection.recv_bytes())
        try:
            packed = _pack(read_row_within(request, limits))
        except MediaError as error:
            connection.send_bytes(f"{error.reason}:{_named(error.detail, request)}".encode())
        except MemoryError:
            connection.send_bytes(f"too_large:{request.name} needs more memory than a file may".encode())
        except Exception as error:  # whatever a decoder raises concerns this file alone
            connection.send_bytes(f"corrupt:{request.name}: {type(error).__name__}: {error}".encode())
        else:
            connection.send_bytes(b":")
            connection.send_bytes(packed)


def _named(detail: str, request: ReadRequest) -> str:
    """`detail` with the file as it was named, not with where it is on this machine."""
    place = request.root / request.name
    with suppress(OSError, ValueError, RuntimeError):  # a name that leads nowhere, such as a loop of links
        detail = detail.replace(str(place.resolve()), request.name)
    return detail.replace(str(place), request.name)


def main() -> None:
    """Run a reader: `python -m clip4vla.inference.media_reader DESCRIPTOR LIMITS`."""
    limits = ReaderLimits.model_validate_json(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    with suppress(EOFError, ConnectionError):
        _serve(Connection(int(sys.argv[1])), limits)


if __name__ == "__main__":
    main()
