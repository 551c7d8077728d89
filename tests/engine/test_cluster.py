"""Which Ray cluster is meant where none is named: none that another user of the machine could have put there."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys

import pytest

from distbp.engine.cluster import has_token, meant, protect_token

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
OTHER = 54321
LISTENER = """
import os, socket, sys, time
os.setuid(int(sys.argv[1]))
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def current(monkeypatch, tmp_path):
    """The file that names the Ray that was started last."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_ones_own_is_meant(current, server):
    current.write_text(server)
    assert meant(None) == server


@as_root
def test_a_file_of_another_user_is_not_followed(current, server):
    current.write_text(server)
    os.chown(current, OTHER, OTHER)
    assert meant(None) is None


def test_a_link_or_a_pipe_is_not_followed(current, server, tmp_path):
    (tmp_path / "far").write_text(server)
    current.symlink_to(tmp_path / "far")
    assert meant(None) is None
    current.unlink()
    os.mkfifo(current)
    assert meant(None) is None


@as_root
def test_who_listens_must_be_trusted_as_well(current):
    command = [sys.executable, "-c", LISTENER, str(OTHER)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        current.write_text(f"127.0.0.1:{process.stdout.readline().strip()}")
        assert meant(None) is None
        process.communicate(timeout=30)


@pytest.mark.parametrize("text", ["", "nonsense", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:1", "a:1\nb:2", "\0:1"])
def test_what_names_no_ray_is_passed_over(current, text):
    current.write_text(text)
    assert meant(None) is None


def test_another_host_is_not_asked(current, server, monkeypatch):
    current.write_text(server)
    monkeypatch.setattr("distbp.engine.cluster._is_own", lambda _: False)
    assert meant(None) is None


def test_a_token_that_others_can_read_is_theirs_no_more(monkeypatch, tmp_path):
    token = tmp_path / "auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with pytest.warns(UserWarning, match="other users of this machine could read it"):
        protect_token()
    assert has_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    protect_token()  # has nothing to say any more
    assert has_token()
