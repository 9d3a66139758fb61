"""Processes side by side on this machine that end with the one that started them."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from protobench.runtime import resource_errors
from protobench.runtime.errors import UserError


@contextlib.contextmanager
def pool(count: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """``count`` worker processes with ``threads`` torch threads each (0: torch's default). If the
    block raises, as on Ctrl-C, the workers are ended and the exception propagates."""
    with _threads_per_process(threads):
        workers = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_worker,
            initargs=(threads, multiprocessing.get_start_method()),
        )
        try:
            yield workers
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            workers.shutdown()
            raise
        workers.shutdown()


def explained(failure: BaseException) -> object:
    """What to print of a worker's failure."""
    if isinstance(failure, UserError):
        return failure
    if isinstance(failure, BrokenProcessPool):
        return "a process died (out of memory?)"
    return resource_errors.explained(failure) or repr(failure)


def _start_worker(threads: int, start_method: str) -> None:
    # Processes that a worker starts itself, to read images, begin as those of any other program. A
    # spawned process would spawn them, and importing torch takes each of them seconds.
    multiprocessing.set_start_method(start_method, force=True)
    # The parent ends its workers, whose files are whole at any moment.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    if threads:
        import torch

        torch.set_num_threads(threads)


def end_with_parent() -> None:
    """From now on ends this process when its parent is gone, killed for example: nobody would
    collect its results."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextlib.contextmanager
def _threads_per_process(threads: int) -> Iterator[None]:
    """Sets OMP_NUM_THREADS for children: faiss and BLAS read it when they are loaded, before any
    code of ours runs."""
    before = os.environ.get("OMP_NUM_THREADS")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS", None)
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
