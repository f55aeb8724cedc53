"""The one exception that means: the user's input is at fault, and the message says how to mend it."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave. The command line prints it as one line and exits with code 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence that names the valid choice nearest to `name`, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(known)}"
