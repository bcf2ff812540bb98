"""A whole training step of each method beside plain PyTorch, and beside what is added to it, in turns."""

from typing import Any

from benchmarks import peers, torch_steps
from benchmarks.pgd import problem, title
from benchmarks.turns import in_turns
from si_jax import defenses
from si_jax.training import recipes
from si_jax.training.timing import synthetic, timed

METHODS = ('at', 'trades', 'tradessi', 'mart', 'freeat', 'rfgsm', 'nfgsm', 'gradalign')
ARCH, WIDTH, BATCH = 'resnet18', 8, 32


def row(method: str, turns: int) -> dict[str, Any]:
    """One method; both sides augment nothing, and ours gathers its batch from the resident data."""
    name, si = method.removesuffix('si'), method.endswith('si')
    config = recipes.paper(name, si=si, dataset='cifar10', arch=ARCH)
    config.model.width, config.batch_size = WIDTH, BATCH
    images, labels = problem(BATCH)
    net = peers.network(ARCH, WIDTH)
    x, y = peers.tensors(images, labels)
    programs = {
        'si_jax': timed(synthetic(config, config.attack.steps, defenses.from_config(config.defense))),
        'PyTorch': torch_steps.stepper(method, net, x, y, config.attack.steps),
    }
    return in_turns(f'step of {method}, {title(ARCH, WIDTH)}, batch {BATCH}', programs, BATCH, turns)


# What is added to a step of AT: fields of the config.
ADDED: dict[str, dict[str, Any]] = {
    'with AWP': {'awp.gamma': 0.005},
    'with averaged weights': {'average.kind': 'ema'},
    'in L1': {'threat.norm': 'l1', 'threat.eps': 12.0},
    'in bfloat16': {'model.dtype': 'bfloat16'},
}


def added(turns: int) -> dict[str, Any]:
    """How much faster a plain step of AT is than one with an ingredient of modern training."""
    programs = {}
    for name, fields in ({'plain': {}} | ADDED).items():
        config = recipes.paper('at', dataset='cifar10', arch=ARCH)
        config.model.width, config.batch_size = WIDTH, BATCH
        config.update_from_flattened_dict(fields)
        row = defenses.from_config(config.defense)
        programs[name] = timed(synthetic(config, config.attack.steps, row))
    return in_turns(f'step of at, {title(ARCH, WIDTH)}, batch {BATCH}', programs, BATCH, turns)


def rows(quick: bool) -> list[dict[str, Any]]:
    """Row (b)."""
    turns = 3 if quick else 5
    return [*(row(method, turns) for method in (METHODS[:3] if quick else METHODS)), added(turns)]
