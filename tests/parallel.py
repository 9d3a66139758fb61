"""Functions run by several processes that work together, as torchrun starts them; they stay for the
next function."""

import contextlib
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any

from torch.distributed import TCPStore

_groups: dict[int, "_Group"] = {}


def run(function: Callable[..., Any], *args: Any, processes: int = 2) -> list[Any]:
    """What ``function(*args)`` returns in each process, in order of rank; it is imported there, by
    its name."""
    if processes not in _groups:
        _groups[processes] = _Group(processes)
    try:
        return _groups[processes].run(function, args)
    except BaseException:  # the others may wait for the one that failed
        _groups.pop(processes).end()
        raise


def end() -> None:
    """Ends all processes; nothing is left for the interpreter to end in an order of its own."""
    while _groups:
        _groups.popitem()[1].end()


class _Group:
    def __init__(self, processes: int):
        # served from here, on a port that the system chooses: one that was only looked up could be
        # taken by another program
        self.store = TCPStore("127.0.0.1", 0, processes, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["torch", "torchvision", "faiss", "pretrain.loop", "evaluate.knn"]
        )  # once for all
        pipes = [context.Pipe() for _ in range(processes)]
        self.pipes = [ours for ours, _ in pipes]
        self.workers = [
            context.Process(
                target=_work, args=(rank, processes, self.store.port, theirs), daemon=True
            )
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for worker, (_, theirs) in zip(self.workers, pipes, strict=True):
            worker.start()
            theirs.close()

    def run(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        cache = os.environ.get("PROTOBENCH_CACHE", "")
        for pipe in self.pipes:
            pipe.send((function, args, cache))
        found = []
        for rank, pipe in enumerate(self.pipes):
            answer: Any = (None, f"process {rank} gave no answer")
            with contextlib.suppress(EOFError):
                answer = pickle.loads(pipe.recv_bytes()) if pipe.poll(300) else answer
            assert not answer[1], answer[1]
            found.append(answer[0])
        return found

    def end(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.join()
        for pipe in self.pipes:
            pipe.close()


def _work(rank: int, processes: int, port: int, pipe: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    from protobench.runtime import distributed

    distributed.init("cpu")
    while True:
        function, args, os.environ["PROTOBENCH_CACHE"] = pipe.recv()
        try:
            answer = pickle.dumps((function(*args), None))
        except Exception:
            answer = pickle.dumps((None, traceback.format_exc()))
        pipe.send_bytes(answer)
