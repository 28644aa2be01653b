"""Errors in monitoring do not interrupt training."""

import functools
import logging
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from bertmon.errors import InputError, first_line, require

log = logging.getLogger(__name__)

P = ParamSpec("P")
Self_ = TypeVar("Self_", bound="Guarded")


class Guarded:
    """Base class of objects attached to a training loop; after the first error, `guarded` methods do nothing.

    on_error: "log", or "raise" for tests and debugging.
    """

    def __init__(self, on_error: str) -> None:
        require(on_error in ("log", "raise"), "on_error", on_error, "log or raise")
        self._on_error = on_error
        self._failed = False

    def _is_mistake(self, error: Exception) -> bool:
        """Whether the error is a mistake in the calling code: it is always raised, and does not stop monitoring."""
        return False

    def _release(self) -> None:
        """Detach from the training loop and close open files."""
        raise NotImplementedError

    def _fail(self, error: Exception) -> None:
        self._failed = True
        try:
            self._release()
        except Exception:
            log.debug("cleanup failed, too, after the error logged next", exc_info=True)
        trace = None if isinstance(error, InputError) else error
        log.error(f"Monitoring stopped after an error; training continues: {first_line(error)}", exc_info=trace)


def guarded(method: Callable[Concatenate[Self_, P], None]) -> Callable[Concatenate[Self_, P], None]:
    """Decorate a method of a Guarded to log exceptions instead of raising them."""

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
