"""The PGD family on a published network, against the results of PyTorch code on the same images.

Both sides draw five random starts, so each mean has a standard error of about 0.1 points. Two more networks
are measured by the command, from their PyTorch modules and with one start, in tests/interop/test_evaluate.py;
`make conformance` draws five for all.
"""

import json

import numpy as np
import pytest

from tests.helpers import reference_networks

NAME = 'cnn_a_adv4'
FAMILY = ('pgd', 'cw', 'dlr', 'sipgd')


def test_accuracies_are_those_of_the_reference(shared, tmp_path):
    reference = json.loads((shared / 'reference' / f'{NAME}.json').read_text())
    result, _ = reference_networks.run(
        shared, NAME, 1000, tmp_path / 'result.json', attacks=','.join(FAMILY), restarts=5, seed=1
    )
    assert result['clean']['accuracy'] == pytest.approx(reference['clean'], abs=1e-6)
    # Why SI-PGD is the weakest there.
    assert result['si']['agreement'] == pytest.approx(0.5, abs=0.05)
    assert result['si']['scaled_gap'] == pytest.approx(0.2, abs=0.05)
    assert result['si']['weight_norm_spread'] == pytest.approx(0.025, abs=0.002)
    assert any('sipgd may be weak' in words for words in result['warnings'])
    for attack in FAMILY:
        ours, theirs = result['attacks'][attack], reference[attack]
        assert np.mean(ours['runs']) == pytest.approx(theirs['mean'], abs=0.003 + 1e-6), attack
        assert ours['accuracy'] == pytest.approx(theirs['worst5'], abs=0.005 + 1e-6), attack
