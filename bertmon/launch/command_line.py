"""The text of the command line: checks before Hydra parses it, messages for Hydra's errors, commands that restart
bertmon.
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from bertmon.config import RENAMED_CHOICES, RENAMED_KEYS
from bertmon.errors import InputError
from bertmon.launch.compose import reads_own_texts
from bertmon.launch.read_config import explain_unknown_key
from bertmon.launch.run_names import quote_override
from bertmon.sanitize import has_control_characters, sanitize, sanitize_line

CONFIG_GROUPS = ("data", "model", "optimizer", "schedule", "train", "monitor")
GROUPS = ("experiment", *CONFIG_GROUPS)
_FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p")
_NOT_A_NAME = re.compile(r"(^|,)(null|true|false|[-+]?[0-9.][0-9.e+-]*)(,|$)", re.IGNORECASE)


def program() -> list[str]:
    """The command, without arguments, that starts bertmon from the current directory as this process was started."""
    script = Path(sys.argv[0])
    if script.stem == "bertmon" and os.access(script, os.X_OK):
        resolved = shutil.which("bertmon")
        on_path = resolved is not None and os.path.realpath(resolved) == os.path.realpath(script)
        return ["bertmon" if on_path else str(script)]
    python = sys.orig_argv[0] if sys.orig_argv else sys.executable
    resolved = shutil.which(python)
    on_path = resolved is not None and os.path.abspath(resolved) == os.path.abspath(sys.executable)
    return [python if on_path else sys.executable, "-m", "bertmon"]


def resume_command(sweep_dir: Path) -> str:
    """The shell command that resumes a launch, with as many processes as this launch has."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    per_node = os.environ.get("LOCAL_WORLD_SIZE", str(processes))
    start = program() if processes == 1 else ["torchrun", f"--nproc-per-node={per_node}", "-m", "bertmon"]
    return shlex.join([*start, "resume", str(sweep_dir)])


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The arguments with flags before overrides: Hydra's parser rejects overrides on both sides of a flag."""
    flags: list[str] = []
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        is_override = not argument.startswith("-") and ("=" in argument or argument[:1] in ("~", "+"))
        (others if is_override else flags).append(argument)
        if argument in _FLAGS_WITH_VALUE and (value := next(remaining, None)) is not None:
            flags.append(value)  # even if it contains =
    return [*flags, *others]


def with_own_data_defaults(arguments: Sequence[str], config_dir: Path | str | None = None) -> list[str]:
    """The arguments, with an experiment added if they select the user's own texts but no experiment.

    data=files, data=hf and presets based on them default to experiment=finetune; with randomly initialized weights,
    such as model=bert_small, to experiment=custom, which is bertmon's plain defaults. experiment=auto, the default
    otherwise, demonstrates a failing run and fits only the demonstration's texts.
    config_dir: folder of the user's presets, unless a flag in the arguments names it.
    """
    overrides = dict(word.lstrip("+~").partition("=")[::2] for word in arguments if not word.startswith("-"))
    if "experiment" in overrides or _flag_value(arguments, "--config-name", "-cn"):
        return list(arguments)
    if not reads_own_texts(overrides.get("data", ""), config_dir or _flag_value(arguments, "--config-dir", "-cd")):
        return list(arguments)
    pretrained = overrides.get("model", "pretrained") in ("pretrained", "bert_base_pretrained")
    random_init = overrides.get("model.init") == "random"
    return [*arguments, f"experiment={'finetune' if pretrained and not random_init else 'custom'}"]


def _flag_value(arguments: Sequence[str], *names: str) -> str | None:
    """The value of a flag; None if the flag is not given."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else following
    return None


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise InputError for arguments that make Hydra fail an assertion, give wrong advice, or do something else."""
    for argument in arguments:
        if re.search("[\ud800-\udfff]", argument):
            raise InputError(f"command line: expected UTF-8, got {sanitize_line(argument)}.")
        key, equals, value = argument.lstrip("+~").partition("=")
        if equals:
            _check_override(argument, key, value)
    _check_config_flags(arguments)


def _check_override(argument: str, key: str, value: str) -> None:
    if key in RENAMED_KEYS:
        raise InputError(explain_unknown_key(key))
    for choice in value.split(","):
        if new := RENAMED_CHOICES.get(f"{key}={choice}"):
            raise InputError(f"{key}={choice} was renamed to {new}.")
    if key in GROUPS and not argument.startswith("~"):
        if argument.startswith("+"):
            raise InputError(f"{key}: drop the +: {key}={value}")
        if _NOT_A_NAME.search(value):
            raise InputError(f"{key}: expected the name of a file in conf/{key}, got {sanitize_line(value)}.")


def _check_config_flags(arguments: Sequence[str]) -> None:
    """Raise InputError for a folder that would replace bertmon's conf/, or whose config.yaml would be ignored."""
    for flag, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        folder = Path(value if equals else following)
        if name in ("--config-path", "-cp"):
            raise InputError(f"{name}: expected --config-dir, which adds a folder to bertmon's own conf/.")
        if name in ("--config-dir", "-cd") and (folder / "config.yaml").is_file():
            saved = folder.parent if folder.name == ".hydra" else folder
            hint = f"To repeat a run from its saved config: {shlex.join([*program(), 'rerun', str(saved)])}"
            raise InputError(
                f"{name}: {folder / 'config.yaml'} would not be used: bertmon has a config of that name. {hint}"
            )


def format_error(error: BaseException) -> str:
    """The message for an error in the command line, sanitized for a terminal."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OverrideParseException):
        return sanitize(_explain_syntax(error))
    if isinstance(error, HydraException | OmegaConfBaseException):
        cause = f"\n{error.__cause__}" if error.__cause__ else ""
        return sanitize(_explain_composition(f"{error}{cause}"))
    root = error.__cause__ or error
    reason = f"{type(root).__name__}: {root}".removesuffix(": ")
    arguments = sanitize_line(shlex.join(sys.argv[1:]), 1000)
    return sanitize(f"Could not start: {reason} (arguments: {arguments}). Set HYDRA_FULL_ERROR=1 for the traceback.")


def _explain_composition(text: str) -> str:
    """Hydra's message; for an unknown key, bertmon's own, which does not advise adding a + as Hydra's does."""
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is None and re.search(r"Key '[^']*' (is )?not in", text):
        unknown = re.search(r"full_key: (\S+)", text)
    file = re.match(r"In '([^']+)': ", text)
    if unknown and unknown[1].partition(".")[0] != "hydra" and "/" not in unknown[1] and unknown[1] not in GROUPS:
        return (f"conf {file[1]}: " if file else "") + explain_unknown_key(unknown[1])
    return "\n".join(line for line in text.split("\n") if not re.match(r" +(reference|object)_type=", line))


def _explain_syntax(error: OverrideParseException) -> str:
    """Hydra's message, or how to quote a value as its grammar requires, such as one with = or a single quote."""
    key, equals, value = error.override.partition("=")
    quoted = f"{key}={quote_override(value)}"
    is_structured = re.fullmatch(r"\w+\(.*\)|\[.*\]|\{.*\}|[='\"].*|.*,.*", value)  # choice(...), a list, a mapping
    if not equals or not value or is_structured or has_control_characters(value) or not _parses(quoted):
        return str(error)
    return f"{key}: could not parse the value {value}; quote it for Hydra and for the shell: {_shell_quote(quoted)}"


def _shell_quote(word: str) -> str:
    """Quote a word that contains single quotes for a shell, in double quotes where these are sufficient."""
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except OverrideParseException:
        return False
    return True
