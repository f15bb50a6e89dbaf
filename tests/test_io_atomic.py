"""Outputs are whole or not there, and refused before the work."""

import errno
import os

import pytest

from smlm_bridge.errors import InputRejected, SmlmError
from smlm_bridge.io.atomic import atomic_output, check_output


def test_success_replaces_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.psf.h5"
    target.write_text("old")
    with atomic_output(target, overwrite=True) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("a.psf.h5")
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.psf.h5"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_failure_leaves_the_folder_as_it_was(tmp_path, error):
    def work():
        with atomic_output(tmp_path / "a.csv") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        work()
    assert os.listdir(tmp_path) == []


def test_existing_output_is_refused_before_the_work(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    with pytest.raises(InputRejected, match="--overwrite"), atomic_output(target):
        pytest.fail("the work started")
    check_output(target, overwrite=True)
    assert target.read_text() == "old"


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    target = tmp_path / "a.csv"

    def work():
        with atomic_output(target) as temporary:
            temporary.write_text("ours")
            target.write_text("theirs")

    with pytest.raises(InputRejected, match="--overwrite"):
        work()
    assert target.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["a.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "empty name"),
        (".", "is a folder"),
        ("no/where.csv", "does not exist; make it first"),
        ("nul\0.csv", "cannot be a file name"),
        ("x" * 300, "cannot be a file name"),
    ],
)
def test_impossible_outputs_are_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputRejected, match=message):
        check_output(name)


def test_a_device_is_refused_even_with_overwrite():
    with pytest.raises(InputRejected, match="regular file"):
        check_output(os.devnull, overwrite=True)


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, whom no mode stops
    with pytest.raises(InputRejected, match="may not be written"):
        check_output(tmp_path / "a.csv")


def test_links_are_followed(tmp_path):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    with atomic_output(tmp_path / "link.csv", overwrite=True) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"


def test_a_long_name_still_fits(tmp_path):
    with atomic_output(tmp_path / ("x" * 250 + ".csv")) as temporary:
        temporary.write_text("new")
    assert len(os.listdir(tmp_path)) == 1


def test_a_full_disk_is_named(tmp_path):
    def work():
        with atomic_output(tmp_path / "a.csv") as temporary:
            temporary.write_text("half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SmlmError, match="no room left"):
        work()
    assert os.listdir(tmp_path) == []


def test_writing_nothing_is_an_error(tmp_path):
    with pytest.raises(SmlmError, match="nothing was written"), atomic_output(tmp_path / "a.csv"):
        pass
