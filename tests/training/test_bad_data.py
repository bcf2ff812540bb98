"""What is wrong with data is said before anything is computed, whether they are resident or streamed."""

import numpy as np
import pytest
from PIL import Image

from si_jax import data
from si_jax.cli import evaluate
from si_jax.errors import InputError
from si_jax.training import recipes
from si_jax.training.setup import setup
from tests.helpers.own_data import OWN, write_folder, write_npz

CAT = 'train/cat/1.png'


def config(name, **changes):
    made = recipes.paper('standard', dataset=name, arch='small_cnn')
    made.update_from_flattened_dict({'data.validation': 0, 'batch_size': 8, 'model.width': 1} | changes)
    return made


def a_folder(change, **changes):
    def make(place):
        change(write_folder(place, sizes=((8, 8),), each=4))
        return config(f'folder:{place}', **changes)

    return make


def an_npz(change, **changes):
    def make(place):
        change(write_npz(place, shape=(8, 8, 1)))
        return config(f'npz:{place}', **changes)

    return make


def registered(old, new):
    def make(place):
        place.mkdir()
        (place / 'own.py').write_text(OWN.replace(old, new))
        return config(f'{place / "own.py"}:rings')

    return make


def with_extra(share=0.5, classes=3, side=8):
    def make(place):
        made = an_npz(lambda place: None)(place)
        made.data.update(extra=str(place / 'extra.npz'), extra_share=share)
        images, labels = np.zeros((24, side, side, 1), np.uint8), np.arange(24) % classes
        np.savez(made.data.extra, image=images, label=labels)
        return made

    return make


def image(path, mode, side=8):
    return lambda place: Image.new(mode, (side, side)).save(place / path)


def classes(*names):
    return lambda place: (place / 'classes.txt').write_text('\n'.join(names))


def broken(place):
    for path in (place / CAT, place / 'train' / 'dog' / '2.png'):
        path.write_bytes(path.read_bytes()[:-40])


def more_in_test(place):
    (place / 'test' / 'owl').mkdir()
    image('test/owl/0.png', 'RGB')(place)


def labelled(split, *labels):
    def change(place):
        images = np.zeros((len(labels), 8, 8, 1), np.uint8)
        np.savez(place / f'{split}.npz', images=images, labels=np.array(labels))

    return change


CASES = {
    'sizes': (a_folder(image(CAT, 'RGB', 9)), ['1.png (9 x 9 RGB) is not 8 x 8 RGB', 'preprocessing=Res']),
    'modes': (a_folder(image(CAT, 'L')), ['1.png (8 x 8 L) is not 8 x 8 RGB', 'one size and mode, or']),
    'bits': (
        a_folder(image(CAT, 'I;16'), **{'data.preprocessing': 'Crop8'}),
        ['cat/1.png', 'I;16 has more than 8 bits', 'replace it'],
    ),
    'broken': (a_folder(broken), ['cat/1.png (', 'and 1 more of 12 images cannot be read', 'replace it']),
    'empty': (
        a_folder(lambda place: (place / 'train' / 'owl').mkdir()),
        ['train/owl is a class without an image: add some, or remove the folder'],
    ),
    'in test alone': (a_folder(more_in_test), ['test has owl, which train/ lacks: add it there, or']),
    'no name': (a_folder(classes('cat', 'dog')), ['has newt, which classes.txt does not name: add it']),
    'empty in npz': (an_npz(labelled('train', 0, 2)), ['no training image of class 1: number', 'each with']),
    'in test.npz alone': (an_npz(labelled('test', 3)), ['label 3, which is not in train.npz, from 0 to 2']),
    'no name in npz': (an_npz(classes('a', 'b')), ['label 2, which is not a name in 2 classes: add what']),
    'own empty': (registered('index % 3', 'index % 2'), ["'rings' has no training image of class 2 (three)"]),
    'own without name': (registered('index % 3', 'index % 4'), ['label 3 of image 3 is not in [0, 2]: num']),
    'own type': (registered('return rng', 'return 1. * rng'), ['image 0 of the train', 'not uint8 (28, 28']),
    'extra shape': (with_extra(side=9), ['extra.npz: images have shape (24, 9, 9, 1), not (N, 8, 8, 1)']),
    'extra of more': (with_extra(classes=4), ['extra.npz: label 3 of image 3 is not in [0, 2]: number']),
    'extra of fewer': (with_extra(classes=2), ['images of 2 of the 3 classes', 'none of 2: give a file for']),
    'share': (with_extra(share=1.0), ['data.extra_share=1 is not in [0, 1): 0.7 is 7 of 10 images']),
    'share below': (with_extra(share=-0.5), ['data.extra_share=-0.5 is not in [0, 1)']),
}


@pytest.mark.parametrize('stream', ['never', 'always'])
@pytest.mark.parametrize('case', CASES)
def test_it_is_refused_with_its_remedy(case, stream, tmp_path):
    make, words = CASES[case]
    made = make(tmp_path / 'set')
    made.data.stream = stream
    try:
        with pytest.raises(InputError) as caught:
            setup(made)
    finally:
        data.SOURCES.pop('rings', None)
    assert all(word in str(caught.value) for word in words), caught.value


def test_an_evaluation_names_the_broken_images_that_it_asks_for(tmp_path, capsys):
    write_folder(tmp_path / 'set', sizes=((8, 8),), mode='L', each=4)
    (tmp_path / 'set' / 'test' / 'cat' / '1.png').write_text('no image')
    (tmp_path / 'set' / 'test' / 'newt' / '1.png').write_text('no image')
    (tmp_path / 'list.txt').write_text('cat/0.png\ncat/1.png\nnewt/1.png\n')
    flags = ['--model=zoo:digits-at', f'--dataset=folder:{tmp_path / "set"}', '--attacks=fgsm']
    flags.append(f'--output={tmp_path / "result.json"}')
    assert evaluate.main([*flags, '--num_examples=4']) == 2
    assert 'cat/1.png (' in (said := capsys.readouterr().err) and 'replace it' in said
    assert evaluate.main([*flags, f'--images={tmp_path / "list.txt"}']) == 2
    assert 'cat/1.png (' in (said := capsys.readouterr().err) and 'and 1 more of 3 images' in said
    (tmp_path / 'list.txt').write_text('cat/0.png\ncat/7.png\n')
    assert evaluate.main([*flags, f'--images={tmp_path / "list.txt"}']) == 2
    said = capsys.readouterr().err
    assert '1 of 2 images are not in folder:' in said and ': cat/7.png. Correct the list' in said
