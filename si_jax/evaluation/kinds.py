"""The kinds of attack: a member of the PGD family, a cascade of searches, a callable, a transfer.

Each has two methods, `cost(request)` and `run(network, request)`, and says of what `parts` it is made. The
first two can be `Targeted`.
"""

from typing import Protocol

from si_jax.attacks import registry
from si_jax.attacks.pgd import Attack
from si_jax.attacks.settings import file_name
from si_jax.evaluation import custom
from si_jax.evaluation.cascade import Cascade
from si_jax.evaluation.custom import CustomAttack
from si_jax.evaluation.gates import Gated
from si_jax.evaluation.network import Network
from si_jax.evaluation.pgd import Outcome, Pgd
from si_jax.evaluation.request import Request
from si_jax.evaluation.targeted import Targeted


class Kind(Gated, Protocol):
    """What `evaluate` runs."""

    def cost(self, request: Request) -> int:
        """The forward passes that it makes of an image, at most and roughly: for the progress."""

    def run(self, network: Network, request: Request) -> Outcome:
        """Attacks the images of the network."""


def kind_of(name: str, request: Request) -> Kind:
    """The attack of this name, toward the targets of the request if it has some."""
    kind = _untargeted(name, request)
    return Targeted(kind) if request.targets is not None and isinstance(kind, Pgd | Cascade) else kind


def _untargeted(name: str, request: Request) -> Kind:
    given, samples = request.custom.get(name), request.eot_samples
    if isinstance(given, Attack):
        return Pgd(name, given, custom.UNIT + name, samples, protocol=custom.protocol(name, given))
    if given is not None:
        return CustomAttack(name, given)
    row, norm = registry.row_of(name), request.threat.norm
    settings = registry.named(name, norm).settings
    if isinstance(row, Attack):
        return Pgd(name, row, file_name(name), samples, given=settings)
    stages = registry.stages(name, samples, norm, randomised=request.decisions is not None)
    return Cascade(name, stages, settings)
