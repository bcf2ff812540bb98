"""The files of launch/ as users run them, with stand-ins for the tools that a cluster has."""

import json
import subprocess

import pytest
import yaml

from si_jax.cli import launch
from tests.helpers import multiprocess

ROOT = multiprocess.ROOT
GCLOUD = """#!/usr/bin/env bash
for word in "$@"; do [[ $word == --command=* ]] && echo "${word#--command=}"; done
exit 0
"""


def bash(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_pod_script_runs_the_same_command_on_every_host(tmp_path):
    environment = multiprocess.with_tools(tmp_path, gcloud=GCLOUD)
    environment |= {'NAME': 'pod', 'ZONE': 'zone', 'TYPE': 'v4-32', 'PYTHON': 'python'}
    environment |= {'SOURCE': str(ROOT), 'WORKDIR': str(tmp_path / 'run')}
    command = bash(environment, 'launch/tpu_pod.sh', 'train', '--config.batch_size=16', '--dry_run').strip()
    assert command.startswith(f'cd {ROOT} && python train.py') and '\n' not in command
    out = bash(environment, 'bash', '-c', command)
    assert 'processes: 1, devices of each: 2 (cpu), batch: 16, images a device: 8, ' in out
    assert "-m pip install -r requirements.txt 'jax[tpu]'" in bash(environment, 'launch/tpu_pod.sh', 'create')
    bash(environment, 'launch/tpu_pod.sh', 'delete')


def test_the_jobset_tells_each_pod_which_it_is_and_where_the_first_one_is(tmp_path):
    jobset = yaml.safe_load((ROOT / 'launch/jobset.yaml').read_text())
    (job,) = jobset['spec']['replicatedJobs']
    pods = job['template']['spec']
    (container,) = pods['template']['spec']['containers']
    variables = {one['name']: one['value'] for one in container['env']}
    assert pods['parallelism'] == pods['completions'] == int(variables['NODES'])
    name = jobset['metadata']['name']
    assert variables['COORDINATOR'].split(':') == [f'{name}-{job["name"]}-0-0.{name}', '8476']
    assert container['ports'] == [{'containerPort': 8476}]
    *shell, command = container['command']
    # The config of this test in place of one whose data is not here, and this machine in place of pod 0.
    for old, new in (('configs/tradessi_cifar10.py', 'configs/quickstart.py'), ('/shared/data', "''")):
        assert command.count(old) == 1
        command = command.replace(old, new)
    environment = multiprocess.with_tools(tmp_path) | variables | {'JOB_COMPLETION_INDEX': '0', 'NODES': '1'}
    environment['COORDINATOR'] = f'localhost:{launch.free_port()}'
    out = bash(environment, *shell, f'{command} --dry_run')
    assert 'processes: 1, devices of each: 2 (cpu), batch: 32, images a device: 16, ' in out


def test_the_table_of_host_times_is_what_was_measured():
    rows = json.loads((ROOT / 'results/host_time.json').read_text())['rows']
    assert [row['devices'] for row in rows] == [1, 2, 4, 8]
    page = (ROOT / 'docs/pods.md').read_text()
    for row in rows:
        cells = [
            f'{row[key]["median"]:.{n}f} ({row[key]["min"]:.{n}f}-{row[key]["max"]:.{n}f})'
            for key, n in (('own_ms', 3), ('dispatch_ms', 2))
        ]
        # Of this program's own there is next to nothing, however many devices.
        assert row['own_ms']['median'] < 0.1
        assert f'| {row["devices"]} | {" | ".join(cells)} |' in page


@pytest.mark.parametrize('flags', [['--processes=0', 'x.py'], ['--cpu_devices=0', 'x.py'], []])
def test_the_local_launcher_refuses_what_makes_no_sense(flags, capsys):
    with pytest.raises(SystemExit) as error:
        launch.main(flags)
    assert error.value.code == 2 and 'usage' in capsys.readouterr().err
