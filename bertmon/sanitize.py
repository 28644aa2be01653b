"""Third-party text for the terminal and for logs, without characters that move the cursor or hide words."""

import logging
import re
import shutil
import textwrap
from typing import Any

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # bidi overrides too


def has_control_characters(text: str) -> bool:
    """Whether there is a control character in it, a line end included, or half of a surrogate pair."""
    return _CONTROL.search(text) is not None


def sanitize_line(value: object, longest: int = 200) -> str:
    """As a part of one line: control characters as escapes (`\\x1b`), the middle of a long one left out."""
    text = str(value)
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-longest // 2 :]}"
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def sanitize(text: str, longest: int = 2000) -> str:
    """As lines: the same for each of them; tabs stay."""
    return "\n".join("\t".join(sanitize_line(part, longest) for part in each.split("\t")) for each in text.split("\n"))


def wrap_for(stream: Any, text: str) -> str:
    """On a terminal: lines broken between words where they are longer than it is wide. Elsewhere the text as it is.

    Lines that are indented, as those of tracebacks, stay.
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
    """A log's formatter whose messages and tracebacks come as `lines`, wrapped for the stream that they go to."""

    def __init__(self, inner: logging.Formatter, stream: Any = None) -> None:
        super().__init__()
        self._inner, self._stream = inner, stream

    def format(self, record: logging.LogRecord) -> str:
        return wrap_for(self._stream, sanitize(self._inner.format(record)))


def sanitize_logs() -> None:
    """Give the root logger's handlers such a formatter."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, SanitizingFormatter):
            stream = None if isinstance(handler, logging.FileHandler) else getattr(handler, "stream", None)
            handler.setFormatter(SanitizingFormatter(handler.formatter or logging.Formatter(), stream))
