"""Worker processes of this machine."""

import multiprocessing

from protobench.runtime import processes


def _start_method():
    return multiprocessing.get_start_method()


def test_what_a_worker_starts_begins_as_what_any_program_starts():
    """A spawned process would spawn the processes that read its images: seconds for each."""
    with processes.pool(1, threads=0) as pool:
        assert pool.submit(_start_method).result() == multiprocessing.get_start_method()
