from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from vitesse.files import atomic_path, sweep, write_atomically


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a.bin"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_failing_writer_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"good")

    def fail() -> None:
        with atomic_path(path) as temporary:
            assert temporary.suffix == ".onnx"
            assert temporary.parent == tmp_path
            temporary.write_bytes(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        pass


def test_a_symbolic_link_keeps_pointing(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there" / "file")
    write_atomically(link, b"data")
    assert link.is_symlink()
    assert (tmp_path / "there" / "file").read_bytes() == b"data"


def test_a_kill_while_writing_leaves_the_last_good_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"good" * 1000)
    code = f"""
from vitesse.files import atomic_path
with atomic_path({str(path)!r}) as temporary, open(temporary, "wb") as file:
    while True:
        file.write(b"x" * 65536)
        file.flush()
        print("wrote", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"wrote\n"
        time.sleep(0.02)
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"good" * 1000
    left = {*tmp_path.iterdir()} - {path}
    assert len(left) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_killed_writers_left_is_swept(tmp_path):
    token = "0123456789ab"
    own = [f".a.{token}.tmp", f".a.b.{token}.tmp.safetensors", f"..hidden.{token}.tmp"]
    others = [
        ".a.tmp",
        f"a.{token}.tmp",
        ".a.0123.tmp",
        f".a.{token.upper()}.tmp",
        f".a.{token}.tmp.b.c",
        "b.tmp",
    ]
    (tmp_path / "below").mkdir()
    (tmp_path / f".folder.{token}.tmp").mkdir()
    for name in [*own, *others, f"below/{own[0]}"]:
        (tmp_path / name).touch()
    sweep(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*others, "below", f".folder.{token}.tmp"}
    assert (tmp_path / "below" / own[0]).exists()
    sweep(tmp_path / "absent")
