"""Downloads from a server that drops, lies or changes: what appears is whole and right, or does not appear."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from backports import tarfile as backported_tarfile
from click.testing import CliRunner
from tests.data.server import Served, serving

from roofscale.cli import main
from roofscale.config import DATASETS, RunConfig
from roofscale.data import fetch as fetching
from roofscale.data import rid, roofline
from roofscale.data.dataset_cards import CATALOGUE
from roofscale.data.download import download
from roofscale.data.fetch import fetch
from roofscale.data.sources import open_sources
from roofscale.errors import ConfigError, DataError

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is on this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Served]:
    with serving(Served(CONTENT)) as served:
        yield served


def killed(work: Callable[[], object], ready: Callable[[], bool]) -> None:
    """Run work in a process of its own and kill it, without a chance to tidy up, once it is ready."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    until = time.monotonic() + 60
    while not ready() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    assert process.is_alive(), "it ended before it could be killed"
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_whole_in_one_go(server: Served, tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    assert download(server.url, file, pause=0) == SHA256
    assert file.read_bytes() == CONTENT
    assert names_in(file.parent) == ["file"]
    assert download(server.url, file, SHA256) == SHA256
    assert server.asked == [""]  # what is there is not asked for again


def test_a_dropped_connection_costs_only_what_was_under_way(server: Served, tmp_path: Path) -> None:
    server.drops = [300_000, 200_000]
    assert download(server.url, tmp_path / "file", SHA256, pause=0) == SHA256
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked[0] == ""
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in server.asked[1:]]
    assert 200_000 < starts[0] <= 300_000 < starts[1] <= starts[0] + 200_000
    assert server.sent < len(CONTENT) + 2 * 2**16  # at most a chunk is sent twice


def test_a_killed_download_goes_on_where_it_was(server: Served, tmp_path: Path) -> None:
    part = tmp_path / "file.part"
    server.seconds_per_chunk = 0.05
    killed(lambda: download(server.url, tmp_path / "file"), lambda: part.exists() and part.stat().st_size > 300_000)
    assert not (tmp_path / "file").exists()
    came = part.stat().st_size
    server.seconds_per_chunk = 0.0
    download(server.url, tmp_path / "file", SHA256)
    assert server.asked == ["", f"bytes={came}-"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert names_in(tmp_path) == ["file"]


def test_killed_between_the_last_byte_and_the_checksum(server: Served, tmp_path: Path) -> None:
    told = {"url": server.url, "version": server.etag, "total": len(CONTENT)}
    (tmp_path / "file.part").write_bytes(CONTENT)
    (tmp_path / "file.part.json").write_text(json.dumps(told))
    assert download(server.url, tmp_path / "file", SHA256, pause=0) == SHA256
    assert server.sent == 0


def test_a_server_that_cannot_go_on_is_asked_for_the_whole(server: Served, tmp_path: Path) -> None:
    server.ranges, server.drops = False, [300_000, 700_000]
    assert download(server.url, tmp_path / "file", SHA256, pause=0) == SHA256
    assert len(server.asked) == 3


@pytest.mark.parametrize("ranges", [True, False])
def test_gives_up_when_attempts_bring_nothing_new(server: Served, tmp_path: Path, ranges: bool) -> None:
    server.ranges, server.always_drops, server.drops = ranges, 0, [300_000]
    with pytest.raises(DataError, match="5 attempts in a row brought nothing new"):
        download(server.url, tmp_path / "file", pause=0)
    assert len(server.asked) == 6
    assert not (tmp_path / "file").exists()


def test_no_server_at_all(tmp_path: Path) -> None:
    with serving(Served(b"")) as gone:
        url = gone.url
    with pytest.raises(DataError, match="5 attempts in a row"):
        download(url, tmp_path / "file", pause=0)


def test_passing_errors_are_waited_out_and_lasting_ones_named(server: Served, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert download(server.url, tmp_path / "file", pause=0) == SHA256
    server.statuses = [404]
    with pytest.raises(DataError, match=r"HTTP 404.*--url"):
        download(server.url, tmp_path / "other", pause=0)


def test_wrong_bytes_are_named_and_removed(server: Served, tmp_path: Path) -> None:
    server.content = b"x" * len(CONTENT)
    with pytest.raises(DataError, match=f"expected {SHA256}"):
        download(server.url, tmp_path / "file", SHA256, pause=0)
    assert "file" not in names_in(tmp_path)
    assert "file.part" not in names_in(tmp_path)
    server.content = CONTENT
    assert download(server.url, tmp_path / "file", SHA256, pause=0) == SHA256


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_two_versions_are_never_mixed(server: Served, tmp_path: Path, ignores_if_range: bool) -> None:
    server.drops, server.always_drops = [300_000], 0
    with pytest.raises(DataError):
        download(server.url, tmp_path / "file", pause=0)
    server.always_drops, server.ignores_if_range = None, ignores_if_range
    other = CONTENT[::-1] + b"longer" if ignores_if_range else CONTENT[::-1]
    server.content, server.etag = other, '"two"'
    download(server.url, tmp_path / "file", pause=0)
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_part_of_another_address_is_not_gone_on_with(server: Served, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"of another file")
    (tmp_path / "file.part.json").write_text(json.dumps({"url": "http://x/y", "version": "", "total": 99}))
    assert download(server.url, tmp_path / "file", pause=0) == SHA256
    assert server.asked == [""]


def test_a_web_page_is_no_file(server: Served, tmp_path: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DataError, match="gives a web page"):
        download(server.url, tmp_path / "file", pause=0)
    assert names_in(tmp_path) == []


def test_a_full_disk_is_named_and_what_came_is_kept(
    server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.FileIO):
        def write(self, data: object) -> int:
            if self.tell() > 200_000:
                raise OSError(28, "No space left on device")
            return super().write(data)  # type: ignore[arg-type]

    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda file, mode="r", **how: Full(file, "a") if mode in ("ab", "wb") else opened(file, mode, **how),
    )
    with pytest.raises(DataError, match=r"file\.part: cannot be written .*No space left"):
        download(server.url, tmp_path / "file", pause=0)
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert download(server.url, tmp_path / "file", SHA256, pause=0) == SHA256
    assert server.asked[1] != ""


@pytest.mark.parametrize(
    ("url", "sha256"), [("ftp://somewhere/x", ""), ("/a/file", ""), ("http://127.0.0.1/x", "12ab")]
)
def test_addresses_and_checksums_that_are_none(url: str, sha256: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected"):
        download(url, tmp_path / "file", sha256)


def zipped(folder: Path, more: dict[str, bytes] | None = None) -> bytes:
    """A zip archive of a folder, under the folder's own name, with further members."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
        for name, content in (more or {}).items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(folder: Path, member: tarfile.TarInfo | None = None, mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode, format=tarfile.GNU_FORMAT) as archive:  # one header a member
        archive.add(folder, folder.name)
        if member is not None:
            archive.addfile(member)
    return packed.getvalue()


@pytest.fixture
def release(generated: Path) -> Path:
    """RID as its release nests it."""
    return rid.find(generated) or generated


def fetched(server: Served, root: Path, name: str = "rid", sha256: str = "") -> fetching.FetchResult:
    return fetch(name, root, server.url, sha256, pause=0)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_fetched_data_set_is_there_and_says_where_it_came_from(
    server: Served, tmp_path: Path, release: Path, pack: Callable[[Path], bytes]
) -> None:
    server.content, server.drops = pack(release), [5000, 7000]
    digest = hashlib.sha256(server.content).hexdigest()
    found = fetched(server, tmp_path, sha256=digest)
    assert found.folder == tmp_path / "rid"
    assert found.checked == f"the SHA-256 given ({digest})"
    split = open_sources(RunConfig(max_samples=0, data_root=str(tmp_path)), tmp_path)["rid"]
    assert split.train.read(0).image_HWC.shape == (96, 96, 3)
    note = json.loads((tmp_path / "rid" / "fetched.json").read_text())
    assert (note["url"], note["sha256"]) == (server.url, digest)
    assert len(server.asked) == 3
    again = fetched(server, tmp_path)
    assert (again.folder, again.url, len(server.asked)) == (found.folder, "", 3)
    assert [file.suffix for file in (tmp_path / ".downloads").iterdir()] == [".lock"]


def test_a_matlab_file_is_taken_as_it_is_and_one_cut_short_is_not(
    server: Served, tmp_path: Path, generated: Path
) -> None:
    whole = (generated / "roofline" / "imdb.mat").read_bytes()
    server.content, server.length_told = whole[: len(whole) // 2], False  # an end that nobody told of
    with pytest.raises(DataError, match=r"imdb\.mat: broken file .*Download it again"):
        fetched(server, tmp_path, "roofline")
    assert not (tmp_path / "roofline").exists()
    server.content = whole
    fetched(server, tmp_path, "roofline")
    assert len(roofline.open_all(tmp_path / "roofline")) == 20


def test_the_releases_own_checksums_are_compared(server: Served, tmp_path: Path, release: Path) -> None:
    files = [file for file in sorted(release.rglob("*")) if file.is_file()]
    lines = [f"{hashlib.sha256(f.read_bytes()).hexdigest()} *{f.relative_to(release.parent)}" for f in files]
    server.content = zipped(release, {"Checksums.sha256": "\n".join(lines).encode()})
    assert fetched(server, tmp_path / "one").checked == f"the release's own checksums of {len(files)} files"
    lines[3] = f"{'0' * 64} *{files[3].relative_to(release.parent)}"
    server.content = zipped(release, {"Checksums.sha256": "\n".join(lines).encode()})
    with pytest.raises(DataError, match=rf"{files[3].name}: missing or damaged"):
        fetched(server, tmp_path / "two")
    assert not (tmp_path / "two" / "rid").exists()


def outward_members() -> dict[str, Callable[[Path], bytes]]:
    link = zipfile.ZipInfo("RID_dataset/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16

    def with_link(folder: Path) -> bytes:
        packed = io.BytesIO(zipped(folder))
        with zipfile.ZipFile(packed, "a") as archive:
            archive.writestr(link, "/etc")
        return packed.getvalue()

    up, out = tarfile.TarInfo("../../outside"), tarfile.TarInfo("RID_dataset/link")
    out.type, out.linkname = tarfile.SYMTYPE, "/etc"
    return {
        "zip, path": lambda folder: zipped(folder, {"../../outside": b"x"}),
        "zip, absolute": lambda folder: zipped(folder, {"/tmp/outside": b"x"}),
        "zip, link": with_link,
        "tar, path": lambda folder: tarred(folder, up),
        "tar, link": lambda folder: tarred(folder, out),
    }


@pytest.mark.parametrize("kind", outward_members())
def test_archives_cannot_write_outside_their_folder(server: Served, tmp_path: Path, release: Path, kind: str) -> None:
    root = tmp_path / "deep" / "root"
    server.content = outward_members()[kind](release)
    with pytest.raises(DataError, match="would lie outside the folder"):
        fetched(server, root)
    assert not list(tmp_path.rglob("outside"))
    assert names_in(root) == [".downloads"]


@pytest.mark.parametrize("kind", ["tar, path", "tar, link"])
def test_the_backport_for_an_older_python_is_as_strict(
    server: Served, tmp_path: Path, release: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roofscale.data.fetch.tarfile", backported_tarfile)
    test_archives_cannot_write_outside_their_folder(server, tmp_path, release, kind)


def damaged(archive: bytes) -> bytes:
    middle = len(archive) // 2
    return archive[:middle] + bytes(64) + archive[middle + 64 :]


def damaged_header(archive: bytes) -> bytes:
    """The name of a member in the middle of a plain tar is changed, so that its header's sum is wrong."""
    at = archive.index(b"RID_dataset/masks_segments_reviewed/9.png")
    return archive[:at] + b"r" + archive[at + 1 :]


def plain_tar(folder: Path) -> bytes:
    return tarred(folder, mode="w")


BROKEN: dict[str, tuple[Callable[[Path], bytes], Callable[[bytes], bytes]]] = {
    "zip, damaged": (zipped, damaged),
    "zip, cut short": (zipped, lambda archive: archive[: len(archive) // 2]),
    "gzip, damaged": (tarred, damaged),
    "gzip, cut short": (tarred, lambda archive: archive[: len(archive) // 2]),
    "xz, damaged": (lambda folder: tarred(folder, mode="w:xz"), damaged),
    "bz2, damaged": (lambda folder: tarred(folder, mode="w:bz2"), damaged),
    "tar, damaged": (plain_tar, damaged_header),
    "tar, cut within a member": (plain_tar, lambda archive: archive[: len(archive) // 2]),
    "tar, cut before its end": (
        plain_tar,
        lambda archive: archive.rstrip(b"\0") + bytes(-len(archive.rstrip(b"\0")) % 512),
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_archive_is_removed_so_that_the_next_attempt_starts_anew(
    server: Served, tmp_path: Path, release: Path, kind: str
) -> None:
    pack, damage = BROKEN[kind]
    whole = pack(release)
    server.content = damage(whole)
    with pytest.raises(DataError, match="broken archive"):
        fetched(server, tmp_path)
    assert names_in(tmp_path) == [".downloads"]
    server.content, server.etag = whole, '"two"'
    assert fetched(server, tmp_path).folder.is_dir()


def test_something_else_than_the_data_set_does_not_appear(server: Served, tmp_path: Path, release: Path) -> None:
    server.content = zipped(release)
    with pytest.raises(DataError, match=r"holds no airs; expected folders train/image"):
        fetched(server, tmp_path, "airs")
    server.content, server.etag = b"Rar!\x1a\x07\x01\x00" + CONTENT, '"two"'
    with pytest.raises(DataError, match="neither a zip or tar archive"):
        fetch("airs", tmp_path, f"{server.url}2", pause=0)
    assert names_in(tmp_path) == [".downloads"]
    (tmp_path / "rid").mkdir()
    with pytest.raises(ConfigError, match="there is something here that is no rid"):
        fetched(server, tmp_path)


def test_killed_while_unpacking_leaves_nothing_that_looks_whole_and_no_second_download(
    server: Served, tmp_path: Path, release: Path
) -> None:
    server.content = zipped(release)

    def stuck_at_the_end() -> None:
        fetching._verify_checksums = lambda folder: time.sleep(60)  # type: ignore[assignment, return-value]
        fetched(server, tmp_path)

    killed(stuck_at_the_end, lambda: bool(list(tmp_path.glob(".rid.partial-*/RID_dataset/masks_*/9.png"))))
    assert not (tmp_path / "rid").exists()
    assert fetched(server, tmp_path).folder.is_dir()
    assert server.asked == [""]
    assert names_in(tmp_path) == [".downloads", "rid"]


def test_two_at_once_do_not_write_into_one_file(server: Served, tmp_path: Path, release: Path) -> None:
    server.content, server.seconds_per_chunk = zipped(release), 0.5
    process = multiprocessing.get_context("fork").Process(target=lambda: fetched(server, tmp_path))
    process.start()
    while not list(tmp_path.glob(".downloads/*.part")) and process.is_alive():
        time.sleep(0.01)
    with pytest.raises(DataError, match="another process fetches this now"):
        fetched(server, tmp_path)
    server.seconds_per_chunk = 0.0
    process.join()
    assert process.exitcode == 0


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["data", *words])
    return done.exit_code, done.stdout, done.stderr


def test_command_line_fetches_from_a_mirror(server: Served, tmp_path: Path, release: Path) -> None:
    server.content = zipped(release)
    digest = hashlib.sha256(server.content).hexdigest()
    words = ("fetch", "rid", str(tmp_path), "--url", server.url, "--sha256", digest)
    code, said, _ = run(*words, "--dry-run")
    assert (code, server.asked, list(tmp_path.iterdir())) == (0, [], [])
    assert "would download" in said
    assert CATALOGUE["rid"].licence in said
    code, out, told = run(*words, "--json")
    found = json.loads(out)
    assert (code, found["fetched"], found["sha256"], found["folder"]) == (0, True, digest, str(tmp_path / "rid"))
    assert found["card"]["landing"] in told
    code, said, _ = run(*words)
    assert (code, "It is there already" in said) == (0, True)


def test_command_line_says_where_to_get_what_has_no_direct_source(tmp_path: Path) -> None:
    code, said, error = run("fetch", "airs", str(tmp_path))
    assert code == 2
    assert CATALOGUE["airs"].landing in error
    assert "kaggle.com" in error
    assert CATALOGUE["airs"].citation in said
    assert list(tmp_path.iterdir()) == []
    assert "Did you mean 'rid'" in run("fetch", "rdi", str(tmp_path))[2]


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_data_set_is_named_with_its_source_and_licence(name: str, tmp_path: Path) -> None:
    card = CATALOGUE[name]
    with pytest.raises(ConfigError) as caught:
        open_sources(RunConfig(datasets=(name,)), tmp_path)
    for fact in (card.landing, card.licence, str(card.year), f"roofscale data fetch {name} {tmp_path}"):
        assert fact in str(caught.value)
    assert "FOLDER" not in str(caught.value)


def test_every_card_is_complete_and_says_what_is_not_verified() -> None:
    assert tuple(CATALOGUE) == DATASETS
    for name, card in CATALOGUE.items():
        assert card.name == name
        assert card.landing.startswith("https://")
        assert card.direct == "" or card.direct.startswith("https://")
        assert card.unverified
        assert "https://" in card.citation
        assert str(card.year) in card.citation
