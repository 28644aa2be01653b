"""Monitoring never ends a training that would have continued without it."""

import functools
import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from bertmon.errors import InputError, require

log = logging.getLogger(__name__)

P = ParamSpec("P")
Self_ = TypeVar("Self_", bound="Guarded")


class Guarded:
    """The base of what is put into a training: its `guarded` methods do nothing after the first of them has failed.

    on_error: "log", or "raise" for tests and debugging.
    """

    def __init__(self, on_error: str) -> None:
        require(on_error in ("log", "raise"), "on_error", on_error, "log or raise")
        self._on_error = on_error
        self._failed = False

    def _is_mistake(self, error: Exception) -> bool:
        """Whether the calling program is to be corrected: such an error is raised in any case, and changes nothing."""
        return False

    def _release(self) -> None:
        """Remove whatever has been put into the training, and close what is open."""
        raise NotImplementedError

    def _fail(self, error: Exception) -> None:
        self._failed = True
        try:
            self._release()
        except Exception:
            log.debug("after the error that follows", exc_info=True)
        trace = None if isinstance(error, InputError) else error
        log.error(f"Monitoring stopped after an error; training continues: {first_line(error)}", exc_info=trace)


def first_line(error: Exception) -> str:
    """Of its message: torch's can have a hundred."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def guarded(method: Callable[Concatenate[Self_, P], None]) -> Callable[Concatenate[Self_, P], None]:
    """Make a method of a Guarded log its exceptions instead of raising them."""

    @functools.wraps(method)
    def run(self: Self_, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._failed:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            if self._is_mistake(error):
                raise
            if self._on_error == "raise":
                self._release()
                raise
            self._fail(error)

    return run
