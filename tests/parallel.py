"""Functions run by several processes that work together, as torchrun starts them."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any


def run(function: Callable[..., Any], *args: Any, processes: int = 2) -> list[Any]:
    """What ``function(*args)`` returns in each process, in order of rank; it is imported there, by its name."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers = [context.Process(target=_work, args=(rank, processes, port, sender, function, args))
               for rank, (_, sender) in enumerate(pipes)]
    for worker, (_, sender) in zip(workers, pipes, strict=True):
        worker.start()
        sender.close()
    try:
        found = [pickle.loads(receiver.recv_bytes()) if receiver.poll(120) else (None, "no answer") for receiver, _ in pipes]
    except EOFError:
        found = [(None, "died")]
    finally:
        for worker in workers:
            worker.join(20)
            worker.kill()
    if failures := [failure for _, failure in found if failure]:
        raise AssertionError("\n".join(failures))
    return [value for value, _ in found]


def _work(rank: int, processes: int, port: int, sender: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch

    from protobench import ranks

    torch.set_num_threads(1)
    try:
        ranks.join("cpu")
        answer = pickle.dumps((function(*args), None))
        ranks.leave()
    except Exception:
        answer = pickle.dumps((None, traceback.format_exc()))
    sender.send_bytes(answer)
