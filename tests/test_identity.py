import os

from pretrain.recipes import common, untrained
from protobench.checkpoints import encoders, identity
from protobench.runtime import files


def test_an_encoders_header_is_read_without_loading_it(encoder_file, tmp_path):
    key = identity.exported_key(encoder_file)
    assert key == encoders.load(encoder_file).key == common.run_key(untrained.MINI, None, 0)
    assert identity.encoder_key(encoder_file) == key
    assert identity.exported_key(tmp_path / "absent") is None
    whole = encoder_file.read_bytes()
    damaged = {
        "cut": whole[:50],
        "short": whole[:-8],
        "zeros": b"\0" * 64,
        "empty": b"",
        "ones": b"\xff" * 64,
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        assert identity.exported_key(tmp_path / f"{name}.safetensors") is None
        assert identity.encoder_key(tmp_path / f"{name}.safetensors") == files.sha256_file(
            tmp_path / f"{name}.safetensors"
        )


def test_a_file_is_hashed_once_unless_it_changes(tmp_path, monkeypatch):
    path, real, hashed = tmp_path / "x.pth", files.sha256_file, []
    monkeypatch.setattr(files, "sha256_file", lambda path: hashed.append(path) or real(path))
    path.write_bytes(b"first")
    first = identity.sha256_of(path)
    assert identity.sha256_of(path) == first == real(path)
    path.write_bytes(b"other")
    os.utime(path, ns=(0, 0))
    assert identity.sha256_of(path) == real(path) != first
    assert len(hashed) == 2
