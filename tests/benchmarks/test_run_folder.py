"""Folders of results: numbered, never overwritten."""

from pathlib import Path

import pytest

from benchmarks.run_folder import append_run, new_folder


def test_folders_are_numbered(tmp_path):
    names = [new_folder(tmp_path / "results" / "x").name for _ in range(3)]
    assert names == ["x", "x-2", "x-3"]


def test_the_current_folder_is_numbered_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = new_folder(Path("."))
    assert folder == tmp_path.with_name(f"{tmp_path.name}-2")
    folder.rmdir()


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError):
        new_folder(tmp_path / "file" / "x")
    assert new_folder(tmp_path / "file").name == "file-2"
    assert (tmp_path / "file").read_text() == "mine"


def test_a_broken_link_in_the_way_is_an_error(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError):
        new_folder(tmp_path / "link" / "x")


def test_a_number_that_json_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError):
        append_run(tmp_path, {"score": float("nan")})
