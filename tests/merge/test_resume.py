"""A merge that is killed, finds no room, or meets another: what is left, and that it goes on to the same bytes."""

import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import merging
from helpers.memory import on_linux, peak_mb
from tauspan.core.errors import StoreError
from tauspan.merge.engine.engine import Account
from tauspan.merge.stream import stream
from tauspan.merge.stream.stream import Journal, WrittenTensor, execute
from tauspan.store import locked, write_tensors

BLOCK = 8
SERVER = """
import os, sys, time
sys.path.insert(0, {tests!r})
import dataclasses
from helpers import merging
from pathlib import Path
from tauspan.merge import METHODS
from tauspan.merge.stream import stream
given = METHODS["task_arithmetic"]
stream.FLUSH = 0.0
for line in sys.stdin:
    pause, resume, out, *paths = line.split("|")
    child = os.fork()
    if child:
        print(child, flush=True)
        sys.stdin.readline()  # only now may its number become free
        print(os.waitpid(child, 0)[1], flush=True)
        continue
    def combine(block, ready):
        time.sleep(float(pause))
        return given.combine(block, ready)
    method = dataclasses.replace(given, combine=combine)
    made = merging.plan(merging.recipe([Path(path.strip()) for path in paths], method), {block})
    stream.execute(made, Path(out), resume=bool(resume))
    os._exit(0)
"""


@pytest.fixture(scope="module")
def server():
    """A process that has imported everything and forks a slowed merge at each request, to be killed."""
    program = SERVER.format(tests=str(Path(__file__).parents[1]), block=BLOCK)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", program], **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Many small tensors, so that there is always something finished and something left."""
    folder, found = tmp_path_factory.mktemp("inputs"), []
    for number in range(3):
        tensors = {f"h.{layer}.w": torch.randn(5, 7) for layer in range(30)}
        found.append(folder / f"{number}.safetensors")
        write_tensors(found[-1], tensors | {"ids": torch.arange(3)})
    return found


@pytest.fixture(scope="module")
def whole(paths, tmp_path_factory):
    """What comes of it without a kill."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, run(paths, out)


@pytest.fixture(scope="module")
def half(server, paths, tmp_path_factory):
    """A work folder that a kill left."""
    out = tmp_path_factory.mktemp("half") / "out"
    assert killed(server, paths, out, 6) == signal.SIGKILL
    assert not out.exists()
    return work(out)


@pytest.fixture
def out(half, tmp_path):
    """An output whose merge was killed."""
    shutil.copytree(half, work(tmp_path / "out"))
    return tmp_path / "out"


def run(paths, out, block=BLOCK, **options):
    settings = {"options": options.pop("settings", {})}
    return execute(merging.plan(merging.recipe(paths, **settings), block), out, **options)


def work(out):
    return out.parent / f".{out.name}.merging"


def journal(out):
    """Its lines; none where there is no journal, or none any more."""
    try:
        return (work(out) / "journal.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def killed(server, paths, out, lines=None, seconds=60.0, pause=0.003):
    """Merge and kill, once the journal has so many lines or after some seconds; the exit status."""
    resume = "yes" if work(out).exists() else ""
    server.stdin.write("|".join([str(pause), resume, str(out), *map(str, paths)]) + "\n")
    child = int(server.stdout.readline())
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(journal(out)) < (lines or math.inf):
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    server.stdin.write("\n")
    return int(server.stdout.readline())


# -- kills ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("lines", [(2,), (17,), (5, 12)])
def test_a_killed_merge_resumes_to_the_same_bytes(lines, server, paths, whole, tmp_path):
    out = tmp_path / "out"
    for count in lines:
        assert killed(server, paths, out, count) == signal.SIGKILL
        assert count <= len(journal(out)) < 32
        assert not out.exists()
    report = run(paths, out, resume=True)
    assert report.resumed >= lines[-1] - 1
    assert report.digest == whole[1].digest
    assert report.tensors == whole[1].tensors  # the account too
    assert merging.sha(out) == merging.sha(whole[0])
    assert not work(out).exists()


@pytest.mark.slow
def test_twenty_kills_at_random_moments(server, paths, whole, tmp_path):
    moments = random.Random(0)
    for number in range(20):
        out = tmp_path / str(number)
        while not out.exists():
            status = killed(server, paths, out, seconds=0.6 * moments.random())
            assert out.exists() or status == signal.SIGKILL
        assert merging.sha(out) == merging.sha(whole[0])


def test_finished_tensors_are_not_merged_again(paths, out, monkeypatch):
    done = [json.loads(line)["name"] for line in journal(out)[1:]]
    seen = []
    put = stream.Merging._put
    monkeypatch.setattr(
        stream.Merging, "_put", lambda self, name, *rest: seen.append(name) or put(self, name, *rest)
    )
    run(paths, out, resume=True)
    assert done
    assert not set(done) & set(seen)
    assert len(set(done) | set(seen)) == 31


@pytest.mark.parametrize("torn", [b'{"name": "h.', b'{"name": "h.9.w", "dig\xff', b"\n"[:0]])
def test_a_torn_last_line_does_not_count(torn, paths, out, whole):
    with (work(out) / "journal.jsonl").open("ab") as file:
        file.write(torn)
    run(paths, out, resume=True)
    assert merging.sha(out) == merging.sha(whole[0])


def test_lines_after_a_torn_one_stand_alone(tmp_path):
    file, key = tmp_path / "journal.jsonl", "k"
    one, two = (WrittenTensor(name, "d", Account(1)) for name in "ab")
    Journal.start(file, key).add([one])
    with file.open("ab") as torn:
        torn.write(b'{"name": "x')
    Journal.read(file, key).add([two])
    assert Journal.read(file, key).finished == (one, two)


def test_a_run_that_died_before_its_first_byte_is_no_obstacle(paths, tmp_path):
    out = tmp_path / "out"
    work(out).mkdir()
    (work(out) / "journal.jsonl").write_text('{"form')
    run(paths, out)
    assert out.exists()
    assert not work(out).exists()


# -- what must not be mixed ----------------------------------------------------------------------------------


def test_an_unfinished_merge_is_named_with_both_ways_out(paths, out):
    with pytest.raises(StoreError, match=rf"unfinished merge.*--resume.*rm -r {re.escape(str(work(out)))}"):
        run(paths, out)
    assert len(journal(out)) >= 3


@pytest.mark.parametrize("change", ["option", "block", "input"])
def test_another_plan_does_not_resume(change, paths, out, tmp_path, request):
    options = {"option": {"settings": {"scale": 0.5}}, "block": {"block": 16}, "input": {}}[change]
    if change == "input":
        before = paths[1].stat()
        os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
        request.addfinalizer(lambda: os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns)))
    with pytest.raises(StoreError, match=r"of another plan.*start over.*rm -r"):
        run(paths, out, resume=True, **options)
    run(paths, tmp_path / "other", **options)  # another output does not mind


def test_a_living_merge_is_left_alone(paths, tmp_path):
    out = tmp_path / "out"
    work(out).mkdir()
    with locked(work(out)), pytest.raises(StoreError, match=r"another process is merging into .*out"):
        run(paths, out, resume=True)
    run(paths, out)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes().replace(b'"digest"', b'"digits"', 1)), "lacks 'digest'"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b'"entries"', b'"entry"', 1)), "jsonl is damaged"),
        (lambda file: file.write_bytes(file.read_bytes().replace(b'{"name"', b'["name"', 1)), "jsonl is damaged"),
        (lambda file: os.truncate(file.parent / "out" / "model.safetensors", 100), "model.safetensors .* has 100 bytes"),
        (lambda file: (file.parent / "out" / "model.safetensors").unlink(), "cannot be opened"),
    ],
)  # fmt: skip
def test_a_damaged_work_folder_is_named(damage, message, paths, out):
    damage(work(out) / "journal.jsonl")
    with pytest.raises(StoreError, match=message):
        run(paths, out, resume=True)
    assert not out.exists()


# -- no room -------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_with_both_numbers_and_nothing_is_left(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root and a kernel that lets it")
    try:
        for number in range(2):
            write_tensors(tmp_path / f"{number}.safetensors", {"w": torch.ones(2**15) * number})
        with pytest.raises(StoreError, match=r"takes 131,\d+ bytes and \d+,\d+ are free .*No space left"):
            run([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], disk / "out")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("reserve", [True, False])
def test_a_file_size_limit_is_no_room_either(reserve, paths, tmp_path, monkeypatch):
    if not reserve:  # as where the system cannot reserve room: it shows while writing
        monkeypatch.delattr(os, "posix_fallocate")
        monkeypatch.setattr(os, "ftruncate", lambda *_: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"no room.*free"):
            run(paths, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out").exists()
    assert not work(tmp_path / "out").exists()


# -- memory --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@on_linux
def test_memory_does_not_grow_with_the_model(tmp_path):
    peaks = []
    for size in (1, 4):
        paths = []
        for number in range(5):
            paths.append(tmp_path / f"{size}-{number}.safetensors")
            tensors = {f"h.{layer}.w": torch.randn(4096, 1024).bfloat16() for layer in range(3 * size)}
            write_tensors(paths[-1], tensors | {"emb": torch.randn(4096 * size, 1024).bfloat16()})
        prepared = "from helpers import merging\nfrom tauspan.merge.stream.stream import execute"
        work = "execute(merging.plan(merging.recipe([Path(p) for p in sys.argv[2:]])), Path(sys.argv[1]))"
        peaks.append(peak_mb(prepared, work, tmp_path / f"out{size}", *paths))
    assert peaks[1] < 500  # MB, torch included
    assert peaks[1] < peaks[0] + 40
