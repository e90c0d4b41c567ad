"""Compiled code is kept where no other user can write, and code that was changed is not loaded."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch._inductor
from torch import Tensor

from makemore_pl.stride import compiling, package_cache


def test_the_cache_is_the_user_s_own() -> None:
    code = "from makemore_pl.stride.package_cache import directory; print(directory())"
    home = {"HOME": str(Path.home()), "XDG_CACHE_HOME": "", "TORCHINDUCTOR_CACHE_DIR": ""}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | home, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to(Path.home())
    assert package_cache.why_unsafe(Path(done.stdout.strip())) is None


def test_a_cache_that_others_can_write_to_is_not_used(
    package_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert package_cache.directory() == package_directory
    assert package_directory.stat().st_mode & 0o777 == 0o700
    for part in (package_directory, package_directory.parent):
        mode = part.stat().st_mode
        for written in (0o020, 0o002):
            part.chmod(mode | written)
            assert package_cache.why_unsafe(package_directory) == f"others can write to {part}"
        part.chmod(mode)
    assert package_cache.why_unsafe(package_directory) is None
    package_directory.chmod(0o777)
    with caplog.at_level("WARNING"):
        other = package_cache.directory()
    assert other != package_directory
    assert package_cache.why_unsafe(other) is None
    assert caplog.messages == [
        f"others can write to {package_directory}: what is compiled is kept for this process only."
    ]
    assert package_cache.directory() == other


def test_a_cache_behind_a_link_is_judged_by_where_it_lies(package_directory: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o777)
    elsewhere.chmod(0o777)
    package_directory.parent.mkdir()
    package_directory.symlink_to(elsewhere)
    assert package_cache.why_unsafe(package_directory) == f"others can write to {elsewhere}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_cache_of_another_user_is_not_used(package_directory: Path) -> None:
    package_cache.directory()
    for part in (package_directory, package_directory.parent):
        os.chown(part, 65534, 65534)
        assert package_cache.why_unsafe(package_directory) == f"{part} belongs to another user"
        os.chown(part, 0, 0)
    assert package_cache.why_unsafe(package_directory) is None


def test_a_cache_that_can_not_be_made_is_done_without(
    package_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package_directory.parent.write_text("a file")
    with caplog.at_level("WARNING"):
        assert package_cache.directory() != package_directory
    assert caplog.messages == [
        f"{package_directory} can't be used (Not a directory): what is compiled is kept for this process only."
    ]


def test_a_damaged_package_is_compiled_again(
    package_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def step(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return w + x, 2 * w

    carry, xs = (torch.zeros(()),), (torch.arange(3.0),)

    def total() -> float:
        compiling.forget()  # as in a new process
        caplog.clear()
        (w,), _ = compiling.compiled_scan(compiling.Scan("sum", step, carry, xs, xs))(carry, xs)
        return float(w)

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("makemore_pl")]

    with monkeypatch.context() as without_compiler:
        without_compiler.delattr("torch._inductor.aoti_compile_and_package")
        with pytest.raises(ValueError, match="Compiling the steps failed"):
            total()
    (lock,) = package_directory.glob("*.lock")
    damaged = package_directory / f"{lock.stem}.{hashlib.sha256(b'whole').hexdigest()}.pt2"
    damaged.write_bytes(b"cut short")
    with caplog.at_level("INFO"):
        assert total() == 3
        assert said()[:2] == [
            f"{damaged} is damaged: the steps are compiled again.",
            "Compiling the steps, once for a network of this shape.",
        ]
        (package,) = package_directory.glob("*.pt2")
        assert package.name == f"{lock.stem}.{hashlib.sha256(package.read_bytes()).hexdigest()}.pt2"
        assert total() == 3
        assert said() == [], "neither damaged nor compiled again"
