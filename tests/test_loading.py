"""Batches read by worker processes: how they end."""

import subprocess
import sys
import textwrap


def test_a_program_that_fails_in_the_middle_of_a_pass_ends():
    """Its workers ignore the signal by which multiprocessing would end them, and it waits for
    them."""
    program = """
        import torch
        from torch.utils.data import TensorDataset
        from protobench.data.loading import batches

        class Images(TensorDataset):
            def __getitem__(self, index):
                return self.tensors[0][index]

        loader = batches(Images(torch.zeros(100, 3)), workers=2, device="cpu", batch_size=2)
        for batch in loader:
            raise ValueError("in the middle of a pass")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=20
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("ValueError: in the middle of a pass\n")
