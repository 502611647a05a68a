"""Full disks, limits on files, read-only folders: a clear error, and the checkpoints that were
there are whole.
"""

import os
import resource
import subprocess

import pytest
from reformer_lab.training import checkpoint
from tests.faults.runs import arguments, finish, outcome, start, train

pytestmark = pytest.mark.nightly  # real processes, minutes of them


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 KiB: enough for one checkpoint of the small run (216 KiB), not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    yield folder
    subprocess.run(["umount", str(folder)], check=False)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_that_was_there(small_disk, tmp_path):
    train(tmp_path, "whole")
    code, _, err = finish(start(tmp_path, *arguments(small_disk / "run")))
    assert code == 1
    assert err.count("\n") == 1
    assert "could not be written (No space left on device)" in err
    newest, skipped = checkpoint.newest(small_disk / "run")
    assert newest.step == 10
    assert not skipped
    assert not list((small_disk / "run/checkpoints").glob(".*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)  # somebody makes room
    train(tmp_path, small_disk / "run", resume=True)
    assert outcome(small_disk / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_a_disk_without_room_for_a_line_of_metrics(small_disk, tmp_path):
    (small_disk / "ballast").write_bytes(b"x" * (400 * 1024 - 4 * 4096))
    code, _, err = finish(start(tmp_path, *arguments(small_disk / "run", checkpoint_every=0)))
    assert code == 1
    assert err.count("\n") == 1
    assert "a line could not be written (No space left on device); the checkpoints are whole" in err


@pytest.mark.slow
def test_a_read_only_file_system_is_found_before_training(small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, out, err = finish(start(tmp_path, *arguments(small_disk / "run")))
    assert code == 2
    assert f"cannot write to --out {small_disk / 'run'}: Read-only file system" in err
    assert "held out" not in out.replace("held out\n", "")


LIMITED = """
import resource, signal, sys
from reformer_lab import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the system then says EFBIG instead of ending the process
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_is_like_a_full_disk(tmp_path):
    assert hasattr(resource, "RLIMIT_FSIZE")
    train(tmp_path, "run", steps=20, schedule="constant")
    before = checkpoint.newest(tmp_path / "run")[0].path.name
    more = arguments("run", steps=150, schedule="constant", resume=True)
    code, _, err = finish(start(tmp_path, LIMITED, *more, program=("-c",)))
    assert code == 1
    assert "the checkpoint of step 30 could not be written (File too large)" in err
    assert checkpoint.newest(tmp_path / "run")[0].path.name == before
    assert "going on after step 20" in train(tmp_path, "run", steps=150, schedule="constant", resume=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o500)
    code, _, err = finish(start(tmp_path, *arguments("mine/run")))
    assert code == 2
    assert "cannot write to --out mine/run: Permission denied" in err
