"""Logits and input gradients of PyTorch modules and of classifiers made from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

# Each program runs once: most of the time would go into optimising it.
COMPILE = {'xla_backend_optimization_level': 0}


def random_images(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(dtype)


def torch_logits_and_gradient(module, images, weights):
    """Logits [B, K] and the gradient [B, H, W, C] of their sum with the given weights [B, K]."""
    tensor = torch.tensor(images, requires_grad=True)
    logits = module(tensor.permute(0, 3, 1, 2))
    (logits * torch.tensor(weights, dtype=logits.dtype)).sum().backward()
    return logits.detach().numpy(), tensor.grad.numpy()


def assert_parity(classifier, module, images, tolerance):
    """Logits and input gradients agree to `tolerance` times the largest; returns the outputs."""
    weights = np.random.default_rng(1).normal(size=(len(images), 10))

    @functools.partial(jax.jit, compiler_options=COMPILE)
    def forward_and_gradient(x):
        def loss(x):
            outputs = classifier(x)
            return jnp.sum(outputs.logits * weights), outputs

        gradient, outputs = jax.grad(loss, has_aux=True)(x)
        return outputs, gradient

    outputs, gradient = forward_and_gradient(jnp.asarray(images))
    expected, expected_gradient = torch_logits_and_gradient(module, images, weights)
    assert outputs.logits.dtype == images.dtype
    np.testing.assert_allclose(outputs.logits, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    scale = np.abs(expected_gradient).max()
    assert scale > 0
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=tolerance * scale)
    return outputs


def offset(outputs):
    """logits - features @ kernel, which is the same for every image if they are a linear layer's."""
    return np.asarray(outputs.logits - outputs.features @ outputs.kernel)
