"""Keeps the data tests away from the home folder, and brings about what the system may refuse."""

import os
import signal

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Default folders and caches go to a temporary folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return folder


@pytest.fixture
def no_waiting():
    """Fail a test that waits for a pipe instead of letting it hang."""

    def stop(number, frame):
        raise AssertionError("it waited for what never comes")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program of this name in the path, and the file that it leaves when it is called."""
    called = tmp_path / "called"
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {called}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return called
