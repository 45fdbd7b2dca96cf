"""A trained peer in a process of its own, asked for timings, so that ours and the peer take turns in one run."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType

HERE = Path(__file__).parent


class PeerServer:
    """Trains a peer and times its queries from raw text to label ids, on one thread.

        export_task(data, folder)                                        # peers.tasks
        python = peers_python(default_folder())                          # peers.environment
        with PeerServer(python, "pecos-1", folder) as peer:              # seconds to minutes: it trains
            singles = peer.single(start=0, count=500, k=10)              # 500 CPU seconds, one for each test text
            together = peer.batch(start=0, count=2000, k=10)             # CPU seconds of the 2,000 together

    Args:
        python: Interpreter of the peers' environment.
        peer: ``pecos-1``, ``pecos-3``, ``omikuji`` or ``napkinxc``.
        task: Folder that ``export_task`` wrote; ``start`` and ``count`` choose among its test texts, in their order.

    Raises:
        RuntimeError: if the process ends, with its last words.
    """

    def __init__(self, python: Path, peer: str, task: Path) -> None:
        self.log = task / f"{peer}.log"
        environment = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(python), str(HERE / "trees.py"), peer, str(task), "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | environment,
            )
        self._answer("ready")

    def __enter__(self) -> PeerServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.communicate()

    def single(self, start: int, count: int, k: int) -> list[float]:
        """CPU seconds of each of ``count`` texts, ranked one by one."""
        return self._ask("single", start, count, k)

    def batch(self, start: int, count: int, k: int) -> float:
        """CPU seconds of ``count`` texts ranked in one call."""
        return self._ask("batch", start, count, k)[0]

    def _ask(self, kind: str, start: int, count: int, k: int) -> list[float]:
        self.process.stdin.write(f"{kind} {start} {count} {k}\n")
        self.process.stdin.flush()
        return self._answer("cpu_seconds")

    def _answer(self, key: str) -> list[float]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer ended with {self.process.wait()}: {self.log.read_text()[-2000:]}")
        return json.loads(line)[key]
