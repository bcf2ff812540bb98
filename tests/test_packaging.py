"""The installed package asks for what requirements.txt asks for."""

import pathlib
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Only preparing a TFDS data set imports TensorFlow, and pytest is for the tests.
REQUIREMENTS_ONLY = ('tensorflow-cpu', 'tensorflow>', 'pytest')


def requirements(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-r'))]


def project() -> dict:
    return tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def test_dependencies_are_those_of_requirements_txt():
    wanted = [line for line in requirements('requirements.txt') if not line.startswith(REQUIREMENTS_ONLY)]
    assert project()['dependencies'] == wanted


def test_every_requirement_has_a_lower_and_an_upper_bound():
    lines = requirements('requirements.txt') + requirements('requirements-dev.txt')
    for line in lines:
        requirement = line.split(';')[0]
        assert '==' in requirement or ('>=' in requirement and ',<' in requirement), line


def test_the_licence_file_is_the_named_one():
    text = (ROOT / 'LICENSE').read_text()
    assert project()['license'] == 'Apache-2.0'
    assert 'Apache License' in text and 'Version 2.0, January 2004' in text
