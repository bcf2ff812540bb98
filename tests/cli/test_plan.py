"""The planner: formulas by hand, what it refuses, and the command itself; chips and utilisation."""

from types import SimpleNamespace

import jax
import pytest

from si_jax.cli import plan
from si_jax.cost import chips, mfu, planning
from si_jax.cost.mfu import Meter
from si_jax.errors import InputError
from si_jax.training import recipes, timing

CONFIG = '--config=configs/tradessi_cifar10.py'


def run(**fields):
    config = recipes.paper('trades', si=True, dataset='cifar10', arch='resnet18')
    config.update_from_flattened_dict(fields)
    return planning.describe(config)


def test_a_step_by_hand():
    """TRADES-SI, ResNet-18: 26 F of 1.111 GFLOP; 11.17M parameters; 80 small all-reduces."""
    one = run(batch_size=1024, **{'model.dtype': 'bfloat16'})
    machine = planning.accelerator('h100', 'bfloat16', 0.4)
    step = planning.step(one, machine, 8)
    assert step.attack == pytest.approx(128 * 20 * 1.1108e9 / (0.4 * 989e12), rel=1e-3)
    assert step.update == pytest.approx(step.attack * 6 / 20)
    assert step.gradients == pytest.approx(4 * 11.174e6 * 2 * 7 / 8 / 450e9, rel=1e-3)
    assert one.norm_reductions == 80 and step.norms == pytest.approx(80 * 15e-6)
    assert planning.seconds(one, step) == pytest.approx(120 * 48 * step.total)  # 49,000 images
    assert planning.step(one, machine, 1).communication == 0
    assert run(**{'model.sync_bn': False}).norm_reductions == 0
    # The limit lies above the FLOPs alone, and under twice that: ResNet-18 is bound by memory in places.
    flops = 120 * 49_000 * 26 * 1.1108e9 / 989e12 / 8
    assert flops < planning.limit(one, machine.chip, 8) < 2 * flops


def test_memory_by_hand():
    one = run(batch_size=256)
    need = planning.memory(one, planning.accelerator('a100', 'float32'), 2)
    assert need.state == pytest.approx(16 * 11.174e6, rel=1e-3)
    assert need.data == 49_000 * 3072
    assert need.activations == pytest.approx(128 * 0.6144e6 * 4 * 2 * 3.7)
    half = planning.memory(run(**{'model.dtype': 'bfloat16'}), planning.accelerator('a100', 'bfloat16'), 1)
    assert half.activations == pytest.approx(need.activations / 2)


def test_averages_mixtures_and_ramps_by_hand():
    before = run()
    machine = planning.accelerator('a100', 'float32')
    # Each image in four mixtures; 2, 3, 4 and 5 steps of an attack, 3.5 in the mean, where there were 10.
    grown = {'attack.steps': 5, 'ramp.steps': (0.4, 1.0), 'data.cutmix': 4}
    one = run(**grown, **{'average.kind': 'ema', 'average.batch_stats': 'recompute'})
    assert one.passes.attack == pytest.approx(4 * 2 * 3.5) and before.passes.attack == 20
    # A forward pass of each image at the end of the epoch, beside the 6 F of the update.
    assert one.passes.update == 4 * (6 + 1) and run(**{'average.kind': 'swa'}).passes == before.passes
    needs = [planning.memory(each, machine, 1) for each in (before, one)]
    assert needs[1].activations == 4 * needs[0].activations and needs[1].data == needs[0].data
    assert needs[1].state - needs[0].state == pytest.approx(4 * 11.174e6, rel=1e-3)
    # The same in steps: 120 epochs and 8 changes of the steps of an attack in each.
    assert run(**grown, **{'ramp.every': 'step'}).passes.attack == pytest.approx(28, rel=1e-2)


def test_the_largest_batch_fits_and_the_next_does_not():
    machine = planning.accelerator('v5e', 'float32')
    largest = planning.largest_batch(run(), machine, 4)
    planning.check_fits(run(batch_size=largest), machine, 4)
    with pytest.raises(InputError, match=f'largest batch that fits is --config.batch_size={largest}'):
        planning.check_fits(run(batch_size=largest + 4), machine, 4)


@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        ([CONFIG, '--chip=h10'], ["unknown chip 'h10'", 'h100']),
        ([CONFIG, '--chip=h100', '--devices=48'], ['48 devices', '96', '144']),
        ([CONFIG, '--chip=h100', '--devices=0'], ['devices=0']),
        ([CONFIG, '--chip=h100', '--mfu=31'], ['mfu=31', '(0, 1]']),
        ([CONFIG, '--chip=v5e', '--config.batch_size=65536'], ['GB', 'largest batch that fits']),
        ([CONFIG, '--chip=h100', '--config.epoch=3'], ['epoch', 'epochs']),
        ([CONFIG, '--chip=h100', '--calibrate'], ['either --chip']),
        ([CONFIG], ['either --chip']),
        (['--chip=h100'], ['--config=']),
        (['--config=configs/trade_cifar10.py', '--chip=h100'], ['configs/trades_cifar10.py']),
        ([CONFIG, '--chips=h100'], ['chips']),
    ],
)
def test_bad_input_is_one_line(flags, words, capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', ['plan', *flags])  # where fields of the config are looked for
    assert plan.main(['plan', *flags]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and all(word in err for word in words), err


def test_the_command_prints_time_memory_communication_and_shape(capsys):
    assert plan.main(['plan', CONFIG, '--chip=v5e', '--devices=64']) == 0
    out = capsys.readouterr().out
    for word in ('26 F an image', 'images/s', 'at least', 'memory', 'communication', 'attack', 'efficiency'):
        assert word in out
    assert '2 images a device' in out and len(out.split('device-hours\n')[1].splitlines()) == 8


def test_timing_measures_two_rates_of_this_machine():
    config = recipes.paper('trades', si=True, dataset='digits', arch='small_cnn')
    config.batch_size, config.model.width = 8, 4
    machine = timing.measure_machine(config, turns=1)
    assert machine.attack > 0 and machine.update > 0 and machine.link is None and not machine.accelerator
    one = planning.describe(config)
    step = planning.step(one, machine, 8)
    assert step.communication == 0 and step.total > 0
    text = plan.report('digits', one, machine, 8)
    assert 'in attack steps' in text and 'efficiency' not in text


def test_devices_are_found_by_what_jax_calls_them():
    names = {'NVIDIA H100 80GB HBM3': 'h100', 'NVIDIA A100-SXM4-80GB': 'a100', 'TPU v5 lite': 'v5e'}
    names |= {'TPU v5': 'v5p', 'TPU v6 lite': 'v6e'}
    for kind, name in names.items():
        assert chips.of_device(SimpleNamespace(device_kind=kind)) == chips.CHIPS[name], kind
    assert chips.of_device(jax.devices()[0]) is None


def test_utilisation_in_words(monkeypatch):
    meter = Meter(flops=1e9, precision='bfloat16', devices=2)
    assert meter.describe(float('nan')) == ''
    assert meter.describe(50.0) == '50 GFLOP/s'
    monkeypatch.setattr(mfu.chips, 'of_device', lambda: chips.CHIPS['v5e'])
    assert meter.describe(197e3) == '197 TFLOP/s, MFU 50.0 % of 2 TPU v5e'
    assert 'no published peak' in meter._replace(precision='float32').describe(1e6)


def test_a_helper_that_is_trained_first_is_named_with_its_time(capsys, monkeypatch):
    shown = ['plan', '--config=configs/hat_cifar10.py:small_cnn', '--chip=h100']
    assert plan.main(shown) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    config = recipes.recipe('standard_cifar10', 'small_cnn')
    one = planning.describe(config)
    assert one.passes == (0, 3) and one.epochs == 50
    taken = planning.seconds(one, planning.step(one, planning.accelerator('h100', 'float32'), 1))
    assert line.startswith(f'helper   {taken:.1f} s of training more: none is given')
    monkeypatch.setattr('sys.argv', shown := [*shown, '--config.defense.helper=runs/helper'])
    assert plan.main(shown) == 0
    assert 'helper   ' not in capsys.readouterr().out
