"""PGD-10 and PGD-20 images a second, here and elsewhere, on the same networks in turns."""

from collections.abc import Callable
from typing import Any

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchattacks

from benchmarks import peers
from benchmarks.peers import EPS, STEP_SIZE, F
from benchmarks.turns import in_turns
from si_jax import attacks, models
from si_jax.runtime import devices
from si_jax.threat import Threat

THREAT = Threat('linf', EPS)
# Architecture, width, batch.
NETWORKS = (('small_cnn', None, 64), ('resnet18', 8, 64), ('resnet18', None, 32))


def title(arch: str, width: int | None) -> str:
    return arch if width is None else f'{arch} of width {width}'


def problem(batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(batch, 32, 32, 3)).astype(np.float32)
    return images, rng.integers(0, 10, batch).astype(np.int32)


def attack_and_arguments(
    arch: str,
    width: int | None,
    batch: int,
    steps: int,
    convolution: str | None = None,
    dtype: str | None = None,
    train: bool = False,
) -> tuple[Any, tuple[Any, ...]]:
    """Our PGD as one program, not yet compiled; `lax` is the loop with convolutions as JAX has them."""
    images, labels = problem(batch)
    model = models.create(arch, num_classes=10, width=width, dtype=dtype)
    variables = model.init(jax.random.key(0), jnp.asarray(images[:1]))
    keys = jax.random.split(jax.random.key(1), batch)

    def attack(variables: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        with models.use_convolution(convolution):
            return attacks.run(
                attacks.ATTACKS['pgd'],
                lambda x, _: model.apply(variables, x, train=train),
                x,
                y,
                keys,
                threat=THREAT,
                steps=steps,
                step_size=STEP_SIZE,
            ).last

    program = jax.jit(attack, compiler_options=devices.compiler_options())
    return program, (variables, jnp.asarray(images), jnp.asarray(labels))


def compiled(
    arch: str, width: int | None, batch: int, steps: int, convolution: str | None = None
) -> Callable[[], Any]:
    attack, given = attack_and_arguments(arch, width, batch, steps, convolution)
    return lambda: jax.block_until_ready(attack(*given))


def foolbox_jax(
    arch: str, width: int | None, images: np.ndarray, labels: np.ndarray, steps: int
) -> Callable[[], Any]:
    """Foolbox's PGD on the same network, compiled by hand, with convolutions as JAX has them."""
    model = models.create(arch, num_classes=10, width=width)
    x, y = jnp.asarray(images), jnp.asarray(labels)
    variables = model.init(jax.random.key(0), x[:1])

    @jax.jit
    def forward(x: jax.Array) -> jax.Array:
        with models.use_convolution('lax'):
            return model.apply(variables, x).logits

    wrapped = foolbox.JAXModel(forward, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=steps)
    return lambda: jax.block_until_ready(attack.run(wrapped, x, y, epsilon=EPS))


def programs(arch: str, width: int | None, batch: int, steps: int, compile_torch: bool) -> dict[str, Any]:
    """Ours and all peers on one network."""
    images, labels = problem(batch)
    net = peers.network(arch, width).eval().requires_grad_(False)
    x, y = peers.tensors(images, labels)
    theirs = torchattacks.PGD(net, eps=EPS, alpha=STEP_SIZE, steps=steps, random_start=True)

    def by_hand(net: Any) -> Callable[[], Any]:
        def loss(adv: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(net(adv), y, reduction='sum')

        return lambda: peers.climb(loss, x, peers.start_of(x), steps)

    found = {
        'si_jax': compiled(arch, width, batch, steps),
        'torchattacks': lambda: theirs(x, y),
        'PyTorch by hand': by_hand(net),
        'Foolbox with JAX': foolbox_jax(arch, width, images, labels, steps),
        'plain JAX loop': compiled(arch, width, batch, steps, 'lax'),
    }
    if compile_torch:
        found['torch.compile'] = by_hand(torch.compile(net))
    return found


def batch_after_batch(arch: str, width: int | None, batch: int, batches: int, turns: int) -> dict[str, Any]:
    """Several batches: ours on the cores as `evaluate.py` spreads them, the others one after another."""
    each = programs(arch, width, batch, 10, compile_torch=False)
    ours = each.pop('si_jax')

    def spread_out() -> None:
        devices.side_by_side(lambda _: ours(), range(batches))

    def in_a_row(program: Callable[[], Any]) -> Callable[[], None]:
        return lambda: [program() for _ in range(batches)][-1]

    del each['plain JAX loop']
    what = f'PGD-10, {title(arch, width)}, {batches} batches of {batch}'
    others = {name: in_a_row(program) for name, program in each.items()}
    return in_turns(what, {'si_jax': spread_out, **others}, batches * batch, turns)


def rows(quick: bool) -> list[dict[str, Any]]:
    """Row (a)."""
    found = []
    for arch, width, batch in NETWORKS[:2]:
        found.append(batch_after_batch(arch, width, batch, 8, 3 if quick else 5))
    if not quick:
        found.append(batch_after_batch(*NETWORKS[2], 4, 3))
    for arch, width, batch in NETWORKS[: 2 if quick else 3]:
        large = arch == 'resnet18' and width is None
        for steps in (10,) if quick or large else (10, 20):
            each = programs(arch, width, batch, steps, compile_torch=not quick and not large)
            what = f'PGD-{steps}, {title(arch, width)}, batch {batch}'
            found.append(in_turns(what, each, batch, 7 if large else 5))
    return found
