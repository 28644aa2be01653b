"""Files that are written completely or not at all, a cache of such files, and locks."""

import logging
import os
import signal
import stat
import subprocess
import sys

import pytest
from conftest import interrupt

from bertmon.errors import InputError, StorageError
from bertmon.storage import (
    ContentHash,
    atomic_folder,
    atomic_path,
    atomic_write,
    cached_bytes,
    content_hash,
    exclusive,
    is_locked,
    read_json,
)

# --- atomic files --------------------------------------------------------------------------------


def test_atomic_write_replaces_the_file(tmp_path):
    for content in (b"old", b"new"):
        atomic_write(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_atomic_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    atomic_write(tmp_path / "file", b"old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_atomic_path_whose_body_raises_leaves_the_old_file(tmp_path, error):
    atomic_write(tmp_path / "file", b"old")

    def write_half():
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_bytes(b"half of the ne")
            assert (tmp_path / "file").read_bytes() == b"old"
            raise error

    with pytest.raises(error):
        write_half()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_atomic_path_gives_the_permissions_of_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        atomic_write(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_atomic_folder_gives_its_files_the_permissions_of_new_ones(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "hidden").touch(mode=0o600)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "folder" / "hidden").stat().st_mode) == 0o640


def test_atomic_write_of_the_longest_name_works(tmp_path):
    atomic_write(tmp_path / ("x" * 255), b"content")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"content"


def test_atomic_write_into_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "nowhere" / "file", b"content")


# --- the cache -----------------------------------------------------------------------------------


def test_cached_bytes_are_made_once(tmp_path):
    calls = []
    for _ in range(3):
        assert cached_bytes(tmp_path / "new", "file", lambda: calls.append(1) or b"content") == b"content"
    assert calls == [1]


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 32 + b"content"])
def test_cached_bytes_of_a_corrupt_file_are_rebuilt_with_a_warning(tmp_path, caplog, damage):
    cached_bytes(tmp_path, "file", lambda: b"content")
    (tmp_path / "file").write_bytes(damage)
    assert cached_bytes(tmp_path, "file", lambda: b"rebuilt") == b"rebuilt"
    assert caplog.messages == [f"cache file {tmp_path / 'file'} is corrupt; rebuilding"]
    assert cached_bytes(tmp_path, "file", lambda: b"never") == b"rebuilt"


def test_cached_bytes_in_an_unwritable_folder_are_returned_with_warnings(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert cached_bytes(tmp_path / "file", "name", lambda: b"content") == b"content"
    assert "could not read cache file" in caplog.messages[0]
    assert "could not write cache file" in caplog.messages[1]


def test_cached_bytes_made_by_several_processes_at_once_are_complete(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        "from bertmon.storage import cached_bytes\n"
        "def make():\n"
        "    time.sleep(0.5)\n"
        "    return bytes(10**7)\n"
        "print(len(cached_bytes(pathlib.Path(sys.argv[1]), 'corpus', make)))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    makers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(3)]
    assert [maker.communicate()[0] for maker in makers] == 3 * ["10000000\n"]
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


# --- hashes and JSON -----------------------------------------------------------------------------


def test_content_hash_distinguishes_sequences_of_parts():
    assert content_hash("a", "b") != content_hash("ab") != content_hash("ab", "")
    assert content_hash("a", b"b") == content_hash(b"a", "b")
    content_hash("\ud800")  # a lone surrogate, as JSON can hold it


def test_content_hash_part_by_part_equals_that_of_all_parts():
    hasher = ContentHash()
    for part in ("a", b"bc", ""):
        hasher.add(part)
    assert hasher.hex() == content_hash("a", b"bc", "")
    assert len(hasher.hex()) == 64


def test_read_json_of_an_object_is_its_content(tmp_path):
    (tmp_path / "file").write_text('{"a": [1, null], "ä": "☃"}')
    assert read_json(tmp_path / "file") == {"a": [1, None], "ä": "☃"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff{}", b'{"a": "\\ud800"}', b"[" * 100_000])
def test_read_json_of_anything_else_is_empty(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert read_json(tmp_path / "file") == {}


def test_read_json_of_no_file_is_empty(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # reading it would block
    for name in ("nowhere", "fifo", "."):
        assert read_json(tmp_path / name) == {}


# --- locks ---------------------------------------------------------------------------------------

HOLD = """
import pathlib, sys, time
from bertmon.storage import exclusive
with exclusive(pathlib.Path(sys.argv[1]), "taken"):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(start_process, tmp_path):
    """A process that holds the lock file tmp_path/lock."""
    process = start_process([sys.executable, "-c", HOLD, str(tmp_path / "lock")])
    assert process.stdout.readline() == "locked\n"
    yield process
    if process.poll() is None:
        interrupt(process, signal.SIGKILL)


def test_exclusive_while_another_process_holds_it_raises_the_given_error(holder, tmp_path):
    assert is_locked(tmp_path / "lock")
    with pytest.raises(InputError, match="somebody works here"), exclusive(tmp_path / "lock", "somebody works here"):
        pytest.fail("two hold it")
    assert is_locked(tmp_path / "lock")


def test_exclusive_lock_ends_with_its_process(holder, tmp_path):
    interrupt(holder, signal.SIGKILL)
    assert not is_locked(tmp_path / "lock")
    with exclusive(tmp_path / "lock", "taken"):
        assert is_locked(tmp_path / "lock")


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_exclusive_lock_ends_with_its_body(tmp_path, error):
    def hold():
        with exclusive(tmp_path / "lock", "taken"):
            assert is_locked(tmp_path / "lock")
            if error:
                raise error

    if error:
        with pytest.raises(error):
            hold()
    else:
        hold()
    assert not is_locked(tmp_path / "lock")
    hold_again = exclusive(tmp_path / "lock", "taken")
    with hold_again:
        pass


def test_exclusive_is_not_disturbed_by_is_locked(tmp_path):
    """Each call of is_locked holds the lock for an instant."""
    code = "import pathlib, sys\nfrom bertmon.storage import is_locked\nprint('looking', flush=True)\n"
    code += "while True: is_locked(pathlib.Path(sys.argv[1]))\n"
    (tmp_path / "lock").touch()
    looker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert looker.stdout.readline() == "looking\n"
        for _ in range(20):
            with exclusive(tmp_path / "lock", "taken"):
                pass
    finally:
        looker.kill()
        looker.communicate()


def test_exclusive_whose_lock_file_cannot_be_created_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"could not write .*file/lock"), exclusive(tmp_path / "file/lock", "taken"):
        pytest.fail("it was locked")


def test_is_locked_of_a_missing_file_is_false_and_creates_none(tmp_path):
    assert not is_locked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []
