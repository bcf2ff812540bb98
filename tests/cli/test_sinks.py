"""evaluate.py hands its accuracies to sinks, and the step of a checkpoint with them."""

import json

from si_jax.cli import evaluate

FLAGS = ['--dataset=digits', '--eps=0.1', '--num_examples=6', '--attacks=fgsm']
NET = """
def build():
    return lambda images: images.mean(axis=1)[:, [0, 1, 2, 3, 4, 5, 6, 7, 0, 1], 0]
"""
SINK = """
import json

class Lines:
    def __init__(self, start):
        self.path = start.folder.with_name('lines.json')
        self.about = [start.name, start.config['dataset'], start.config['attacks']]

    def write(self, step, scalars):
        self.path.write_text(json.dumps([step, scalars, self.about]))

    def close(self):
        self.path.with_name('closed').touch()
"""


def test_the_accuracies_of_an_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'net.py').write_text(NET)
    (tmp_path / 'mine.py').write_text(SINK)
    flags = ['--model=net.py:build', *FLAGS, '--output=out/a.json', '--sinks=tensorboard,mine.py:Lines']
    assert evaluate.main(flags) == 0
    about = json.loads((tmp_path / 'out' / 'a.json').read_text())
    step, scalars, described = json.loads((tmp_path / 'out' / 'lines.json').read_text())
    assert step == 0 and described == ['a', 'digits', ['fgsm']] and (tmp_path / 'out' / 'closed').exists()
    assert scalars == {
        'clean/accuracy': about['clean']['accuracy'],
        'fgsm/accuracy': about['attacks']['fgsm']['accuracy'],
        'worst_case/accuracy': about['worst_case']['accuracy'],
    }
    assert list((tmp_path / 'out' / 'a' / 'tensorboard').iterdir())
    capsys.readouterr()
    assert evaluate.main([*flags[:-1], '--sinks=none']) == 2
    assert "unknown sink 'none'" in capsys.readouterr().err
    assert evaluate.main(['--audit', '--model=net.py:build', '--sinks=tensorboard']) == 2
    assert '--sinks has no meaning with --audit' in capsys.readouterr().err
