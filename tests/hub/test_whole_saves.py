"""One save or none: a process that is killed while it writes, readers beside a writer, what is left of dead ones."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from toys import WORDS, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc import Retriever
from hf_xmc.hub.server_xmc import StaticServer

DOORS: dict[str, Callable[[Path], Callable[..., Any]]] = {
    "package": lambda folder: Retriever.from_pretrained(folder, device="cpu").predict,
    "pipeline": lambda folder: hf_xmc.pipeline(model=str(folder), device="cpu"),
    "server": lambda folder: StaticServer(folder),
}


def make_retriever(seed: int) -> Retriever:
    """Of one seed other vectors than of another, with labels in another order."""
    retriever = Retriever.build(make_static_encoder(seed=seed), WORDS if seed % 2 else WORDS[::-1])
    data = make_words_data()
    retriever.remember(data.train["text"][:], data.to_csr("train"))
    return retriever


def answers(ask: Callable[..., Any]) -> list[Any]:
    return [[(label["label"], round(label["score"], 5)) for label in line] for line in ask(WORDS, top_k=3)]


KILLED = """
import os, signal, sys
from hf_xmc import Retriever
from hf_xmc.hub import whole_xmc
other, *saves = sys.argv[1:]
retriever, move = Retriever.from_pretrained(other, device="cpu"), whole_xmc._move
for save in saves:
    moves, folder = save.split(":", 1)
    child = os.fork()
    if not child:
        done = iter(range(10**6))
        def counted(*where):
            if next(done) == int(moves):
                os.kill(os.getpid(), signal.SIGKILL)
            move(*where)
        whole_xmc._move = counted
        retriever.save_pretrained(folder)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
"""
MOVES = (0, 1, 10, 17, 20)


@pytest.fixture(scope="module")
def killed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Folders over which another retriever was saved by a process killed when so many files had been put in place."""
    root = tmp_path_factory.mktemp("killed")
    make_retriever(2).save_pretrained(root / "other")
    folders = {moves: root / str(moves) / "repo" for moves in MOVES}
    for folder in folders.values():
        make_retriever(1).save_pretrained(folder)
    saves = [f"{moves}:{folder}" for moves, folder in folders.items()]
    forks.run(KILLED, root / "other", *saves)
    return folders


@pytest.mark.parametrize("moves", MOVES)
def test_a_save_that_is_killed_is_the_one_before_or_refused_by_every_door(moves: int, killed: dict[int, Path]) -> None:
    folder = killed[moves]
    assert [path.name for path in folder.parent.iterdir() if path != folder]  # what the killed one left
    for door, open_door in DOORS.items():
        if moves:
            with pytest.raises(ValueError, match="a save was cut off, or it changed; save the repo again"):
                open_door(folder)
        else:
            assert answers(open_door(folder)) == answers(make_retriever(1).predict), door
    after = make_retriever(4)
    after.save_pretrained(folder)
    assert list(folder.parent.iterdir()) == [folder]
    for door, open_door in DOORS.items():
        assert answers(open_door(folder)) == answers(after.predict), door


WRITER = """
import sys
import time
from hf_xmc import Retriever
one, other = (Retriever.from_pretrained(folder, device="cpu") for folder in sys.argv[1:3])
print("begun", flush=True)
while True:
    for retriever in (one, other):
        retriever.save_pretrained(sys.argv[3])
        time.sleep(0.2)
"""


@pytest.mark.slow
def test_who_reads_beside_a_writer_gets_the_one_save_or_the_other(forks: Forks, tmp_path: Path) -> None:
    both = [make_retriever(1), make_retriever(2)]
    for number, retriever in enumerate(both):
        retriever.save_pretrained(tmp_path / str(number))
    both[0].save_pretrained(tmp_path / "repo")
    expected = [answers(retriever.predict) for retriever in both]
    writer = forks.start(WRITER, *(tmp_path / name for name in ("0", "1", "repo")))
    seen, stop = set(), time.monotonic() + 60
    try:
        while not writer.stdout:
            time.sleep(0.01)
        for read in itertools.count():
            if (len(seen) == 2 and read >= 10) or time.monotonic() > stop:
                break
            for open_door in (DOORS["package"], DOORS["server"]):
                try:
                    found = answers(open_door(tmp_path / "repo"))
                except ValueError as error:  # a writer with so short a pause may outrun the waiting
                    assert "a save was cut off" in str(error)
                    continue
                seen.add(expected.index(found))  # one of the two, nothing between
    finally:
        writer.kill()
        assert forks.wait(writer) == [-signal.SIGKILL]
    assert seen == {0, 1}
