"""A download is whole and checked, or nothing is kept; a server on loopback."""

import hashlib
import multiprocessing
import os
import pathlib
import signal
import threading
import time

import pytest

from nfnets_tf.download import cached_path, fetch
from nfnets_tf.errors import RunError, UserError
from tests.support.file_server import serve

CONTENT = bytes(range(256)) * 4096  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server():
  with serve(CONTENT) as server:
    yield server


def files(folder):
  """Names of what is in a cache, but for locks."""
  paths = pathlib.Path(folder).rglob("*")
  return [p.name for p in paths if p.is_file() and p.suffix != ".lock"]


@pytest.mark.parametrize("name", ["F0.npz", "slow", "moved", "chunked"])
@pytest.mark.parametrize("sha256", [None, SHA256.upper()])
def test_a_whole_file_is_downloaded_once(name, sha256, server, tmp_path):
  url, folder = f"{server.url}/{name}", str(tmp_path / "new" / "cache")
  before = len(server.requests)
  path = fetch(url, folder, sha256=sha256, timeout=5)
  assert pathlib.Path(path).read_bytes() == CONTENT
  assert os.path.basename(path) == name and files(folder) == [name]
  asked = len(server.requests)
  assert asked - before == (2 if name == "moved" else 1)
  assert fetch(url, folder, sha256=sha256) == path
  assert fetch(f"{url}#sha256={SHA256}", folder) == path
  assert len(server.requests) == asked


@pytest.mark.parametrize(
  "name, error, words",
  [
    ("cut", RunError, "was cut off after 524,288 of 1,048,576 bytes"),
    ("silent", RunError, "sent nothing for 0.5 seconds"),
    (
      "absent",
      UserError,
      "was not delivered: 404 Not Found; check the address",
    ),
    ("broken", RunError, "was not delivered: 503"),
    ("page", UserError, "is a web page"),
    ("empty", RunError, "delivered an empty file"),
    ("endless", UserError, "comes without its length"),
  ],
)
def test_nothing_is_kept_of_a_failure(name, error, words, server, tmp_path):
  with pytest.raises(error, match=words):
    fetch(f"{server.url}/{name}", str(tmp_path), timeout=0.5)
  assert files(tmp_path) == []


def test_without_a_network_a_sentence_says_what_to_do(tmp_path):
  with serve(b"") as closed:
    pass
  for url in (f"{closed.url}/x", "http://nowhere.invalid/x"):
    with pytest.raises(
      RunError, match="cannot be downloaded .*give the path of"
    ):
      fetch(url, str(tmp_path), timeout=2)
  for url in ("http://127.0.0.1:x/x", "http:///x", "http://a b/x"):
    with pytest.raises((RunError, UserError), match="x"):
      fetch(url, str(tmp_path), timeout=2)


def test_checksums(server, tmp_path):
  url, folder = f"{server.url}/whole", str(tmp_path)
  with pytest.raises(
    UserError, match=f"has the SHA-256 {SHA256}, expected 0000"
  ):
    fetch(url, folder, sha256="0" * 64)
  assert files(folder) == []
  with pytest.raises(UserError, match="is no SHA-256; expected 64"):
    fetch(url, folder, sha256="0" * 32)
  # A copy that was damaged later is replaced.
  path = fetch(f"{server.url}/endless", folder, sha256=SHA256)
  pathlib.Path(path).write_bytes(CONTENT[:-1])
  fetch(f"{server.url}/endless", folder, sha256=SHA256)
  assert pathlib.Path(path).read_bytes() == CONTENT


def test_other_addresses_have_other_copies(server, tmp_path):
  urls = [f"{server.url}/{folder}/F0.npz" for folder in "ab"]
  first, second = (fetch(url, str(tmp_path)) for url in urls)
  assert first != second


def test_a_file_has_a_name(server, tmp_path):
  for end in ("", ".", "..", "..?a=b/c"):
    path = fetch(f"{server.url}/{end}", str(tmp_path))
    assert pathlib.Path(path).read_bytes() == CONTENT


def test_two_at_once_download_once(server, tmp_path):
  before, paths = len(server.requests), []
  url = f"{server.url}/both/slow"
  threads = [
    threading.Thread(target=lambda: paths.append(fetch(url, str(tmp_path))))
    for _ in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(set(paths)) == 1 and len(paths) == 2
  assert len(server.requests) == before + 1
  assert pathlib.Path(paths[0]).read_bytes() == CONTENT


def test_a_killed_download_leaves_nothing_that_counts(server, tmp_path):
  url, folder = f"{server.url}/silent", str(tmp_path)
  process = multiprocessing.get_context("fork").Process(
    target=fetch, args=(url, folder)
  )
  process.start()
  while not any(p.stat().st_size for p in tmp_path.rglob("*.partial")):
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  assert not os.path.exists(cached_path(url, folder))
  server.released.set()
  path = fetch(url, folder)
  assert pathlib.Path(path).read_bytes() == CONTENT
  assert files(folder) == ["silent"]


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
  (tmp_path / "file").write_text("")
  url = f"{server.url}/whole"
  for folder in (tmp_path / "file" / "cache", "/proc/cache"):
    with pytest.raises(RunError, match="cannot be written .*another folder"):
      fetch(url, str(folder))
  with pytest.raises(UserError, match="a local folder, not to 'gs://"):
    fetch(url, "gs://bucket")
  # A copy in a folder that is only read needs nothing else.
  path = fetch(url, str(tmp_path))
  os.remove(f"{path}.lock")
  os.chmod(os.path.dirname(path), 0o500)
  assert fetch(url, str(tmp_path)) == path
  assert not os.path.exists(f"{path}.lock")
  os.chmod(os.path.dirname(path), 0o700)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_full_disk_is_named(server, tmp_path, monkeypatch):
  real = open

  def full(path, mode):
    return real("/dev/full" if path.endswith(".partial") else path, mode)

  monkeypatch.setattr("builtins.open", full)
  with pytest.raises(RunError, match="cannot be written .No space left"):
    fetch(f"{server.url}/whole", str(tmp_path))


def test_progress_is_shown(server, tmp_path, capsys, caplog):
  url = f"{server.url}/slow"
  fetch(url, str(tmp_path / "a"))
  assert "1.05M/1.05M" in capsys.readouterr().err
  with caplog.at_level("INFO", "nfnets_tf"):
    fetch(url, str(tmp_path / "b"))
  assert f"Downloading {url} (1 MB)." in caplog.text
  assert "1.05M" not in capsys.readouterr().err
