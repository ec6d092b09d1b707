"""One training loop, and what it needs. The two ways in which a run can end early are here, free of torch."""

from __future__ import annotations

from tinyseek.errors import UserError


class StoppedError(Exception):
    """The user asked for the run to stop (Ctrl-C, `tinyseek stop`); it was saved. The text says how to go on.

    The command line prints it and exits with status 130, as programs stopped by Ctrl-C do.
    """


class DivergedError(UserError):
    """The loss became NaN or jumped and stayed up; the text names the last good checkpoint and what to change."""
