"""scripts/doctor.py is told to stop: its exit status says by what, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

WAIT = 120
"""Seconds."""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_signal_ends_it_with_its_own_status(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "doctor.py", "+experiment=kaiming", "trainer.max_steps=10000000"]
    running = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        scratch = tmp_path / number.name
        scratch.mkdir()
        environment = {**os.environ, "TMPDIR": str(scratch)}
        running[number] = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    for number, process in running.items():
        deadline = time.monotonic() + WAIT
        while not list((tmp_path / number.name).glob("*/run/diagnostics.jsonl")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
    for number, process in running.items():
        _, told = process.communicate(timeout=WAIT)
        assert process.returncode == 128 + number, told
        assert "stopped" in told
        assert "Traceback" not in told
        assert not list((tmp_path / number.name).glob("*/run")), "the scratch directory is removed"
