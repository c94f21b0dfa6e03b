"""Downloads from a server on this machine that can break off, ignore ranges and send the wrong file."""

import contextlib
import dataclasses
import hashlib
import http.server
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dctps_jax.data import download
from dctps_jax.data.dataset import Options
from dctps_jax.data.download import Archive, obtain
from dctps_jax.errors import DiskFull, UserError
from tests.limits import no_room

CONTENT = bytes(range(256)) * 40000


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content, start = self.server.content, 0
            self.server.ranges.append(self.headers["Range"])
            if self.headers["Range"] and self.server.knows_ranges:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if self.server.status >= 400 or start >= len(content):
                self.send_error(self.server.status if self.server.status >= 400 else 416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(self.server.claims or len(content) - start))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who is told of too many bytes hangs up
                self.wfile.write(content[start : self.server.break_at])

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.knows_ranges = CONTENT, [], True
    server.status, server.break_at, server.claims = 200, None, None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def archive(server):
    url = f"http://127.0.0.1:{server.server_port}/toy.bin"
    return Archive("toy.bin", url, "sha256", hashlib.sha256(CONTENT).hexdigest(), "toy")


@pytest.fixture
def options(tmp_path):
    return Options(tmp_path / "new/data")


def message(archive, options):
    with pytest.raises(UserError) as caught:
        obtain(archive, options)
    return str(caught.value)


def files(options):
    return sorted(path.name for path in options.dir.iterdir())


def test_download(server, archive, options):
    path = obtain(archive, options)
    assert path == options.dir / "toy.bin" and path.read_bytes() == CONTENT
    assert files(options) == ["toy.bin"] and server.ranges == [None]


def test_interrupted_download_goes_on(server, archive, options):
    server.break_at = 3_000_000
    text = message(archive, options)
    assert "3000000 of 10240000 bytes" in text and archive.url in text and "run again" in text
    assert files(options) == ["toy.bin.part"]
    server.break_at = None
    assert obtain(archive, options).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000000-"] and files(options) == ["toy.bin"]


def test_server_without_ranges(server, archive, options):
    server.break_at = 3_000_000
    message(archive, options)
    server.break_at, server.knows_ranges = None, False
    assert obtain(archive, options).read_bytes() == CONTENT


def test_part_that_was_whole_already(server, archive, options):
    options.dir.mkdir(parents=True)
    (options.dir / "toy.bin.part").write_bytes(CONTENT)
    assert obtain(archive, options).read_bytes() == CONTENT


@pytest.mark.parametrize("left_over", [b"", b"damaged", CONTENT + b"more"])
def test_wrong_checksum(server, archive, options, left_over):
    options.dir.mkdir(parents=True)
    if left_over:
        (options.dir / "toy.bin.part").write_bytes(left_over)
    else:
        server.content = b"<html>please log in</html>"
    text = message(archive, options)
    assert "sha256" in text and archive.digest in text and archive.url in text
    assert files(options) == []
    server.content = CONTENT
    assert obtain(archive, options).read_bytes() == CONTENT


def test_runs_that_download_at_once(server, archive, options):
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: obtain(archive, options), range(3)))
    assert paths == [options.dir / "toy.bin"] * 3
    assert server.ranges == [None] and files(options) == ["toy.bin"]


def test_md5_is_known_too(archive, options):
    obtain(dataclasses.replace(archive, algorithm="md5", digest=hashlib.md5(CONTENT).hexdigest()), options)


@pytest.mark.parametrize("status", [404, 503])
def test_server_error(server, archive, options, status):
    server.status = status
    text = message(archive, options)
    assert str(status) in text and f"put toy.bin from {archive.url} into {options.dir}" in text
    assert files(options) == []


def test_no_network(archive, options):
    text = message(dataclasses.replace(archive, url="http://127.0.0.1:9/toy.bin"), options)
    assert "put toy.bin from http://127.0.0.1:9/toy.bin into" in text


def test_switched_off(server, archive, options):
    text = message(archive, dataclasses.replace(options, download=False))
    assert "data.download is off" in text and str(options.dir) in text
    assert server.ranges == []


def test_folder_that_cannot_be_made(archive, tmp_path):
    (tmp_path / "file").touch()
    assert "put toy.bin" in message(archive, Options(tmp_path / "file/data"))


def test_tables_name_the_official_files():
    assert download.ARCHIVES["cifar100"].url.endswith("/cifar-100-binary.tar.gz")
    for archive in download.ARCHIVES.values():
        assert len(archive.digest) == 2 * hashlib.new(archive.algorithm).digest_size
        assert archive.url.endswith(f"/{archive.file}")


def test_full_disk_is_one_sentence_with_folder_and_bytes(archive, options):
    with no_room(3_000_000), pytest.raises(DiskFull) as caught:
        obtain(archive, options)
    text = str(caught.value)
    assert f"toy.bin needs 10,240,000 more bytes in {options.dir}, which has no room for them" in text
    assert caught.value.exit_code == 74 and files(options) == ["toy.bin.part"]
    assert obtain(archive, options).read_bytes() == CONTENT


def test_server_with_more_than_any_archive_has(server, archive, options):
    server.claims = 2**40
    assert "more than the 1,073,741,824 that are allowed" in message(archive, options)
    assert files(options) == []


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("name", ["toy.bin", "toy.bin.part"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_kept(archive, options, name, make):
    options.dir.mkdir(parents=True)
    make(options.dir / name)
    assert f"{options.dir / name} is not a regular file; remove it" in message(archive, options)
    assert files(options) == [name]
