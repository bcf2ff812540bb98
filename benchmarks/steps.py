"""A whole training step of each method beside the same step in plain PyTorch, in turns."""

from typing import Any

from benchmarks import peers, torch_steps
from benchmarks.pgd import problem, title
from benchmarks.turns import in_turns
from si_jax import defenses
from si_jax.training import recipes
from si_jax.training.timing import synthetic, timed

METHODS = ('at', 'trades', 'tradessi', 'mart', 'freeat', 'rfgsm', 'gradalign')
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


def rows(quick: bool) -> list[dict[str, Any]]:
    """Row (b)."""
    return [row(method, 3 if quick else 5) for method in (METHODS[:3] if quick else METHODS)]
