"""A pretraining records itself: its monitors by epoch, and TP and FN similarity where measured."""

from dataclasses import replace

import pytest

from pretrain import command as pretrain_command
from pretrain.recipes import moco, simclr, untrained
from protobench import records


def _short(recipe):
    return replace(recipe, train=replace(recipe.train, epochs=1, batch_size=32))


@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [
        (replace(moco.MINI, queue=32), {"course"}),
        (simclr.MINI, {"course", "similarity"}),
    ],
)
def test_the_command_line_leaves_records_beside_the_encoder(
    command, world, tmp_path, recipe, kinds
):
    def main():
        return pretrain_command._main("doc", {"mini": _short(recipe)})

    args = ("mini", "--data", world, "--out", tmp_path, "--workers", 0)
    for _ in range(2):  # the second time the training is finished already
        code, out, err = command(main, *args)
        assert code == 0, err
        assert "1 epochs, last loss" in out
        found = records.read_all(tmp_path / "records").values()
        assert {record["unit"]["evaluation"] for record in found} == kinds
        assert len(list((tmp_path / "records").iterdir())) == len(kinds)
    assert all(record["unit"]["data_name"] == recipe.dataset for record in found)


def test_an_untrained_encoder_has_no_history(command, world, tmp_path):
    def main():
        return pretrain_command._main("doc", {"mini": untrained.MINI})

    code, out, err = command(main, "mini", "--data", world, "--out", tmp_path)
    assert code == 0, err
    assert "epochs" not in out
    assert not (tmp_path / "records").exists()
