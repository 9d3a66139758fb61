import pytest

from protobench.runtime import files
from protobench.runtime.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "result.json"
    files.write_text(path, "old")

    def fail(file):
        file.write(b"half of the new")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        files.write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_folder_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        files.write_text(tmp_path / "file" / "below.json", "x")


def test_canonical_json_has_one_spelling():
    assert files.canonical_json({"b": 1, "a": (1, 2)}) == '{"a":[1,2],"b":1}'
    assert files.sha256({"a": 1, "b": 2}) == files.sha256({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json(float("nan"))
