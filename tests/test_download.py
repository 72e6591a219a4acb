"""Where the images come from: sources in order, broken downloads, digits, the real archive, and both stages."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import PARAMS_FILE
from crafted_archive import FOLDER, md5_of, members, packed, unpacked
from sklearn.datasets import load_digits

from onecycle import data, download, paths
from onecycle.data import Dataset, load
from onecycle.download import Patience, cifar10, digits
from onecycle.errors import UserError

REPO = Path(__file__).resolve().parent.parent
CONTENTS = members(rows=60)
MD5 = md5_of(CONTENTS)
ARCHIVE = packed(CONTENTS)
HURRIED = Patience(attempts=3, pause=0.01, timeout=(2.0, 2.0), slowest=0.0)


# a server that misbehaves as told


class Server:
    """Serves `content`; each request is answered by the next of `answers`, the last one for ever."""

    def __init__(self, *answers: Callable[[Answer], None], content: bytes = ARCHIVE) -> None:
        self.answers = list(answers) or [whole]
        self.content = content
        self.validators = {"ETag": '"one"'}
        self.asked: list[dict[str, str]] = []
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with server._lock:
                    server.asked.append(dict(self.headers))
                    answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client may hang up
                    answer(Answer(self, server))

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}/cifar-10-python.tar.gz"

    def encrypt(self, key: Path, certificate: Path) -> None:
        """From now on speak TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.url = self.url.replace("http://", "https://")

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class Answer:
    """One request being answered."""

    def __init__(self, handler: BaseHTTPRequestHandler, server: Server) -> None:
        self.handler, self.server = handler, server

    def range(self) -> int:
        """First byte asked for, if the client's part is still a part of what is served."""
        wanted = self.handler.headers.get("Range", "bytes=0-")
        known = self.handler.headers.get("If-Range") in self.server.validators.values()
        return int(wanted.removeprefix("bytes=").removesuffix("-")) if known else 0

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.handler.send_response(status)
        for key, value in headers.items():
            self.handler.send_header(key, value)
        self.handler.end_headers()

    def content(self, start: int, stop: int | None = None, status: int | None = None) -> None:
        """Announce all from `start` on, send up to `stop`."""
        content = self.server.content
        headers = {"Content-Length": str(len(content) - start), "Content-Type": "application/gzip"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(status or (206 if start else 200), headers | self.server.validators)
        self.handler.wfile.write(content[start:stop])


def whole(answer: Answer) -> None:
    answer.content(answer.range())


def cut_off(answer: Answer) -> None:
    start = answer.range()
    answer.content(start, start + len(answer.server.content) // 3)


def stalling(answer: Answer) -> None:
    cut_off(answer)
    time.sleep(1.0)


def said_to_be_encoded(answer: Answer) -> None:
    answer.server.validators = {"Content-Encoding": "x-gzip"}
    answer.content(0)


def ignoring_range(answer: Answer) -> None:
    answer.content(0)


def another_part(answer: Answer) -> None:
    answer.content(answer.range() + 1)


def nothing_behind(answer: Answer) -> None:
    answer.handler.send_error(416)


def unavailable(answer: Answer) -> None:
    answer.handler.send_error(503)


def not_found(answer: Answer) -> None:
    answer.handler.send_error(404)


def html_page(answer: Answer) -> None:
    page = b"<!doctype html><title>Sign in</title>" * 1000
    answer.head(200, {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(page))})
    answer.handler.wfile.write(page)


def silent(answer: Answer) -> None:
    answer.head(200, {"Content-Length": "1000"})
    time.sleep(1.0)


def slow(answer: Answer) -> None:
    start = answer.range()
    answer.content(start, start)
    for place in range(start, len(answer.server.content), 2**16):
        answer.handler.wfile.write(answer.server.content[place : place + 2**16])
        time.sleep(0.1)


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as servers:

        def start(*answers: Callable[[Answer], None], content: bytes = ARCHIVE) -> Server:
            server = Server(*answers, content=content)
            servers.callback(server.close)
            return server

        yield start


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("expected") / "archive.tar.gz"
    path.write_bytes(ARCHIVE)
    return cifar10(str(path), path.parent, md5=MD5)


def fetch(cache: Path, *servers: Server, patience: Patience = HURRIED) -> Dataset:
    return cifar10("", cache, sources=tuple(server.url for server in servers), md5=MD5, patience=patience)


# files and folders


@pytest.mark.parametrize("name", ["plain", "with space", "with#hash", "ümlaut", "100%"])
def test_archive_and_folder_are_read_where_they_lie(tmp_path: Path, name: str, expected: Dataset) -> None:
    folder = tmp_path / name
    unpacked(CONTENTS, folder / FOLDER)
    archive = folder / "cifar-10-python.tar.gz"
    archive.write_bytes(ARCHIVE)
    cache = tmp_path / "cache"

    for mirror in (archive, folder, folder / FOLDER):
        addresses = [
            str(mirror),
            mirror.as_uri(),
            mirror.as_uri().replace("file://", "file://localhost"),
            f"file://{mirror}",
        ]
        for address in addresses:
            assert cifar10(address, cache, md5=MD5).digest == expected.digest
    assert not cache.exists()


def test_path_is_relative_to_the_workspace_also_in_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Dataset
) -> None:
    experiment = tmp_path / ".dvc" / "tmp" / "exps" / "tmp123"
    (experiment / ".dvc").mkdir(parents=True)
    (tmp_path / "archive.tar.gz").write_bytes(ARCHIVE)
    monkeypatch.chdir(experiment)
    assert cifar10("archive.tar.gz", tmp_path / "cache", md5=MD5).digest == expected.digest


@pytest.mark.parametrize(
    ("mirror", "reason"),
    [
        ("/nowhere/cifar-10-python.tar.gz", "/nowhere/cifar-10-python.tar.gz, which does not exist"),
        ("file:///nowhere", "/nowhere, which does not exist"),
        ("file://nowhere/archive.tar.gz", "must be a path or begin with file:///"),
        ("ftp://me:secret@example.org/archive.tar.gz", "must be a path or begin with file:///"),
    ],
)
def test_mirror_that_names_nothing_is_refused(tmp_path: Path, mirror: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^CIFAR10_MIRROR .*{reason}.*make demo") as refusal:
        cifar10(mirror, tmp_path / "cache", md5=MD5)
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_file_that_is_not_the_archive_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar.gz"
    path.write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"archive\.tar\.gz, which is no whole \.tar\.gz"):
        cifar10(str(path), tmp_path, md5=MD5)
    assert path.read_bytes() == b"<html>"


# servers


def test_archive_is_fetched_once_and_kept(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    server = serve()
    assert fetch(tmp_path, server).digest == expected.digest
    assert fetch(tmp_path, server).digest == expected.digest
    assert cifar10(server.url, tmp_path, md5=MD5).digest == expected.digest
    assert len(server.asked) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"cifar-10-python.tar.gz", "lock"}


def test_kept_archive_that_was_damaged_is_fetched_again(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(ARCHIVE[:-5000])
    assert fetch(tmp_path, serve()).digest == expected.digest
    assert (tmp_path / "cifar-10-python.tar.gz").read_bytes() == ARCHIVE


def test_mirror_wins_alone(tmp_path: Path, serve: Serve) -> None:
    mirror, source = serve(not_found), serve()
    with pytest.raises(UserError):
        cifar10(mirror.url, tmp_path, sources=(source.url,), md5=MD5, patience=HURRIED)
    assert not source.asked


def test_sources_are_asked_in_order(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    first, second, third = serve(not_found), serve(), serve()
    assert fetch(tmp_path, first, second, third).digest == expected.digest
    assert [len(server.asked) for server in (first, second, third)] == [1, 1, 0]


def test_download_that_is_cut_off_goes_on_where_it_stopped(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    server = serve(cut_off, cut_off, whole)

    assert fetch(tmp_path, server).digest == expected.digest

    third = len(ARCHIVE) // 3
    assert "Range" not in server.asked[0]
    assert [asked.get("If-Range") for asked in server.asked] == [None, '"one"', '"one"']
    starts = [int(asked["Range"].removeprefix("bytes=").removesuffix("-")) for asked in server.asked[1:]]
    assert third - 2**16 < starts[0] <= third < starts[1] <= 2 * third


def test_another_process_goes_on_where_one_was_cut_off(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    server = serve(cut_off, not_found, whole)
    with pytest.raises(UserError, match="404"):
        fetch(tmp_path, server)
    assert fetch(tmp_path, server).digest == expected.digest
    assert "Range" in server.asked[-1]


def test_part_of_what_was_replaced_on_the_server_is_not_continued(
    tmp_path: Path, serve: Serve, expected: Dataset
) -> None:
    def replaced(answer: Answer) -> None:
        answer.server.content, answer.server.validators = ARCHIVE, {"ETag": '"two"'}
        whole(answer)

    server = serve(cut_off, replaced, content=ARCHIVE[:10] + bytes(len(ARCHIVE)))
    assert fetch(tmp_path, server).digest == expected.digest
    assert len(server.asked) == 2


def test_date_identifies_a_file_without_a_strong_etag(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    server = serve(cut_off, whole)
    server.validators = {"ETag": 'W/"weak"', "Last-Modified": "Thu, 04 Jun 2009 00:00:00 GMT"}
    assert fetch(tmp_path, server).digest == expected.digest
    assert server.asked[1]["If-Range"] == "Thu, 04 Jun 2009 00:00:00 GMT"


def test_file_nobody_can_identify_is_started_again(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    server = serve(cut_off, whole)
    server.validators = {}
    assert fetch(tmp_path, server).digest == expected.digest
    assert "Range" not in server.asked[1]


@pytest.mark.parametrize("answer", [ignoring_range, another_part, nothing_behind], ids=lambda answer: answer.__name__)
def test_server_that_cannot_go_on_starts_again(
    tmp_path: Path, serve: Serve, expected: Dataset, answer: Callable[[Answer], None]
) -> None:
    server = serve(cut_off, answer, whole)
    assert fetch(tmp_path, server).digest == expected.digest
    assert "Range" in server.asked[1] and "Range" not in (server.asked[2] if len(server.asked) > 2 else {})


def test_progress_keeps_a_bad_connection_alive(tmp_path: Path, serve: Serve) -> None:
    big = ARCHIVE[:10] + os.urandom(8 * 2**20)  # no archive; it is the number of requests that counts here
    server = serve(cut_off, cut_off, cut_off, cut_off, cut_off, cut_off, whole, content=big)
    with pytest.raises(UserError, match=r"no whole \.tar\.gz"):
        fetch(tmp_path, server, patience=Patience(attempts=1, pause=0.0))
    assert len(server.asked) > 2


def test_server_that_only_ever_starts_again_is_given_up(tmp_path: Path, serve: Serve) -> None:
    def short(answer: Answer) -> None:
        answer.content(0, 2**20)

    def long(answer: Answer) -> None:
        answer.content(0, 3 * 2**20)

    server = serve(*[short, long] * 10, content=ARCHIVE[:10] + os.urandom(4 * 2**20))
    server.validators = {}
    with pytest.raises(UserError, match=r"broke off after .* bytes, 3 times"):
        fetch(tmp_path, server)
    assert len(server.asked) < 8


def test_busy_server_is_asked_again_after_a_pause(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    server = serve(unavailable, unavailable, whole)
    began = time.monotonic()
    assert fetch(tmp_path, server, patience=Patience(pause=0.2)).digest == expected.digest
    assert time.monotonic() - began > 0.2 + 0.4
    assert len(server.asked) == 3


def test_offline_is_said_in_one_sentence_with_what_to_do(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    busy = serve(unavailable)  # first, or it might get the port of the other
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}/archive.tar.gz"

    with pytest.raises(UserError) as refusal:
        cifar10("", tmp_path, sources=(dead, busy.url), md5=MD5, patience=HURRIED)

    assert len(busy.asked) == HURRIED.attempts
    sentence = str(refusal.value)
    assert sentence.startswith(
        "CIFAR-10 could not be fetched (127.0.0.1 cannot be reached, 3 times; "
        "127.0.0.1 answered 503 Service Unavailable, 3 times); "
    )
    assert "CIFAR10_MIRROR" in sentence and "`make demo`" in sentence and "\n" not in sentence
    assert "trying again in 0.02 s" in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "received"), [(silent, "0"), (stalling, r"\d+,\d{3}")], ids=["silent", "stalling"])
def test_server_that_goes_silent_is_said_to_break_off(
    tmp_path: Path, serve: Serve, answer: Callable[[Answer], None], received: str
) -> None:
    with pytest.raises(UserError, match=rf"127\.0\.0\.1 broke off after {received} bytes, 2 times"):
        fetch(tmp_path, serve(answer), patience=Patience(attempts=2, pause=0.0, timeout=(2.0, 0.2)))


def test_archive_said_to_be_encoded_as_it_is_by_itself_is_kept_as_sent(
    tmp_path: Path, serve: Serve, expected: Dataset
) -> None:
    assert fetch(tmp_path, serve(said_to_be_encoded)).digest == expected.digest


def test_handshake_that_fails_is_tried_again_and_a_certificate_nobody_trusts_is_not(
    tmp_path: Path, serve: Serve
) -> None:
    plain, stranger = serve(), serve()
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=stranger"
    subprocess.run([*made.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    stranger.encrypt(key, certificate)
    plain.url = plain.url.replace("http://", "https://")
    with pytest.raises(UserError) as refusal:
        fetch(tmp_path / "cache", plain, stranger)
    assert "(127.0.0.1 cannot be reached by TLS, 3 times; " in str(refusal.value)
    assert "; 127.0.0.1 has no certificate that is trusted here); " in str(refusal.value)


def test_certificates_that_are_gone_are_told_of(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a variable still names those of an environment that was removed."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "gone.pem"))
    server = serve()
    server.url = server.url.replace("http://", "https://")
    with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be asked \(.*certificate.*gone\.pem\)"):
        fetch(tmp_path, server)


def test_html_page_is_refused_at_its_first_bytes(tmp_path: Path, serve: Serve) -> None:
    server = serve(html_page)
    with pytest.raises(UserError, match=r"127\.0\.0\.1 answered with text/html, not with a \.tar\.gz"):
        fetch(tmp_path, server)
    assert len(server.asked) == 1
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()


def test_archive_with_another_md5_is_refused_and_not_kept(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    forged = packed(CONTENTS | {"test_batch": CONTENTS["data_batch_1"]})
    with pytest.raises(UserError, match=r"127\.0\.0\.1 test_batch has MD5"):
        fetch(tmp_path, serve(content=forged))
    assert not (tmp_path / "cifar-10-python.tar.gz").exists()
    assert fetch(tmp_path, serve(content=forged), serve()).digest == expected.digest


def test_endless_download_is_given_up(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "LARGEST_ARCHIVE", len(ARCHIVE) // 2)
    with pytest.raises(UserError, match="sends more than"):
        fetch(tmp_path, serve())


def test_slow_source_is_left_for_another(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    slower, other = serve(slow), serve()
    patience = Patience(slowest=1e9, trial=0.15)
    assert fetch(tmp_path, slower, other, patience=patience).digest == expected.digest
    assert len(other.asked) == 1


def test_slow_source_is_better_than_none(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    slower, dead = serve(slow), serve(not_found)
    patience = Patience(slowest=1e9, trial=0.15)
    assert fetch(tmp_path, slower, dead, patience=patience).digest == expected.digest
    assert "Range" in slower.asked[1]  # what it had sent is not thrown away


def test_malformed_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be asked"):
        cifar10("http://[::1/archive.tar.gz", tmp_path, md5=MD5, patience=HURRIED)


def test_password_and_token_in_an_address_are_never_shown_or_stored(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(unavailable, cut_off, not_found)
    mirror = server.url.replace("http://", "http://me:secret@") + "?token=secret"
    with pytest.raises(UserError) as refusal:
        cifar10(mirror, tmp_path, md5=MD5, patience=HURRIED)
    assert "secret" not in str(refusal.value) + "".join(capsys.readouterr())
    assert any("Authorization" in asked for asked in server.asked)
    assert all(b"secret" not in path.read_bytes() and "secret" not in path.name for path in tmp_path.iterdir())


def test_two_at_once_fetch_once(tmp_path: Path, serve: Serve, expected: Dataset) -> None:
    server = serve(slow)
    with ThreadPoolExecutor(2) as threads:
        digests = {done.digest for done in threads.map(lambda _: fetch(tmp_path, server), range(2))}
    assert digests == {expected.digest}
    assert len(server.asked) == 1


def test_progress_is_plain_lines_without_a_terminal(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(tmp_path, serve())
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 10
    assert lines[-1].startswith("download: 127.0.0.1 100 % of ")
    assert not any("\x1b" in line for line in lines)


# digits


def test_digits_are_scikit_learns_enlarged_in_grey() -> None:
    dataset = digits()

    assert dataset.train_images.shape == (1437, 32, 32, 3) and dataset.test_images.shape == (360, 32, 32, 3)
    assert dataset.train_images.dtype == np.uint8 and dataset.train_labels.dtype == np.int64
    assert dataset.classes == tuple("0123456789")
    everything = np.concatenate([dataset.train_images, dataset.test_images])
    assert np.all(everything == everything[:, ::4, ::4, :1].repeat(4, axis=1).repeat(4, axis=2))
    values, labels = load_digits(return_X_y=True)
    ours = {
        (image[::4, ::4, 0].tobytes(), int(label))
        for image, label in zip(everything, np.concatenate([dataset.train_labels, dataset.test_labels]), strict=True)
    }
    rounded = np.floor(values * 255 / 16 + 0.5).astype(np.uint8)
    assert ours == {(image.tobytes(), int(label)) for image, label in zip(rounded, labels, strict=True)}


def test_digits_are_split_in_proportion_and_always_alike() -> None:
    dataset = digits()
    share = np.bincount(dataset.train_labels) / np.bincount(load_digits().target)
    assert share == pytest.approx(np.full(10, 1437 / 1797), abs=0.01)
    assert dataset.digest == "a3763c58e984c3e30b66ee139f592d3f1f38b76af955ba01d3d7e680c5d1e860"


# the real archive

real = pytest.mark.skipif(
    not os.environ.get("CIFAR10_MIRROR"), reason="CIFAR10_MIRROR is not set; it names a copy of the real archive"
)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return cifar10(os.environ["CIFAR10_MIRROR"], tmp_path_factory.mktemp("cache"))


@real
def test_real_archive_is_cifar10(cifar: Dataset) -> None:
    assert cifar.train_images.shape == (50_000, 32, 32, 3) and cifar.test_images.shape == (10_000, 32, 32, 3)
    assert np.bincount(cifar.train_labels).tolist() == [5000] * 10
    assert np.bincount(cifar.test_labels).tolist() == [1000] * 10
    assert cifar.classes[:3] == ("airplane", "automobile", "bird")
    assert cifar.train_labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    assert cifar.digest == "d366936195f8ec4baa341a36d59144912e93b2a4558d98a60ca2d646089ab28d"


@real
def test_real_statistics_are_the_known_ones(cifar: Dataset) -> None:
    mean, std = data.channel_statistics(cifar.train_images)
    assert [round(value, 8) for value in mean] == [0.49139968, 0.48215841, 0.44653091]
    assert [round(value, 8) for value in std] == [0.24703223, 0.24348513, 0.26158784]


# the stages, as processes


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with the shipped code and params.yaml, set to digits."""
    folder = tmp_path / "work space #1"
    for part in ("src", "stages"):
        shutil.copytree(REPO / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (folder / ".dvc").mkdir()
    params = PARAMS_FILE.read_text(encoding="utf-8").replace("dataset: cifar10", "dataset: digits")
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    return folder


def run_stage(name: str, workspace: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=workspace,
        env=os.environ | {"ONECYCLE_TRACKING": "journal"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_stages_write_the_data_set_its_statistics_and_a_picture(workspace: Path) -> None:
    params = workspace / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("limit: null", "limit: 600"), encoding="utf-8")

    for name in ("download", "stats"):
        done = run_stage(name, workspace)
        assert (done.returncode, done.stderr) == (0, "")

    dataset = load(workspace / paths.DATASET)
    assert dataset.digest == data.fewer(digits(), 600, seed=0).digest
    stats = json.loads((workspace / paths.STATS_JSON).read_text(encoding="utf-8"))
    assert list(stats) == ["images", "mean", "std"] and stats["images"] == 600
    mean, std = data.channel_statistics(dataset.train_images)
    assert list(stats["mean"].values()) == mean.tolist()
    assert list(stats["std"].values()) == std.tolist()
    assert (workspace / paths.SAMPLES_PNG).read_bytes().startswith(b"\x89PNG")


def test_failed_download_exits_2_and_leaves_earlier_data_intact(workspace: Path) -> None:
    assert run_stage("download", workspace).returncode == 0
    before = {path.name: path.read_bytes() for path in (workspace / paths.DATASET).iterdir()}
    params = workspace / "params.yaml"
    params.write_text(
        params.read_text(encoding="utf-8").replace("dataset: digits", "dataset: cifar10"), encoding="utf-8"
    )
    (workspace / "page.tar.gz").write_bytes(b"<!doctype html>")

    done = run_stage("download", workspace, CIFAR10_MIRROR="page.tar.gz")

    assert done.returncode == 2
    assert done.stderr.startswith("error: CIFAR10_MIRROR names ") and done.stderr.count("\n") == 1
    assert {path.name: path.read_bytes() for path in (workspace / paths.DATASET).iterdir()} == before
    assert list((workspace / paths.DATASET.parent).iterdir()) == [workspace / paths.DATASET]
