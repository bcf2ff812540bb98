"""What follows the colon of a config file: `--config=configs/at_cifar10.py:wrn_34_10,si`."""

from si_jax.errors import InputError


def read(text: str | None) -> tuple[str, bool]:
    """What follows a config file's colon: an architecture (or a row), '' for none, and whether SI is on."""
    parts = [part.strip() for part in (text or '').split(',')]
    names = [part for part in parts if part not in ('', 'si')]
    if len(names) > 1:
        raise InputError(
            f'{text!r} has {len(names)} names, {" and ".join(names)}: give one, then si or nothing'
        )
    return ''.join(names), 'si' in parts
