"""Words and phrases to avoid in the prose and messages of this project, with replacements.

Usage: python .ci/words.py [PATH ...]. Without paths every tracked text file is checked. Exits with 1 if any is found.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
INSTEAD = {
    r"(goes|gone|going|go|went) on": "resume, continue",
    r"anew": "again, from the start",
    r"(is|are|was|were|be|being|been) told": "is reported",
    r"no whole": "corrupt",
    r"stands?": "is",
    r"is not possible: give": "expected ..., got ...",
    r"of others": "third-party, of other ...",
    r"that (is|are) there": "available",
    r"tak(e|es|en|ing) away": "remove",
    r"hardly": "barely, almost not",
    r"the middle one": "median",
    r"taken for": "mistaken for",
    r"once more": "again",
    r"beside": "next to",
    r"begin(s|ning)? anew": "start over",
    r"kin of": "variant of",
    r"come to rest": "stopped moving",
    r"what it is worth": "its value",
    r"in place of": "instead of",
    r"(become|became|comes|came) of (it|the|them|each)": "outcome, result",
    r"labelled|labelling": "labeled, labeling",
    r"set-up": "setup",
    r"whole numbers?": "integer",
    r"can be had": "is available",
    r"side-by-side/|side by side/": "comparison/",
    r"(was|is|are|were) (damaged|broken off)": "corrupt, interrupted",
    r"(colour|behaviour|initialis|optimis|normalis|recognis|favour|centre|neighbour)\w*": "US spelling",
}
PATTERN = re.compile("|".join(rf"\b(?P<w{n}>{words})(?!\w)" for n, words in enumerate(INSTEAD)), re.IGNORECASE)
SUFFIXES = {".py", ".md", ".yaml", ".toml", ".jinja", ".cff"}
NOT_CHECKED = ("docs/LOG.md", "benchmarks/results/", ".ci/words.py")  # the lab book and dated results stay as written
ALLOWED = (  # lines with a legitimate use, as regular expressions
    r"stands? (for|in|out)|stand-in",  # an abbreviation, a substitute, something that is noticed
    r"told apart|told of",
    r"the middle one with",
    r"standalone|--standalone",
    r"rests? on",
)


def files(paths: list[str]) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [ROOT / name for name in listed if Path(name).suffix in SUFFIXES and not name.startswith(NOT_CHECKED)]


def findings(path: Path) -> list[str]:
    """One line per match in a file."""
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if any(re.search(allowed, line) for allowed in ALLOWED):
            continue
        for match in PATTERN.finditer(line):
            word = next(int(name[1:]) for name, text in match.groupdict().items() if text is not None)
            instead = list(INSTEAD.values())[word]
            found.append(f"{path.relative_to(ROOT)}:{number}: {match.group()!r}: write {instead!r}")
    return found


def main(paths: list[str]) -> int:
    found = [line for path in files(paths) if path.is_file() for line in findings(path)]
    print(*found, sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
