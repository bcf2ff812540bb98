"""Classifiers that are no functions of JAX: PyTorch's modules as they are, and black boxes."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from si_jax import BlackBox, InputError, evaluate
from si_jax.evaluation.classifier import classifier_of
from si_jax.interop.loading import load_torch_module
from tests.helpers.problems import images_and_labels, net
from tests.helpers.searches import quicken

NET = net()
IMAGES, LABELS = images_and_labels(12, NET)
ONE = {'eps': 0.06, 'devices': jax.local_devices()[:1]}


def predict(images):
    """A function of NumPy that refuses JAX's arrays, as another framework would."""
    assert type(images) is np.ndarray
    z = np.maximum((images - 0.5).reshape(len(images), -1) @ np.asarray(NET.v), 0)
    return z @ np.asarray(NET.w) + np.asarray(NET.b)


def test_a_black_box_under_attacks_without_gradients(monkeypatch):
    quicken(monkeypatch)
    found = evaluate(BlackBox(predict, 4), IMAGES, LABELS, attacks='square,rays,spsa', **ONE)
    assert_array_equal(found.correct['clean'], np.argmax(predict(IMAGES), axis=1) == LABELS)
    assert found.accuracy['worst_case'] < found.accuracy['clean'] and found.warnings == []


def test_a_black_box_with_the_gradient_of_another_network_in_another_layout_on_several_devices():
    settings = {'attacks': 'pgd', 'eps': 0.06, 'steps': 2, 'devices': jax.local_devices()[:2]}
    box = BlackBox(lambda images: predict(np.moveaxis(images, 1, 3)), 4)
    first = np.moveaxis(IMAGES, 3, 1)
    inside = {'gradient_of': lambda x: NET(jnp.moveaxis(x, 1, 3)), 'layout': 'nchw'}
    found = evaluate(box, first, LABELS, **inside, **settings)
    assert_array_equal(found.correct['pgd'], evaluate(NET, IMAGES, LABELS, **settings).correct['pgd'])


@pytest.mark.parametrize('attacks', ['pgd', 'sipgd', 'square,apgd-t', 'autoattack'])
@pytest.mark.parametrize(
    'classifier',
    [
        BlackBox(predict, 4),
        lambda x: jax.pure_callback(predict, jax.ShapeDtypeStruct((len(x), 4), x.dtype), x),
    ],
)
def test_attacks_with_gradients_are_refused_in_one_sentence(classifier, attacks):
    match = 'follows the gradient of the classifier, which has none.*use square, rays or spsa'
    with pytest.raises(InputError, match=match):
        evaluate(classifier, IMAGES, LABELS, attacks=attacks, **ONE)


def test_black_boxes_that_are_unfit():
    for function, classes, match in (
        (lambda x: predict(x).argmax(axis=1), 4, r'returned shape \(16,\) for 16 images'),
        (lambda x: predict(x[:, :3]), 4, r'cannot take images of shape \[16, 6, 6, 2\] \(ValueError: '),
        (lambda x: predict(x - x.mean(axis=0)), 4, 'with the other images of its batch'),
        (predict, 5, r'logits \[B, num_classes\] = \(16, 5\)'),
    ):
        with pytest.raises(InputError, match=match):
            evaluate(BlackBox(function, classes), IMAGES, LABELS, attacks='square', **ONE)
    with pytest.raises(InputError, match='num_classes=1 must be an integer of at least 2'):
        BlackBox(predict, 1)
    with pytest.raises(InputError, match='holds a function of images, not str'):
        BlackBox('predict', 4)


def test_torch_is_not_imported_unless_the_user_did():
    code = (
        'import sys, si_jax\n'
        'from si_jax.evaluation.classifier import classifier_of\n'
        'classifier_of(lambda x: x)\n'
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, '-c', code], check=True, timeout=300)


@pytest.fixture(scope='module')
def module():
    torch = pytest.importorskip('torch', reason='the module is of PyTorch')
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Dropout(),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 4),
    )  # in training mode


PHOTOS = np.random.default_rng(0).uniform(size=(12, 6, 6, 3)).astype(np.float32)


def test_a_torch_module_is_evaluated_as_it_is(module):
    import torch

    first = torch.from_numpy(PHOTOS).permute(0, 3, 1, 2).requires_grad_()
    mode = module.training
    labels = module.eval()(first).argmax(dim=1)
    module.train(mode)
    settings = {'attacks': 'sipgd', 'steps': 2, 'return_images': True, **ONE}
    of_torch = evaluate(module, first, labels, **settings)
    assert module.training == mode and of_torch.accuracy['clean'] == 1.0
    assert of_torch.images['sipgd'].shape == (12, 3, 6, 6)
    of_numpy = evaluate(module, PHOTOS, labels.numpy(), **settings)
    told = evaluate(module, first.detach().numpy(), labels, layout='nchw', **settings)
    for other in (of_numpy, told):
        for name in of_torch.correct:
            assert_array_equal(other.correct[name], of_torch.correct[name])
    assert_array_equal(np.moveaxis(of_torch.images['sipgd'], 1, 3), of_numpy.images['sipgd'])


def test_tensors_for_a_function_of_jax():
    torch = pytest.importorskip('torch', reason='the tensors are of PyTorch')
    found = evaluate(NET, torch.from_numpy(IMAGES), torch.from_numpy(LABELS), attacks='fgsm', **ONE)
    assert_array_equal(
        found.correct['fgsm'], evaluate(NET, IMAGES, LABELS, attacks='fgsm', **ONE).correct['fgsm']
    )


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_modules_in_other_precisions_are_refused(module):
    import copy

    import torch

    for half, name in (
        (copy.deepcopy(module).half(), 'float16'),
        (copy.deepcopy(module).bfloat16(), 'bfloat16'),
    ):
        with pytest.raises(InputError, match=f'computes in {name} .*give module.float()'):
            evaluate(half, PHOTOS, LABELS, attacks='pgd', **ONE)
        with pytest.raises(InputError, match=f'computes in {name} '):  # as --model does
            load_torch_module(half, PHOTOS.shape[1:])
    assert classifier_of(half.float()).function(PHOTOS[:2], None).logits.shape == (2, 4)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(module), {torch.nn.Linear})
    with pytest.raises(InputError, match='the module is quantised .*floating module'):
        evaluate(quantised, PHOTOS, LABELS, attacks='pgd', **ONE)
    box = BlackBox(lambda x: quantised.eval()(torch.from_numpy(np.moveaxis(x, 3, 1).copy())), 4)
    assert classifier_of(box).function(jnp.asarray(PHOTOS), None).logits.shape == (12, 4)


def test_a_class_is_no_module():
    torch = pytest.importorskip('torch', reason='the class is of PyTorch')
    with pytest.raises(InputError, match='not Linear'):
        evaluate(torch.nn.Linear, PHOTOS, LABELS, attacks='pgd', **ONE)
