"""Text wrapped between words on terminals, and left alone elsewhere."""

import io
import logging

import pytest

from bertmon.launch.log_file import NoRepeatedLines
from bertmon.sanitize import SanitizingFormatter, wrap_for

LINE = "seed=0: step 30: collapsed - gradients vanish towards the input (first/last layer 4.2e-4 < 0.03)"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")


def test_long_lines_are_wrapped_between_words_only_on_a_terminal():
    lines = wrap_for(Terminal(), LINE).split("\n")
    assert lines == [
        "seed=0: step 30: collapsed - gradients vanish towards the",
        "  input (first/last layer 4.2e-4 < 0.03)",
    ]
    assert wrap_for(io.StringIO(), LINE) == LINE
    assert wrap_for(None, LINE) == LINE


def test_indented_lines_and_long_words_are_not_broken():
    text = f"Traceback:\n  {LINE}\n{'x' * 70} end"
    assert wrap_for(Terminal(), text) == f"Traceback:\n  {LINE}\n{'x' * 70}\n  end"


def test_log_lines_are_wrapped_for_the_stream_they_go_to():
    record = logging.makeLogRecord({"msg": LINE})
    formatter = SanitizingFormatter(logging.Formatter("%(message)s"), Terminal())
    assert formatter.format(record) == wrap_for(Terminal(), LINE)


def test_lines_marked_once_are_not_repeated():
    NoRepeatedLines.seen.clear()
    no_repeats = NoRepeatedLines()
    once, always = (logging.makeLogRecord({"msg": "4 classes", **extra}) for extra in ({"once": True}, {}))
    assert [no_repeats.filter(record) for record in (once, once, always, always)] == [True, False, True, True]
