"""Console output of parallel runs."""

import io
import logging

from bertmon.launch.log_file import Console


class CountingStream(io.StringIO):
    """Records each write."""

    def __init__(self):
        super().__init__()
        self.writes = []

    def write(self, text):
        self.writes += [text] if text else []
        return super().write(text)


def test_line_and_its_end_are_written_at_once():
    stream = CountingStream()
    Console(stream).emit(logging.makeLogRecord({"msg": "step 5 of 20"}))
    assert stream.writes == ["step 5 of 20\n"]
