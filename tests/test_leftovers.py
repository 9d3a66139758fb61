"""Which names are left by an operating system or a tool, and which belong to the data."""

import subprocess
import sys

import pytest

from protobench.data.leftovers import is_leftover


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "._aeroplane_trainval.txt",
        "._n01440764",
        ".ipynb_checkpoints",
        ".git",
        ".nfs000000000012",
        "@eaDir",
        "lost+found",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "System Volume Information",
        "Thumbs.db",
        "thumbs.db",
        "desktop.ini",
        "Desktop.ini",
        "__MACOSX",
        "Icon\r",
        "aeroplane_trainval.txt~",
    ],
)
def test_a_leftover_is_known_by_its_name(name):
    assert is_leftover(name)


@pytest.mark.parametrize(
    "name",
    [
        "n01440764",
        "000005.jpg",
        "aeroplane_trainval.txt",
        "aeroplane_trainval (1).txt",
        "a - Copy.jpg",
        "_aeroplane",
        "Icon",
        "thumbs",
        "a~b",
        "eaDir",
        "café",
        "0",
    ],
)
def test_names_of_data_and_of_second_copies_are_none(name):
    assert not is_leftover(name)


def test_telling_them_apart_needs_no_torch():
    code = "import sys, protobench.data.leftovers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
