import logging

import pytest

from bertmon.storage import atomic_write, cached_bytes, content_hash


def test_content_is_made_once(tmp_path):
    made = []
    for _ in range(3):
        assert cached_bytes(tmp_path / "new", "file", lambda: made.append(1) or b"content") == b"content"
    assert made == [1]


@pytest.mark.parametrize("damage", [b"", b"short", b"\0" * 32 + b"content"])
def test_a_damaged_file_is_made_again_with_a_warning(tmp_path, caplog, damage):
    cached_bytes(tmp_path, "file", lambda: b"content")
    (tmp_path / "file").write_bytes(damage)
    assert cached_bytes(tmp_path, "file", lambda: b"anew") == b"anew"
    assert "is damaged: made again" in caplog.text
    assert cached_bytes(tmp_path, "file", lambda: b"never") == b"anew"


def test_a_folder_that_cannot_be_written_costs_only_the_reuse(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert cached_bytes(tmp_path / "file", "name", lambda: b"content") == b"content"
    assert "cannot be" in caplog.text


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    atomic_write(tmp_path / "file", b"old")
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        atomic_write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_digests_tell_lists_of_parts_apart():
    assert content_hash("a", "b") != content_hash("ab") != content_hash("ab", "")
    assert content_hash("a", b"b") == content_hash(b"a", "b")
    content_hash("\ud800")  # a lone surrogate, as JSON can hold it
