"""Third-party text for the terminal and for logs, without characters that move the cursor or hide words."""

import logging
import re

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


class SanitizingFormatter(logging.Formatter):
    """A log's formatter whose messages and tracebacks come as `lines`."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return sanitize(self._inner.format(record))


def sanitize_logs() -> None:
    """Give the root logger's handlers such a formatter."""
    for handler in logging.getLogger().handlers:
        if not isinstance(handler.formatter, SanitizingFormatter):
            handler.setFormatter(SanitizingFormatter(handler.formatter or logging.Formatter()))
