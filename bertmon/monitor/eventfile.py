"""An event file, as TensorBoard reads it. Every event is in the file when `write` returns.

TensorBoard's own writer (tensorboard.summary.writer) computes checksums byte by byte in Python: 12 ms for the figures
of one step, in a thread that keeps the interpreter from training.
"""

import hashlib
import os
import socket
import struct
import time
import weakref
from itertools import count
from pathlib import Path

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from bertmon.errors import storage_errors

_number = count()


class EventFile:
    """A new file in `folder`, which is made where there is none. Raises StorageError where it cannot be written."""

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{time.time():.3f}.{socket.gethostname()}.{os.getpid()}.{next(_number)}"
        self.path = folder / name
        with storage_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("xb", buffering=0)
        weakref.finalize(self, self._file.close)  # a Trainer that dies tells nobody
        self._sha = hashlib.sha256()
        self._write(Event(file_version="brain.Event:2"))

    def write(self, summary: Summary, step: int = 0) -> None:
        """Add a summary at a step."""
        self._write(Event(summary=summary, step=step))

    def position(self) -> tuple[int, str]:
        """Bytes so far, all of them on the disk now, and their SHA-256."""
        with storage_errors(self.path):
            os.fsync(self._file.fileno())
        return self._file.tell(), self._sha.hexdigest()

    def close(self) -> None:
        """Nothing can be written after that."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        content = event.SerializeToString()
        length = struct.pack("<Q", len(content))
        record = length + _masked_crc(length) + content + _masked_crc(content)
        self._sha.update(record)
        with storage_errors(self.path):
            while record:  # a disk that is nearly full takes a part
                record = record[self._file.write(record) :]


def _masked_crc(data: bytes) -> bytes:
    """CRC-32C, masked as TensorFlow's record format has it (tensorflow/core/lib/hash/crc32c.h)."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
