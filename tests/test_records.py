import json
from dataclasses import replace

import pytest

from protobench import records
from protobench.records import ModelInfo, ResultKey
from protobench.runtime import files
from protobench.runtime.errors import UserError

RESULT = ResultKey("lowshot", "voc07", 1, "e", ("a", "b"), {"shots": (1, 2)})
MODEL = ModelInfo("pcl", 1, "retrained", "r")


def test_a_record_round_trips_and_is_found_by_its_unit(tmp_path):
    path = records.write(
        tmp_path, RESULT, [{"k": 1, "draw": 0, "value": 46.9}], model=MODEL, metric={"unit": "%"}
    )
    assert path.name.startswith("pcl-1-lowshot-voc07-")
    record = records.read(path)
    assert record["runs"] == [{"k": 1, "draw": 0, "value": 46.9}]
    result = json.loads(files.canonical_json(RESULT.to_json()))
    model = MODEL.to_json()
    assert records.read_all(tmp_path) == {records.key(result, model): record}
    assert records.key(result, model) != records.key(result, model | {"row": "moco"})
    assert records.find(tmp_path, RESULT, MODEL) == path
    assert records.find(tmp_path, replace(RESULT, version=2), MODEL) is None
    assert set(record["environment"]) >= {
        "torch",
        "python",
        "threads",
        "processor",
        "instruction_set",
    }


@pytest.mark.parametrize(
    ("told", "found"),
    [
        (
            (
                "processor\t: 0\nmodel name\t: AMD EPYC 9B14 \nprocessor\t: 1\nmodel name\t: AMD"
                " EPYC 9B14 \n"
            ),
            "AMD EPYC 9B14",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\nCPU part\t: 0xd0c\n", None),
        ("model name\t:\nflags\t: fpu\n", None),
    ],
)
def test_the_processor_is_named_where_the_system_names_it(tmp_path, monkeypatch, told, found):
    """Linux on ARM tells no model."""
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr(records, "CPU_INFO", tmp_path / "cpuinfo")
    assert records.processor() == found


@pytest.mark.parametrize(("system", "found"), [("Darwin", None), ("Windows", "Intel64 Family 6")])
def test_other_systems_name_the_processor_or_nothing_fails(tmp_path, monkeypatch, system, found):
    monkeypatch.setattr(records, "CPU_INFO", tmp_path / "absent")
    monkeypatch.setattr(records.platform, "system", lambda: system)
    monkeypatch.setattr(records.platform, "processor", lambda: "Intel64 Family 6")
    monkeypatch.setenv("PATH", "")  # no sysctl
    assert records.processor() == found


def test_records_from_before_the_processor_was_recorded_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "environment", lambda: {"torch": "2.15.0", "threads": 1})
    path = records.write(tmp_path, RESULT, [], model=MODEL)
    assert records.read(path)["environment"] == {"torch": "2.15.0", "threads": 1}


@pytest.mark.parametrize("field", ["unit", "subject", "runs", "finished"])
def test_a_record_without_a_field_that_all_have_is_refused_by_name(tmp_path, field):
    path = records.write(tmp_path, RESULT, [], model=MODEL)
    content = json.loads(path.read_text())
    del content["record_id"], content[field]
    path.write_text(json.dumps({"record_id": files.sha256(content), **content}))
    with pytest.raises(UserError, match="not a result record") as error:
        records.read(path)
    assert error.value.at == path


def test_nothing_private_is_recorded(tmp_path):
    text = records.write(tmp_path, RESULT, [], model=MODEL).read_text()
    assert str(tmp_path) not in text
    assert "/home" not in text


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.replace("46.9", "56.9"),
        lambda t: t.replace("retrained", "released"),
        lambda t: t[:-30],
        lambda t: "[]",
        lambda t: t.replace('"schema": 1', '"schema": 2'),
    ],
)
def test_an_edited_record_is_refused_by_name(tmp_path, edit):
    path = records.write(tmp_path, RESULT, [{"k": 1, "draw": 0, "value": 46.9}], model=MODEL)
    path.write_text(edit(path.read_text()))
    with pytest.raises(UserError) as error:
        records.read_all(tmp_path)
    assert error.value.at == path
