"""Code in processes of its own that need not import again: forks of one process that has.

    forks.run("from hf_xmc import Retriever; ...", folder)
    ranks = forks.start_ranks(2, worker.read_text(), folder); forks.finish(*ranks)

`python forks.py MODULE...` imports the modules and then reads jobs from stdin, JSON lines: one that starts a fork is
answered with its pid, one that waits for forks with how they ended, as `subprocess` says it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

MAX_SECONDS = 300  # after which a fork ends itself


@dataclass(frozen=True)
class Fork:
    """A process that runs, and the folder that what it prints goes into."""

    pid: int
    folder: Path

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr").read_text()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Forks:
    """Starts forks of a process with these modules and this environment; the process starts with the first of them."""

    def __init__(self, modules: Sequence[str], env: dict[str, str], folder: Path) -> None:
        self.modules, self.env, self.folder = modules, env | {"OMP_NUM_THREADS": "1"}, folder
        self.server: subprocess.Popen[str] | None = None
        self.children: dict[int, subprocess.Popen[bytes]] = {}  # where there is no fork

    def start(self, code: str, *arguments: object, env: dict[str, str] | None = None) -> Fork:
        """A fork that runs Python code with these arguments in sys.argv; its environment has `env` as well."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for name in ("stdout", "stderr"):
            (folder / name).touch()
        if not hasattr(os, "fork"):
            return Fork(self._spawn(code, arguments, self.env | (env or {}), folder), folder)
        job = {"code": code, "arguments": [*map(str, arguments)], "env": env or {}, "folder": str(folder)}
        return Fork(self._ask(job), folder)

    def start_ranks(self, world_size: int, code: str, *arguments: object) -> list[Fork]:
        """One fork a rank, in the environment that torchrun gives."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        env |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "ACCELERATE_USE_CPU": "true"}
        ranks = [env | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
        return [self.start(code, *arguments, env=each) for each in ranks]

    def wait(self, *forks: Fork) -> list[int]:
        """How each ended: 0, or the number of an error, or minus that of a signal. One that fails ends the others."""
        if self.children:
            return [self.children.pop(fork.pid).wait(MAX_SECONDS) for fork in forks]
        return self._ask({"wait": [fork.pid for fork in forks]})

    def finish(self, *forks: Fork) -> None:
        """Waits until all end as they should."""
        statuses = self.wait(*forks)
        told = "\n".join(fork.stderr[-4000:] for fork in forks)
        assert not any(statuses), f"processes ended with {statuses}:\n{told}"

    def run(self, code: str, *arguments: object, env: dict[str, str] | None = None) -> str:
        """What the code prints."""
        fork = self.start(code, *arguments, env=env)
        self.finish(fork)
        return fork.stdout

    def close(self) -> None:
        if self.server:
            self.server.stdin.close()
            self.server.wait()

    def _spawn(self, code: str, arguments: Sequence[object], env: dict[str, str], folder: Path) -> int:
        env = env | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            child = subprocess.Popen(command, env=env, stdout=out, stderr=err)
        self.children[child.pid] = child
        return child.pid

    def _ask(self, job: dict[str, Any]) -> Any:
        if self.server is None:
            command = [sys.executable, __file__, *self.modules]
            self.server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.env, text=True
            )
        print(json.dumps(job), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())


def _serve(modules: list[str]) -> None:
    for name in modules:
        import_module(name)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(_wait(job["wait"]) if "wait" in job else _fork(job)), file=answers, flush=True)


def _fork(job: dict[str, Any]) -> int:
    if pid := os.fork():
        return pid
    status = 1
    try:
        _run(job)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(job: dict[str, Any]) -> None:
    signal.alarm(MAX_SECONDS)
    for number, name in enumerate([os.devnull, "stdout", "stderr"]):
        file = os.open(Path(job["folder"], name), os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
    os.environ.update(job["env"])
    sys.argv[1:] = job["arguments"]
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    exec(compile(job["code"], "fork", "exec"), vars(module))


ENDED: dict[int, int] = {}


def _wait(pids: list[int]) -> list[int]:
    while left := set(pids) - ENDED.keys():
        pid, status = os.wait()
        ENDED[pid] = os.waitstatus_to_exitcode(status)
        if ENDED[pid] and pid in left:  # the other ranks would wait for it
            for other in left - {pid}:
                os.kill(other, signal.SIGKILL)
    return [ENDED.pop(pid) for pid in pids]


if __name__ == "__main__":
    _serve(sys.argv[1:])
