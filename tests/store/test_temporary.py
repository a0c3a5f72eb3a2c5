import os
import signal
import subprocess
import sys
from pathlib import Path

from store.temporary import PREFIX, temporary_folder


def test_a_temporary_folder_is_gone_after_its_block(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "new") as folder:
        (folder / "file").write_text("x")
        assert [path.name for path in (tmp_path / "new").iterdir()] == [folder.name]
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_uses_is_not(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
from store.temporary import temporary_folder
with temporary_folder(Path({str(tmp_path)!r})) as folder:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    live = tmp_path / f"{PREFIX}{os.getpid()}-mine"
    live.mkdir()
    assert len(list(tmp_path.iterdir())) == 2
    with temporary_folder(tmp_path) as folder:
        assert set(tmp_path.iterdir()) == {live, folder}
