"""What goes wrong by the user's hand: one line that names the value and the fix, never a traceback.

The command line prints these as ``error: ...`` and leaves with the class's ``exit_code``.
"""

from __future__ import annotations


class SteerMoEError(Exception):
    """Base of all errors that are meant for the user."""

    exit_code = 1


class UsageError(SteerMoEError):
    """A wrong flag, value or config key."""

    exit_code = 2


class AudioError(SteerMoEError):
    """Audio that cannot be read or must not be used (absent, empty, broken, NaN, too long)."""


class FetchError(SteerMoEError):
    """A model or data set that cannot be fetched, or whose digest is not the pinned one."""


class AdapterError(SteerMoEError):
    """An adapter that is broken or was trained for another pair."""


class DataError(SteerMoEError):
    """A data source or manifest that cannot be read."""
