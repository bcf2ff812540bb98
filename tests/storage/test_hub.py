"""Files of the Hugging Face Hub, from a server on this machine: what is fetched, kept, pinned and refused."""

import hashlib
import http.server
import threading

import pytest

from si_jax.errors import InputError
from si_jax.storage import hub

CONTENT = b'weights' * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = 'hf:owner/net@v1.0'


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Files by path, and the paths that were asked for."""
    files, asked = {'/owner/net/resolve/v1.0/model.safetensors': CONTENT}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header('Content-Length', str(len(content or b'') + (self.path.endswith('short'))))
            self.end_headers()
            self.wfile.write(content or b'')

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{made.server_port}/')
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
        monkeypatch.setenv('no_proxy', '127.0.0.1')
        yield files, asked
        made.shutdown()


def test_a_file_is_fetched_once_and_pinned_by_its_digest(server):
    files, asked = server
    path = hub.local(NAME)
    assert path.read_bytes() == CONTENT and path.name == 'model.safetensors'
    assert hub.local(f'{NAME}/model.safetensors#sha256={DIGEST}') == path and len(asked) == 1
    # What was fetched first is what is meant, whatever lies there later.
    files[asked[0]] = b'others'
    path.unlink()
    with pytest.raises(InputError, match=f'should have {DIGEST}'):
        hub.local(NAME)
    assert not path.exists() and not list(path.parent.glob('.*'))
    path.write_bytes(b'changed')
    with pytest.raises(InputError, match=f'should have {DIGEST}: .* was changed'):
        hub.local(NAME)
    with pytest.raises(InputError, match='downloaded before has the SHA-256'):
        hub.local(f'{NAME}#sha256={"0" * 64}')


def test_other_bytes_than_those_of_the_name_are_not_kept(server):
    with pytest.raises(InputError, match=f'has the SHA-256 {DIGEST}, and should have {"0" * 64}'):
        hub.local(f'{NAME}#sha256={"0" * 64}')
    assert hub.local(f'{NAME}#sha256={DIGEST}').read_bytes() == CONTENT


def test_a_file_that_is_not_there_or_cut_short(server, monkeypatch):
    files, _ = server
    with pytest.raises(InputError, match='404'):
        hub.local('hf:owner/net@main/folder/weights.npz')
    files['/owner/net/resolve/v1.0/short'] = CONTENT
    with pytest.raises(InputError, match='cannot be downloaded'):
        hub.local(f'{NAME}/short')
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(InputError, match='HF_ENDPOINT'):
        hub.local('hf:owner/other@main')


@pytest.mark.parametrize(
    'name',
    ['hf:owner/net', 'hf:net@main', 'hf:owner/net@main/../x', 'hf:../net@main', 'hf:owner/net@..',
     'hf:owner/net@main#sha256=12', 'hf:owner/net@main/.hidden', 'hf:owner/net@main/'],
)  # fmt: skip
def test_names_that_are_none(name):
    with pytest.raises(InputError, match='is not of the form'):
        hub.local(name)


def test_other_names_are_paths(tmp_path):
    assert hub.local(tmp_path / 'a.npz') == tmp_path / 'a.npz' and not hub.is_address('zoo:net')
