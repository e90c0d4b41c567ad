"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from makemore_pl.files import write_atomically


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
