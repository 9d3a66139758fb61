"""Published files: recognised by hash or name, downloaded only on request, resumed, verified."""

import contextlib
import hashlib
import http.server
import re
import threading
from dataclasses import replace

import pytest
import torch

from protobench import __main__ as program
from protobench.checkpoints import encoders, released, resnet
from protobench.runtime.errors import UserError

DATA = bytes(range(256)) * 4000


class Handler(http.server.BaseHTTPRequestHandler):
    """A file server that knows Range, and breaks off after ``limit`` bytes where one is set."""

    limit = None
    version = '"one"'
    kind = "application/octet-stream"
    asked: list = []  # noqa: RUF012 (one server a test)

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).asked.append(wanted)
        if self.headers.get("If-Range") != self.version:
            wanted = None
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if start >= len(DATA):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(DATA)}")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", self.kind)
        self.send_header("ETag", self.version)
        self.send_header("Content-Length", str(len(DATA) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # a client that does not want the file hangs up
            self.wfile.write(DATA[start : start + self.limit] if self.limit else DATA[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """(handler, entry): a catalogue of one file, "net", at a local server."""
    handler = type("Fresh", (Handler,), {"asked": [], "limit": None, "kind": Handler.kind})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        entry = released.Released(
            "net",
            "A net",
            "net.pth",
            f"http://127.0.0.1:{running.server_port}/net.pth",
            "resnet50",
            "https://example.org",
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
    assert not list(tmp_path.glob("*.part"))
    released.fetch("net", tmp_path)
    assert handler.asked == [None], "a file that is there is not fetched again"


def test_a_broken_download_is_kept_and_goes_on(server, tmp_path):
    handler, _ = server
    handler.limit = 300_000
    with pytest.raises(UserError, match="bytes are kept, the same command goes on"):
        released.fetch("net", tmp_path)
    assert not (tmp_path / "net.pth").exists()
    kept = (tmp_path / "net.pth.part").stat().st_size
    assert 0 < kept <= 300_000
    handler.limit = None
    assert released.fetch("net", tmp_path).read_bytes() == DATA
    assert handler.asked == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 7])
def test_a_part_that_was_whole_or_longer_is_finished(server, tmp_path, size):
    (tmp_path / "net.pth.part").write_bytes((DATA + b"more than it")[:size])
    (tmp_path / "net.pth.part.etag").write_text('"one"')
    assert released.fetch("net", tmp_path).read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.parametrize("etag", ['"another"', None])
def test_a_part_of_another_file_is_not_gone_on_with(server, tmp_path, etag):
    """Without a published hash nothing else would notice."""
    (tmp_path / "net.pth.part").write_bytes(b"x" * 1000)
    if etag:
        (tmp_path / "net.pth.part.etag").write_text(etag)
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
        assert entry.url.startswith("https://")
        assert set(entry.rows) <= rows
        assert re.fullmatch("[0-9a-f]{8}|", entry.md5 + entry.sha256)
    assert {
        row
        for entry in released.catalogue().values()
        for row in entry.rows
        if row.startswith("table1")
    } == {"table1/moco", "table1/pcl", "table1/pcl-v2", "table1/supervised"}


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
