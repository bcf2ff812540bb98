"""The checked arguments of an evaluation, made once: whatever comes after may rely on them."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from si_jax.attacks.pgd import Attack
from si_jax.attacks.registry import named
from si_jax.errors import InputError
from si_jax.evaluation import eight_bit as rounding
from si_jax.evaluation.arrays import (
    check_devices,
    check_images,
    check_indices,
    check_labels,
    check_targets,
    shape_of,
    told_from,
)
from si_jax.evaluation.classifier import BlackBox, Classifier, Randomised
from si_jax.evaluation.pixels import Images
from si_jax.evaluation.settings import (
    AUTO,
    DECISIONS,
    DEFAULTS,
    AttackFunction,
    Takes,
    check_not_random,
    check_number,
    check_precision,
    check_settings,
    check_step_size,
    images_at_once,
    parse_attacks,
    parse_sources,
    takes_of,
)
from si_jax.evaluation.state import begun
from si_jax.threat import Threat


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """What is evaluated and how, checked; the arguments of `evaluate` say more.

    Attributes with the name of an argument hold what was given, or its default.

    Attributes:
        names: The attacks in order.
        custom: The user's own attacks by name.
        sources: The classifiers that adversarial images come from, by the names of their rows.
        images: [N, H, W, C], float32 or float64, in [0, 1]; of `Pixels` what is taken is.
        labels: [N], int64.
        indices: [N], uint32, the number of each image.
        keep: Whether the adversarial images are wanted.
        precision: Of the classifier's products during the search; None for that of the images.
        chunk: Images at once on all devices together.
        layout: 'nhwc' or 'nchw', of images that were given, that are returned, and that callables see.
        notes: What was done to the arguments, for the warnings of the result.
        classes: Of the classifier; 0 until it is traced.
        targets: Classes to be reached, [N] int64 or one of `arrays.TARGETS`; None for any wrong class.
        aims: [N] int32, those of one run of an attack that is `targeted.Targeted`.
        processes: Of how many processes began the evaluation that goes on; None if it begins.
        decisions: Draws that judge each image of a random classifier; None for any other.
        eot_auto: Whether `eot_samples` is yet to be measured; it is 1 until then.
        eight_bit: Whether what an attack returns is rounded to bytes before it is judged.
        radii: Of a sweep, the smaller radii that were done before. Radius and step size are then arguments of
            the compiled programs, so that all radii share them; None where they are constants of these.
        takes: For each row of the result which of steps, step_size, restarts and eot_samples it takes.
    """

    names: tuple[str, ...]
    custom: dict[str, Attack | AttackFunction]
    sources: dict[str, Classifier]
    images: Images
    labels: np.ndarray
    indices: np.ndarray
    threat: Threat
    steps: int
    step_size: float
    restarts: int
    eot_samples: int
    seed: int
    individual: bool
    keep: bool
    precision: str | None
    chunk: int
    devices: list[jax.Device]
    processes: int | None
    takes: Takes
    layout: str = 'nhwc'
    notes: tuple[str, ...] = ()
    classes: int = 0
    targets: np.ndarray | str | None = None
    aims: np.ndarray | None = None
    decisions: int | None = None
    eot_auto: bool = False
    eight_bit: bool = False
    radii: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        images: Any,
        labels: Any,
        *,
        attacks: Any = ('pgd',),
        eps: float = 8 / 255,
        norm: str = 'linf',
        steps: int | None = None,
        step_size: float | None = None,
        restarts: int | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        indices: Any = None,
        eot_samples: int | str | None = None,
        individual: bool = False,
        transfer_from: Any = None,
        search_precision: str | None = None,
        state_path: str | os.PathLike | None = None,
        return_images: bool = False,
        devices: Sequence[jax.Device] | None = None,
        layout: str | None = None,
        scale: int | None = None,
        targets: Any = None,
        decisions: int | None = None,
        randomised: bool = False,
        eight_bit: bool = False,
    ) -> 'Request':
        """Checks the arguments of `evaluate` that have these names; `randomised` says that the classifier is.

        Raises:
            InputError: One of them is wrong.
        """
        names, custom = parse_attacks(attacks, norm)
        layout = layout or told_from(shape_of(images))
        sources = parse_sources(transfer_from, layout)
        images, notes = check_images(images, layout, scale)
        labels = check_labels(labels, len(images))
        indices = check_indices(indices, len(images))
        targets = check_targets(targets, labels)
        if targets is not None and randomised:
            raise InputError(
                'targets are given, and the classifier is Randomised: which share of draws must be of the '
                'target is not defined. Leave targets out'
            )
        if targets is not None and sources:
            raise InputError('targets are given beside transfer_from, which has none: leave one of them out')
        if eight_bit:
            rounding.check(images, indices)
        eps = check_number('eps', eps)
        if eps == 0:
            raise InputError(
                'eps=0 is not in (0, 1]: the accuracy without an attack is '
                "accuracy['clean'] of any evaluation"
            )
        threat = Threat(norm, eps)
        threat.check(images.shape[1:])
        takes = takes_of(names, custom, sources, randomised)
        counts: dict[str, Any] = {'steps': steps, 'restarts': restarts, 'eot_samples': eot_samples}
        if not randomised:
            check_not_random(decisions, eot_samples)
        check_settings(
            takes,
            **counts,
            decisions=decisions,
            step_size=step_size,
            seed=seed,
            batch_size=batch_size,
            search_precision=search_precision,
            individual=individual,
        )
        counts['eot_samples'] = None if eot_samples == AUTO else eot_samples
        chosen: dict[str, Any] = {
            name: DEFAULTS[name] if value is None else value for name, value in counts.items()
        }
        step_size = threat.eps / 4 if step_size is None else check_number('step_size', step_size)
        for name in (name for name in names if name not in custom):
            check_step_size(named(name).settings.get('step_size', step_size), norm, images.shape[1:])
        devices = check_devices(devices)
        before = begun(state_path)
        shares = before.get('processes', 1)
        return cls(
            names=names,
            custom=custom,
            sources=sources,
            images=images,
            labels=labels,
            indices=indices,
            threat=threat,
            takes=takes,
            **chosen,
            seed=seed,
            step_size=check_step_size(step_size, norm, images.shape[1:]),
            individual=individual,
            keep=return_images,
            chunk=images_at_once(
                batch_size, len(images), devices, before.get('images at once'), images.shape[1:]
            ),
            precision=check_precision(search_precision, images.dtype, devices[0].platform),
            devices=devices,
            processes=shares if before and type(shares) is int and shares > 0 else None,
            layout=layout,
            notes=notes,
            targets=targets,
            decisions=(decisions or DECISIONS) if randomised else None,
            eot_auto=eot_samples == AUTO,
            eight_bit=bool(eight_bit),
        )

    @property
    def built_in(self) -> tuple[Any, ...]:
        """What compiled programs have of ball and step size as constants: both, or the norm alone."""
        return (self.threat, self.step_size) if self.radii is None else (self.threat.norm,)

    @property
    def handed(self) -> tuple[Any, ...]:
        """The ball and the step size as arguments of compiled programs; () where they are constants."""
        if self.radii is None:
            return ()
        number = self.images.dtype.type
        eps: Any = number(self.threat.eps)
        return Threat(self.threat.norm, eps), number(self.step_size)

    def as_given(self, images: np.ndarray) -> np.ndarray:
        """Images [M, H, W, C] in the layout that the caller's have."""
        return images if self.layout == 'nhwc' else np.moveaxis(images, 3, 1)


def default_attacks(classifier: Any) -> str:
    """The protocol that is usual for a classifier: AutoAttack, in its form for random ones, or Square."""
    if isinstance(classifier, BlackBox):
        return 'square'
    return 'autoattack-rand' if isinstance(classifier, Randomised) else 'autoattack'
