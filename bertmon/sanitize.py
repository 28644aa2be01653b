"""Sanitizes third-party text for the terminal and logs: no characters that move the cursor or hide text."""

import logging
import re
import shutil
import textwrap
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # bidi overrides too


def has_control_characters(text: str) -> bool:
    """Whether the text contains a control character, including line breaks, or a lone surrogate."""
    return _CONTROL.search(text) is not None


def sanitize_line(value: object, longest: int = 200) -> str:
    """The value as text within one line: control characters escaped (`\\x1b`), the middle of a long text omitted."""
    text = str(value)
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-longest // 2 :]}"
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)


def sanitize(text: str, longest: int = 2000) -> str:
    """Apply `sanitize_line` to each line, keeping tabs."""
    return "\n".join("\t".join(sanitize_line(part, longest) for part in line.split("\t")) for line in text.split("\n"))


def wrap_for(stream: Any, text: str) -> str:
    """The text with lines wrapped to the width of the terminal; unchanged if `stream` is not a terminal.

    Indented lines, as in tracebacks, are not wrapped.
    """
    if stream is None or not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    options: dict[str, Any] = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(
        line if len(line) <= columns or line[:1].isspace() else textwrap.fill(line, columns, **options)
        for line in text.split("\n")
    )


class SanitizingFormatter(logging.Formatter):
    """A log formatter that sanitizes another formatter's messages and tracebacks and wraps them for the stream."""

    def __init__(self, inner: logging.Formatter, stream: Any = None) -> None:
        super().__init__()
        self._inner, self._stream = inner, stream

    def format(self, record: logging.LogRecord) -> str:
        return wrap_for(self._stream, sanitize(self._inner.format(record)))


def sanitize_logs() -> None:
    """Wrap the formatter of each of the root logger's handlers in a SanitizingFormatter."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, SanitizingFormatter):
            stream = None if isinstance(handler, logging.FileHandler) else getattr(handler, "stream", None)
            handler.setFormatter(SanitizingFormatter(handler.formatter or logging.Formatter(), stream))
