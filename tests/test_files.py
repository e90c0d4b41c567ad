"""Files that are whole or not there."""

import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from makemore_pl.checkpoint import WholeFiles
from makemore_pl.files import append, remove_parts, whole_file, write_atomically
from makemore_pl.stored_files import read_yaml, verify_archive


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, used = tmp_path / "summary.md", []
    monkeypatch.setattr(Path, "replace", lambda temporary, _: used.append(temporary))
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert len(set(used)) == 2
    assert {each.parent for each in used} == {tmp_path}


def test_nothing_else_is_left(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "file", "\ud800")
    write_atomically(tmp_path / "file", b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    with suppress(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_disk_has_all_of_it_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def kind(descriptor: int) -> str:
        return "directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file"

    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(f"sync {kind(fd)}"), sync(fd)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (order.append("rename"), replace(path, to)))
    write_atomically(tmp_path / "file", "text")
    assert order == ["sync file", "rename", "sync directory"]


def test_only_what_a_kill_has_left_is_removed(tmp_path: Path) -> None:
    for name in ("last.ckpt.0123abcd.part", "last.ckpt", "mine.part"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    remove_parts(tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "mine.part"]


@pytest.mark.parametrize("folder", [".hydra", "checkpoints", "figures"])
def test_half_written_files_are_removed_from_every_folder_of_a_run(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "overrides.yaml.2122af92.part").write_text("- seed")
    remove_parts(tmp_path)
    assert not list((tmp_path / folder).iterdir())


def test_what_another_process_is_writing_is_not_removed(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from makemore_pl.files import whole_file\n"
    code += "with whole_file(Path(sys.argv[1])) as file:\n    print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as writer:
        assert writer.stdout
        writer.stdout.readline()
        (part,) = tmp_path.iterdir()
        remove_parts(tmp_path)
        assert list(tmp_path.iterdir()) == [part]
        writer.kill()
    remove_parts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_named_not_the_file_beside_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="/page") as caught:
        write_atomically(tmp_path / "missing" / "page", "text")
    assert caught.value.filename == str(tmp_path / "missing" / "page")


def test_short_writes_are_gone_on_with() -> None:
    """A pipe that does not wait takes a part, as a nearly full disk does."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    content = os.urandom(3 * 2**16)
    with pytest.raises(BlockingIOError):
        append(writer, content)  # the first 64 KiB fit, and the rest is not dropped in silence
    assert os.read(reader, len(content)) == content[: 2**16]
    append(writer, content[:1000])
    assert os.read(reader, 1000) == content[:1000]
    os.close(reader)
    os.close(writer)


def test_a_line_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    append(descriptor, b"first\n")
    with largest_file(20), pytest.raises(OSError, match="File too large"):
        append(descriptor, b"second, which is too long\n")
    append(descriptor, b"third\n")
    os.close(descriptor)
    assert path.read_bytes() == b"first\nthird\n"


@pytest.mark.parametrize("size", [0, 2000, 9000, 20_000])
def test_a_checkpoint_that_finds_no_room_is_the_system_s_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    with largest_file(size), pytest.raises(OSError, match="File too large"):
        WholeFiles().save_checkpoint({str(i): torch.zeros(3000) for i in range(3)}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files of this process can have this many bytes, as if the disk were full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "text", ["{a: &a [*a]}", "a: &a {b: 1}\nc: *a\n", "- 1", "", "a: [", "\0", "[" * 10_000, "? [a]\n: 1\n"]
)
def test_yaml_that_is_no_tree_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml can't be read: it is not YAML of the expected form\.$"):
        read_yaml(path, dict)


def test_a_changed_archive_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights", bytes(1000))
    verify_archive(path)
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="weights"):
        verify_archive(path)
