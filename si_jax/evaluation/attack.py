"""`attack`: adversarial images in one line."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from si_jax.errors import InputError
from si_jax.evaluation.evaluate import evaluate
from si_jax.evaluation.settings import parse_attacks


def attack(
    model: Any,
    images: Any,
    labels: Any,
    name: Any,
    *,
    eps: float,
    norm: str = 'linf',
    seed: int = 0,
    steps: int | None = None,
    step_size: float | None = None,
    restarts: int | None = None,
    eot_samples: int | None = None,
    batch_size: int | None = None,
    indices: Any = None,
    gradient_of: Any = None,
    search_precision: str | None = None,
    layout: str | None = None,
    scale: int | None = None,
    targets: Any = None,
    decisions: int | None = None,
    eight_bit: bool = False,
    devices: Any = None,
    progress: bool | None = None,
) -> Any:
    """Adversarial images for a classifier.

        adversarial = si_jax.attack(model, images, labels, 'apgd-ce', eps=8 / 255)

    It is one attack of `evaluate`, with all of its checks: an image that is returned lies in the ball around
    its original and in [0, 1]. Attacks of the PGD family return the final image of the first restart that
    fooled the classifier, else of the first restart. The others attack what the classifier gets right, and
    return the original of an image that they could not break.

    Args:
        model: As the `classifier` of `evaluate`; so are all arguments that are not listed here.
        images: [N, H, W, C] in [0, 1], of NumPy, JAX or PyTorch.
        labels: [N], integer, the classes to lead away from, also where `targets` says which to lead to.
        name: The attack, such as 'pgd', 'apgd-ce', 'square' or 'autoattack'; or one of your own.
        eps: Radius of the ball, as a fraction of the pixel range.

    Returns:
        The adversarial images in the order, layout and kind of array of `images`, in float32 (float64 for
        images in float64).

    Raises:
        InputError: More than one attack is named, or as `evaluate`.
        AssertionError: An attack of this library left its threat model.

    Warns:
        UserWarning: What `evaluate` would put among a result's warnings, such as gradients of zero.
    """
    names, _ = parse_attacks(name, norm)
    if len(names) > 1:
        raise InputError(
            f'{", ".join(names)} are {len(names)} attacks: give one, or call evaluate for several'
        )
    result = evaluate(
        model,
        images,
        labels,
        attacks=name,
        eps=eps,
        norm=norm,
        seed=seed,
        steps=steps,
        step_size=step_size,
        restarts=restarts,
        eot_samples=eot_samples,
        batch_size=batch_size,
        indices=indices,
        gradient_of=gradient_of,
        search_precision=search_precision,
        layout=layout,
        scale=scale,
        targets=targets,
        decisions=decisions,
        eight_bit=eight_bit,
        devices=devices,
        progress=progress,
        return_images=True,
    )
    for words in result.warnings:
        warnings.warn(words, stacklevel=2)
    assert result.images is not None
    return _as_given(result.images[names[0]], images)


def _as_given(found: np.ndarray, images: Any) -> Any:
    """The array in the kind that `images` has, on its device."""
    if hasattr(images, 'detach'):  # of PyTorch
        import torch

        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        return torch.as_tensor(found, dtype=dtype, device=images.device)
    if isinstance(images, jax.Array):
        return jnp.asarray(found)
    return found.astype(np.float64) if getattr(images, 'dtype', None) == np.float64 else found
