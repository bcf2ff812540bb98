"""What the nodes of an exported PyTorch module are, and the errors that name their places."""

import pathlib
import traceback
from collections.abc import Sequence
from typing import Any

from si_jax.errors import InputError


def is_random(node: Any) -> bool:
    """Whether a node draws random numbers."""
    return any(tag.name == 'nondeterministic_seeded' for tag in getattr(node.target, 'tags', ()))


def aten_name(node: Any) -> tuple[str, str]:
    """('add', 'Tensor') for aten.add.Tensor."""
    packet = getattr(node.target, 'overloadpacket', None)
    if packet is None or getattr(node.target, 'namespace', '') != 'aten':
        return '', ''
    return packet.__name__, node.target._overloadname


def check_logits(outputs: Sequence[Any], name: str) -> None:
    """Refuses a module that does not return logits [B, K]."""
    shapes = [list(getattr(o.meta['val'], 'shape', ())) if hasattr(o, 'meta') else None for o in outputs]
    if len(outputs) != 1 or shapes[0] is None or len(shapes[0]) != 2:
        raise InputError(
            f'{name} returns {len(outputs)} value(s) of shape {", ".join(map(str, shapes))}, not logits '
            f'[B, K]: wrap it in a module whose forward returns the logits alone'
        )


def unsupported_error(nodes: Sequence[Any], name: str) -> InputError:
    """The error for operations without a row in the table: each once, with the places where it is used."""
    places: dict[str, list[str]] = {}
    for node in nodes:
        places.setdefault(str(node.target), []).append(_place(node))
    lines = []
    for target, found in sorted(places.items()):
        more = f' and {len(found) - 3} more' if len(found) > 3 else ''
        lines.append(f'\n  {target} at {"; ".join(found[:3])}{more}')
    message = f'{name} uses {len(places)} operation(s) that have no JAX counterpart here:{"".join(lines)}\n'
    if any(map(is_random, nodes)):
        message += (
            'It draws random numbers, even in evaluation mode: write a randomised defense as a JAX function '
            '(images, keys), wrapped in si_jax.Randomised'
        )
    else:
        message += 'Write these places with other operations, or add rows to si_jax/interop/aten'
    return InputError(message)


def _place(node: Any) -> str:
    stack = node.meta.get('nn_module_stack') or {}
    module = next(reversed(stack.values()), ('', ''))[0] if stack else ''
    trace = [line.strip() for line in (node.meta.get('stack_trace') or '').splitlines()]
    files = [line for line in trace if line.startswith('File ')]
    where = ''
    if files:
        path, line = files[-1].split(',')[:2]
        where = f' ({path.removeprefix("File ").strip(chr(34)).rsplit("/", 1)[-1]},{line})'
    return f'{module or "the module itself"}{where}'


def place_of(error: BaseException) -> str:
    """Where a module's forward met an error, ' at net.py, line 12 (if x > 0:)'; '' if that is unknown."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = pathlib.PurePath(frame.filename)
        if frame.name == 'forward' and 'torch' not in path.parts:
            return f' at {path.name}, line {frame.lineno} ({frame.line})'
    return ''


def first_line(error: BaseException) -> str:
    """The first line of an error that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
