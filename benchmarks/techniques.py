"""What single techniques bring on the CPU: with all of them, and with one changed, in turns."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import flax.linen as nn
import jax

from benchmarks.pgd import NETWORKS, attack_and_arguments, title
from benchmarks.turns import in_turns
from configs import narrow, quickstart
from si_jax import defenses
from si_jax.models import convolution, resnet
from si_jax.runtime import devices
from si_jax.training.setup import compile_train_step
from si_jax.training.timing import arguments, synthetic

STEPS = 10


class Folded(nn.Module):
    """What is left of batch normalisation in evaluation mode once its scale is in the kernel: a bias."""

    axis: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        return x + self.param('bias', nn.initializers.zeros, x.shape[-1:])


def xla_chooses() -> Any:
    """XLA takes the library for convolutions that it would take without us."""
    return mock.patch.object(devices, 'compiler_options', dict)


@contextlib.contextmanager
def one_form() -> Iterator[None]:
    """Narrow convolutions one pixel at a time, and gradients of strides with zeros between."""
    with mock.patch.multiple(convolution, FEW_OUTPUTS=0, _input_gradient=with_zeros):
        yield


def with_zeros(
    cotangent: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int, padding: int
) -> jax.Array:
    """The input gradient as one convolution of the cotangent, with stride - 1 zeros between its pixels."""
    edges = [(0, 0, 0)] * 4
    for d, window in enumerate(kernel.shape[:2], 1):
        low = window - 1 - padding
        high = shape[d] + padding - (cotangent.shape[d] - 1) * stride - 1
        edges[d] = (low, high, stride - 1)
    spread = jax.lax.pad(cotangent, cotangent.dtype.type(0), edges)
    return convolution._lax(spread, convolution._flipped(kernel.transpose(0, 1, 3, 2)), 1, 0)


def folded() -> Any:
    """As fast as batch normalisation folded into the convolutions can be: the folding itself is left out."""
    return mock.patch.object(resnet, 'BatchNorm', Folded)


# Name, what is patched while it is traced, what the program is made with.
CHANGES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    'si_jax': (contextlib.nullcontext, {}),
    "XLA's choice of library": (xla_chooses, {}),
    'one form of convolution': (one_form, {}),
    'bfloat16 in the convolutions': (contextlib.nullcontext, {'dtype': 'bfloat16'}),
    'batch normalisation folded': (folded, {}),
    'batch normalisation in training mode': (contextlib.nullcontext, {'train': True}),
}


TOGETHER = 4  # training steps in one dispatch


def dispatch(name: str, config: Any, turns: int) -> dict[str, Any]:
    """Training steps handed over one by one, as `train.py` does, and several in one program."""
    ready = synthetic(config, config.attack.steps, defenses.from_config(config.defense))
    step = compile_train_step(ready)
    with xla_chooses():  # a program within a program takes no options
        inner = compile_train_step(ready)
    _, _, *rest = arguments(ready)

    def looped(state: Any, carry: Any, *rest: Any) -> Any:
        return jax.lax.fori_loop(0, TOGETHER, lambda _, both: inner(*both, *rest)[:2], (state, carry))

    def one_by_one(state: Any, carry: Any, *rest: Any) -> Any:
        for _ in range(TOGETHER):
            state, carry, _ = step(state, carry, *rest)
        return state, carry

    options = devices.compiler_options()
    programs = {
        'si_jax': one_by_one,
        'several steps in one dispatch': jax.jit(looped, donate_argnums=(0, 1), compiler_options=options),
    }

    def keeping_its_state(program: Callable[..., Any]) -> Callable[[], None]:
        under_way = list(arguments(ready)[:2])

        def call() -> None:
            under_way[:] = jax.block_until_ready(program(*under_way, *rest))

        return call

    calls = {name: keeping_its_state(program) for name, program in programs.items()}
    return in_turns(f'{TOGETHER} training steps, {name}', calls, TOGETHER * config.batch_size, turns)


def rows(quick: bool) -> list[dict[str, Any]]:
    """How many times as fast ours is as with each change."""
    found = [dispatch('configs/quickstart.py', quickstart.get_config(), 11)]
    if not quick:
        found.append(dispatch('configs/narrow.py', narrow.get_config(), 3))
    for arch, width, batch in NETWORKS[: 2 if quick else 3]:
        programs = {}
        for name, (change, settings) in CHANGES.items():
            if 'normalisation' in name and arch == 'small_cnn':
                continue  # it has none
            with change():
                attack, given = attack_and_arguments(arch, width, batch, STEPS, **settings)
                compiled = attack.lower(*given).compile()
            programs[name] = lambda compiled=compiled, given=given: jax.block_until_ready(compiled(*given))
        what = f'PGD-{STEPS}, {title(arch, width)}, batch {batch}'
        found.append(in_turns(what, programs, batch, 5 if arch == 'resnet18' and width is None else 11))
    return found
