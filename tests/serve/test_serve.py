"""The server over a real run and a real socket: what it answers, and everything that it refuses."""

import contextlib
import dataclasses
import http.client
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.small_runs import recipe as recipe
from tauspan.core.errors import UsageError
from tauspan.experiments import figures
from tauspan.experiments.run import Recipe, run
from tauspan.experiments.run.finished import finished_run
from tauspan.serve.app import application, serve
from tauspan.serve.guard import LONGEST, Bucket
from tauspan.serve.mixer import FOLDER, Mixer
from tauspan.vector import TaskVector

TOKEN = "secret"


@pytest.fixture(scope="module")
def folder(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run."""
    out: Path = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw", lambda *given: [])
        run(dataclasses.replace(recipe, seeds=(0,)), out)
    return out


class Client:
    """A server in a thread, and raw requests to it."""

    def __init__(self, mixer: Mixer) -> None:
        import socket

        self.mixer = mixer
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        guard: Any = application(mixer, self.port, TOKEN)
        guard.bucket = Bucket(rate=1e9, size=1e9)
        config = uvicorn.Config(guard, log_level="critical", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.listening]}, daemon=True
        )
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def ask(
        self, method: str, path: str, body: Any = None, **changed: str | None
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text; headers are changed by name (`_` for `-`), None leaves one out.

        A server that refuses without reading the body may close before its answer is read, which resets the connection:
        then the question is asked again.
        """
        for _ in range(4):
            with contextlib.suppress(ConnectionResetError):
                return self._once(method, path, body, **changed)
        return self._once(method, path, body, **changed)

    def _once(
        self, method: str, path: str, body: Any = None, **changed: str | None
    ) -> tuple[int, dict[str, str], str]:
        own = f"127.0.0.1:{self.port}"
        headers: dict[str, str | None] = {
            "Host": own, "Origin": f"http://{own}", "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/json",
        }  # fmt: skip
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True)
            for name, value in headers.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            if body is not None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before the end
                    connection.send(body)
            answer = connection.getresponse()
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read().decode(),
            )
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        status, _, text = self.ask("POST", path, body)
        return status, json.loads(text)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.listening.close()


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    made = Client(Mixer(finished_run(folder), write=True))
    yield made
    made.close()


def mix(client: Client, value: float = 0.4) -> dict[str, Any]:
    return {
        "regime": client.mixer.run.recipe.regimes[0],
        "seed": client.mixer.run.recipe.seeds[0],
        "coefficients": dict.fromkeys(client.mixer.tasks, value),
    }


# -- what it answers ---------------------------------------------------------------------------------------------


def test_the_page_says_what_it_may_load_and_holds_nothing_of_the_run(client: Client) -> None:
    for path in ("/", "/page.js", "/page.css"):
        status, headers, text = client.ask("GET", path, Authorization=None, Origin=None)
        assert status == 200
        assert TOKEN not in text
        assert not any(task in text for task in client.mixer.tasks)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers or "uvicorn" in headers["server"]


def test_it_says_what_the_run_holds(client: Client) -> None:
    status, _, text = client.ask("GET", "/api/run")
    about = json.loads(text)
    assert status == 200
    assert about["tasks"] == client.mixer.tasks
    assert about["write"] is True


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_mix_of_any_regime_has_the_accuracy_that_the_library_gives(client: Client, split: Any) -> None:
    for regime in client.mixer.run.recipe.regimes:
        asked = {**mix(client), "regime": regime}
        status, found = client.post("/api/evaluate", {**asked, "split": split})
        assert status == 200, found
        expected = client.mixer._asked(client.mixer.mix(asked)).evaluate(asked["coefficients"], split=split)
        assert {row["task"]: row["accuracy"] for row in found["rows"]} == {
            **expected.accuracy, "mean": expected.mean.accuracy if expected.mean else None,
        }  # fmt: skip


def test_a_mix_is_written_once(client: Client, folder: Path) -> None:
    body = {**mix(client), "kind": "vector", "name": "good-mix"}
    assert client.post("/api/write", body) == (200, {"written": "good-mix"})
    written = TaskVector.from_pretrained(folder / FOLDER / "good-mix")
    vectors = client.mixer._asked(client.mixer.mix(mix(client))).vectors.values()
    expected = sum((vector * 0.4 for vector in list(vectors)[1:]), next(iter(vectors)) * 0.4)
    assert (written - expected).norm() <= 1e-6 * expected.norm()
    status, found = client.post("/api/write", body)
    assert status == 409
    assert "good-mix" in found["error"]


def test_progress_is_told(client: Client) -> None:
    status, headers, text = client.ask("GET", "/api/progress")
    now = json.loads(text.removeprefix("data: "))
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert now["done"] == now["stages"] > 0


# -- what it refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": None}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Authorization": None}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": "Bearer \xff"}, 401),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_a_stranger_is_refused(client: Client, changed: dict[str, Any], status: int) -> None:
    found, headers, text = client.ask("POST", "/api/evaluate", mix(client), **changed)
    assert found == status, text
    assert "access-control-allow-origin" not in headers


def test_a_host_with_the_name_of_this_machine_is_the_same(client: Client) -> None:
    host = f"localhost:{client.port}"
    assert client.ask("GET", "/api/run", Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/page.js/../app.py",
        "/app.py",
        "//etc/passwd",
        "/mixes/x",
    ],
)
def test_no_path_leads_to_a_file(client: Client, path: str) -> None:
    status, _, text = client.ask("GET", path)
    assert status == 404
    assert "root:" not in text
    assert "import" not in text


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/b", "", "A", "-a", "a" * 65, "a\n", "con .", None, 3, ["a"]]
)
def test_a_name_is_no_path(client: Client, folder: Path, name: Any) -> None:
    before = sorted(folder.rglob("*"))
    status, found = client.post("/api/write", {**mix(client), "kind": "vector", "name": name})
    assert status == 400
    assert "name" in found["error"]
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"3", b'"text"', b"\xff\xfe", b'{"a": NaN}', b'{"regime": 1, "regime": 2}',
        b"[" * 30000, b'{"regime": "\\ud800"}', b'{"\\ud800": 1}', b"1" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_mix_is_refused_in_words(client: Client, body: bytes) -> None:
    status, found = client.post("/api/evaluate", body)
    assert status == 400
    assert found["error"]


def test_a_body_too_long_is_refused(client: Client) -> None:
    status, _, text = client.ask("POST", "/api/evaluate", b" " * (LONGEST + 1))
    assert status == 413, text


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/api/run"), ("DELETE", "/"), ("PUT", "/api/write"), ("GET", "/api/write")]
)
def test_other_methods_are_refused(client: Client, method: str, path: str) -> None:
    assert client.ask(method, path)[0] in (401, 405)


def test_too_many_requests_are_refused() -> None:
    now = [0.0]
    bucket = Bucket(rate=1, size=2, clock=lambda: now[0])
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    now[0] = 1.0
    assert [bucket.take() for _ in range(2)] == [True, False]


def test_without_permission_nothing_is_written(folder: Path, client: Client) -> None:
    reader = Mixer(client.mixer.run)
    with pytest.raises(UsageError, match="--write"):
        reader.write(reader.mix(mix(client)), "vector", "other")
    assert not (folder / FOLDER / "other").exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=400)
@given(data=st.data())
def test_no_body_of_any_form_makes_the_server_fail(client: Client, data: st.DataObject) -> None:
    """Each key of a right body is kept, left out, or another value of JSON; also further keys."""
    path = data.draw(st.sampled_from(["/api/evaluate", "/api/write"]))
    right = {**mix(client), "split": "validation", "kind": "vector", "name": "../never"}
    body = {key: data.draw(st.just(value) | JSON) for key, value in right.items() if data.draw(st.booleans())}
    body |= data.draw(st.dictionaries(st.text(max_size=8), JSON, max_size=1))
    plain = json.dumps(body, allow_nan=True).encode("utf-8", "surrogatepass")
    status, _, text = client.ask("POST", path, plain)
    assert status in (200, 400, 409), text


# -- its life ----------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said(client: Client) -> None:
    with pytest.raises(UsageError, match=f"port {client.port}"):
        serve(client.mixer, client.port)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminal", "interrupt"])
def test_it_ends_with_its_terminal(folder: Path, how: str) -> None:
    child, terminal = pty.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests that run under nohup inherit that it is ignored
        os.execv(sys.executable, [sys.executable, "-m", "tauspan", "serve", str(folder)])
    text = b""
    while b"Ctrl-C" not in text:
        text += os.read(terminal, 1000)
    assert b"http://127.0.0.1:" in text
    if how == "interrupt":
        os.kill(child, signal.SIGINT)
    else:
        os.close(terminal)
    for _ in range(200):
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the server outlived its terminal")


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tauspan", "serve", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--recipe FILE" in done.stderr
