"""Errors that a user can act on: each names the value, the limit and the remedy."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """A wrong input, found before any compute was spent where it can be.

    Attributes:
        image: [H, W, C], the point of the ball at which a classifier was found unfit; None for all else.
    """

    image: Any = None


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that a table does not have, with the names that come near.

    Args:
        kind: What the name should have been, for example `'attack'`.
        name: The name as given.
        known: All valid names.
    """
    known = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), known, n=3, cutoff=0.5)
    hint = f'did you mean {" or ".join(near)}? ' if near else ''
    return InputError(f'unknown {kind} {name!r}: {hint}known: {", ".join(known)}')
