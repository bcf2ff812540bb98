"""Every network equals an independent PyTorch definition, in float64, in evaluation and in training mode."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from si_jax import models

torch = pytest.importorskip('torch', reason='the reference networks are written in PyTorch')

from tests.helpers.torch_references import NETWORKS, randomised  # noqa: E402

LEAVES = {
    ('params', 'scale'): 'weight',
    ('params', 'kernel'): 'weight',
    ('params', 'bias'): 'bias',
    ('batch_stats', 'mean'): 'running_mean',
    ('batch_stats', 'var'): 'running_var',
}


def layout(tensor):
    """A torch weight or gradient in Flax's layout: OIHW -> HWIO, [K, F] -> [F, K]."""
    array = tensor.detach().numpy().copy()
    return jnp.asarray(array.transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]))


def as_flax(template, tensor_of):
    """A tree like `template` of the torch tensors that belong to its leaves; all of them must be used."""
    names = {}
    for path in flax.traverse_util.flatten_dict(template):
        module = '.'.join(path[1:-1]).replace('_', '.')
        names[path] = f'{module}.{LEAVES[path[0], path[-1]]}'
    return flax.traverse_util.unflatten_dict({p: layout(tensor_of(n)) for p, n in names.items()}), names


@pytest.mark.parametrize('name', NETWORKS)
def test_network_equals_its_pytorch_definition(name):
    arch, options, reference = NETWORKS[name]
    model = models.create(arch, num_classes=10, normalise='cifar10', **options)
    net = randomised(reference())
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3)))
    state = net.state_dict()
    variables, names = as_flax(template, state.__getitem__)
    unused = {key for key in state if not key.endswith('num_batches_tracked')} - set(names.values())
    assert not unused
    jax.tree.map(lambda value, shape: np.testing.assert_equal(value.shape, shape.shape), variables, template)

    rng = np.random.default_rng(1)
    images, weights = rng.uniform(size=(3, 12, 12, 3)), rng.normal(size=(3, 10))
    mean = torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64)
    std = torch.tensor([0.2471, 0.2435, 0.2616], dtype=torch.float64)

    def forward_and_gradients(train):
        def loss(params, images):
            outputs, updates = model.apply(
                {**variables, 'params': params}, images, train=train, mutable=['batch_stats']
            )
            return jnp.sum(outputs.logits * weights), (outputs, updates)

        gradients, (outputs, updates) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            variables['params'], jnp.asarray(images)
        )
        return outputs, updates, *gradients

    for train in (False, True):
        outputs, updates, parameter_gradient, image_gradient = jax.jit(
            forward_and_gradients, static_argnums=0
        )(train)
        net.train(train)
        net.zero_grad()
        torch_images = torch.tensor(images, requires_grad=True)
        features = net.features(((torch_images - mean) / std).permute(0, 3, 1, 2))
        logits = net.linear(features)
        (logits * torch.tensor(weights)).sum().backward()

        gradients = {name: value.grad for name, value in net.named_parameters()}
        expected, _ = as_flax({'params': template['params']}, gradients.__getitem__)
        jax.tree.map(close, parameter_gradient, expected['params'])
        close(outputs.features, features)
        close(outputs.logits, logits)
        close(outputs.kernel, net.linear.weight.T)
        close(image_gradient, torch_images.grad)
        if 'batch_stats' in template:
            expected, _ = as_flax({'batch_stats': template['batch_stats']}, net.state_dict().__getitem__)
            jax.tree.map(close, updates['batch_stats'], expected['batch_stats'])
            if not train:
                jax.tree.map(np.testing.assert_array_equal, updates['batch_stats'], variables['batch_stats'])


def close(value, expected):
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else expected
    assert value.dtype == np.float64
    np.testing.assert_allclose(
        value, expected, rtol=1e-9, atol=1e-9 * max(1.0, float(np.abs(expected).max()))
    )
