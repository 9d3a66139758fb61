"""Published files: recognised by hash or name, downloaded only on request, verified."""

import contextlib
import hashlib
import http.server
import re
import threading
from dataclasses import replace

import pytest
import torch

from protobench import __main__ as program
from protobench.checkpoints import encoders, released, resnet, vit
from protobench.runtime.errors import UserError

DATA = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    """A file server that breaks off after ``limit`` bytes where one is set."""

    limit = None
    kind = "application/octet-stream"
    requests: list = []  # noqa: RUF012 (one server a test)

    def do_GET(self):
        type(self).requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that does not want the file hangs up
            self.wfile.write(DATA[: self.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """(handler, entry): a catalogue of one file, "net", at a local server."""
    handler = type("Fresh", (Handler,), {"requests": [], "limit": None, "kind": Handler.kind})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        entry = released.Released(
            "net",
            "A net",
            "net.pth",
            "resnet50",
            "https://example.org",
            f"http://127.0.0.1:{running.server_port}/net.pth",
            md5=hashlib.md5(DATA).hexdigest()[:8],
        )
        monkeypatch.setattr(released, "catalogue", lambda: {"net": entry})
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield handler, entry
        running.shutdown()


def test_a_file_is_downloaded_once_and_verified(server, tmp_path, command):
    handler, _ = server
    code, out, err = command(program.main, "fetch", "net", "--to", tmp_path)
    assert code == 0, err
    assert "md5" in out
    assert (tmp_path / "net.pth").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]
    released.fetch("net", tmp_path)
    assert handler.requests == ["/net.pth"], "a file that is there is not fetched again"


def test_a_broken_download_leaves_nothing(server, tmp_path):
    """Also where no published hash would tell."""
    handler, _ = server
    handler.limit = 300_000
    with pytest.raises(UserError, match="the connection broke after 300,000 of 1,024,000 bytes"):
        released.fetch("net", tmp_path)
    assert not list(tmp_path.iterdir())
    handler.limit = None
    assert released.fetch("net", tmp_path).read_bytes() == DATA


def test_a_folder_in_the_way_is_told(server, tmp_path):
    (tmp_path / "net.pth").mkdir()
    with pytest.raises(UserError, match="a folder is in the way"):
        released.fetch("net", tmp_path)


def test_a_wrong_file_is_deleted_and_told(server, tmp_path, monkeypatch):
    _, entry = server
    monkeypatch.setattr(released, "catalogue", lambda: {"net": replace(entry, md5="00000000")})
    with pytest.raises(UserError, match="not the published A net"):
        released.fetch("net", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_web_page_is_not_taken_for_the_file(server, tmp_path):
    handler, _ = server
    handler.kind = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="a web page, not a file"):
        released.fetch("net", tmp_path)


def test_without_a_network_the_page_is_named(server, tmp_path, monkeypatch, command):
    _, entry = server
    monkeypatch.setattr(
        released, "catalogue", lambda: {"net": replace(entry, url="http://127.0.0.1:1/net.pth")}
    )
    code, _, err = command(program.main, "fetch", "net", "--to", tmp_path)
    assert code == 2
    assert "cannot download A net" in err
    assert "https://example.org" in err
    code, _, err = command(program.main, "fetch", "nett")
    assert code == 2
    assert "did you mean 'net'" in err


def test_the_catalogue_is_what_the_tables_need():
    from tables.engine.catalogue import tables

    rows = {f"{name}/{row.name}" for name, table in tables().items() for row in table.rows}
    for entry in released.catalogue().values():
        assert set(entry.rows) <= rows
    assert {
        row
        for entry in released.catalogue().values()
        for row in entry.rows
        if row.startswith("table1")
    } == {"table1/moco", "table1/pcl", "table1/pcl-v2", "table1/supervised"}


def test_every_entry_can_be_brought_and_told_apart():
    entries = list(released.catalogue().values())
    for entry in entries:
        assert re.fullmatch("[a-z0-9-]+", entry.name)
        assert entry.page.startswith("https://")
        assert bool(entry.url) != bool(entry.by_hand)
        assert not entry.url or entry.url.startswith("https://")
        assert re.fullmatch("([0-9a-f]{6,8})?", entry.md5 + entry.sha256)
        named = re.search(r"-([0-9a-f]{8})\.pth$", entry.file)
        assert not named or named[1] == entry.sha256, "a name that holds a hash is a stated hash"
        size, _, patch = entry.arch.rpartition("_patch")
        assert entry.arch == "resnet50" or (size in vit.SIZES and patch.isdigit())
    for what in ("kept_as", "title", "url"):
        told = [value for entry in entries if (value := getattr(entry, what))]
        assert len(told) == len(set(told)), f"two entries of one {what}"
    files = [entry.file for entry in entries if not entry.generic]
    assert not any(files.count(entry.file) for entry in entries if entry.generic)


def test_the_field_is_covered():
    """Every origin whose layout is known and that publishes a ResNet-50 or a vision transformer."""
    pages = " ".join(entry.page for entry in released.catalogue().values())
    for project in (
        *("facebookresearch/moco", "facebookresearch/moco-v3", "facebookresearch/simsiam"),
        *("facebookresearch/swav", "facebookresearch/dino", "facebookresearch/barlowtwins"),
        *("facebookresearch/vicreg", "facebookresearch/vissl", "facebookresearch/mae"),
        *("facebookresearch/dinov2", "facebookresearch/deit", "salesforce/PCL", "salesforce/MoPro"),
        *("HobbitLong/PyContrast", "HobbitLong/SupContrast", "open-mmlab/mmpretrain"),
        *("lightly-ai/lightly", "bytedance/ibot", "pytorch-image-models", "imgsim", "torchvision"),
    ):
        assert project in pages


def test_what_has_no_address_is_brought_by_hand(tmp_path, command):
    code, _, err = command(program.main, "fetch", "pycontrast-pirl", "--to", tmp_path)
    assert code == 2
    assert "PIRL.pth lies in the Dropbox folder" in err
    assert f"save it as {tmp_path / 'pycontrast-pirl-PIRL.pth'}" in err
    (tmp_path / "pycontrast-pirl-PIRL.pth").write_bytes(DATA)
    code, out, _ = command(program.main, "fetch", "pycontrast-pirl", "--to", tmp_path)
    assert code == 0
    assert "publish no hash" in out


def test_a_published_name_with_another_hash_is_refused(tmp_path):
    torch.manual_seed(0)
    state = resnet.build("resnet50").state_dict()
    moco = tmp_path / "moco_v1_200ep_pretrain.pth.tar"
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in state.items()}}, moco)
    with pytest.raises(
        UserError,
        match=r"not the published MoCo v1, 200 epochs: its hash begins with \w{8}, not b251726a",
    ):
        encoders.load(moco)
    pcl = moco.rename(tmp_path / "PCL_v1_epoch200.pth.tar")
    encoder = encoders.load(pcl)
    assert encoder.report.released.name == "pcl-v1"
    assert "its authors publish no hash" in encoder.summary()
    generic = pcl.rename(tmp_path / "resnet50.pth")
    assert encoders.load(generic).report.released is None, "many files have that name"
    torch.save(resnet.build("resnet18").state_dict(), pcl)
    with pytest.raises(
        UserError,
        match="named like the published PCL v1, 200 epochs, a resnet50, but holds a resnet18",
    ):
        encoders.load(pcl)


def test_the_list_is_printed(command):
    code, out, _ = command(program.main, "fetch")
    assert code == 0
    assert "moco-v1" in out
    assert "md5 b251726a as published" in out
    assert "pcl-v2" in out
    resnets, transformers = out.split("Vision transformers\n")
    assert resnets.startswith("ResNet-50\n")
    assert "dinov2-vit-l" in transformers
    assert "no hash published" in transformers
    assert resnets.count("https://github.com/facebookresearch/moco\n") == 1, "once per project"
