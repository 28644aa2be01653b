"""What may stand on a terminal and in a log: texts of others without what moves its cursor or hides its words."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # bidi overrides too
_LONGEST = 200


def lines(text: str) -> str:
    """Control characters but line ends and tabs as escapes: `\\x1b`."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else ascii(found[0])[1:-1], text)


def line(value: object, longest: int = _LONGEST) -> str:
    """As a part of one line: line ends as escapes too, cut to `longest` characters."""
    text = str(value)
    shown = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text[: longest + 1])
    return shown if len(text) <= longest else shown[: longest - 3] + "..."
