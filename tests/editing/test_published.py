"""`push_to_hub`, by the hub's real client to a hub on this machine."""

import json
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import tiny
from helpers.hub import TOKEN, Hub, hub
from helpers.runs import encoder, points, texts
from tauspan.core.errors import PickleRefusedError, StoreError, UsageError
from tauspan.core.notices import heard
from tauspan.editing import apply, load, push_to_hub, save
from tauspan.merge import merge_files
from tauspan.store import write_tensors
from tauspan.train import Settings, finetune
from tauspan.vector import TaskVector

huggingface_hub = pytest.importorskip("huggingface_hub")
CARD = "README.md"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub() as made:
        yield made


def card_of(server: Hub, repo: str) -> Any:
    """The uploaded card, read and checked as the hub's own library does."""
    text = server.files[repo][CARD].decode()
    assert server.checked[-1] == text  # the client had it validated before it sent anything
    card = huggingface_hub.ModelCard(text)
    data = huggingface_hub.ModelCardData(**card.data.to_dict())
    assert data.library_name in ("tauspan", "transformers")
    assert "tauspan" in data.tags
    return card


def whole(server: Hub, repo: str, folder: Path) -> Path:
    """A repository as a folder, as the hub gives it back."""
    for name, content in server.files[repo].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def trained(folder: Path | None = None) -> TaskVector:
    return finetune(encoder(), points(), Settings("linear", max_steps=2, lr=0.05), out=folder).task_vector


def test_a_vector_is_uploaded_with_a_card_that_says_what_it_is(server: Hub, tmp_path: Path) -> None:
    vector = trained()
    address = vector.push_to_hub("me/points", private=True)
    assert address == f"{server.address}/me/points/commit/{1:040x}"
    assert server.made[0].get("visibility", server.made[0].get("private")) in ("private", True)
    assert sorted(server.files["me/points"]) == [CARD, "vector.safetensors"]
    back = TaskVector.from_pretrained(whole(server, "me/points", tmp_path / "back"))
    assert tiny.same_bits(back.deltas, vector.deltas)
    card = card_of(server, "me/points")
    assert card.data.library_name == "tauspan"
    for said in ("| regime | linear |", "| task | points |", "| linearised at | logits |", vector.base[:12],
                 "max_steps: 2", "hf_hub_download('me/points', 'vector.safetensors')", "lr: 0.05"):  # fmt: skip
        assert said in card.text, said
    sent = {path.split("?")[0]: token for _, path, token in server.asked}
    assert sent["/api/models/me/points/commit/main"] == f"Bearer {TOKEN}"
    assert [token for path, token in sent.items() if path.startswith("/lfs/")] == [
        None
    ]  # another machine's, in truth


def test_only_an_id_of_the_hub_is_a_cards_base(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    bases = {
        "org/model": "org/model",
        "org/model@main": "org/model",
        "models/mine": None,
        "./a/b": None,
        "minilm": None,
    }
    for number, (base, told) in enumerate(bases.items()):
        vector = TaskVector({"w": torch.ones(2)}, "b", "standard", "a", {"base_id": base})
        vector.push_to_hub(f"me/v{number}")
        assert card_of(server, f"me/v{number}").data.base_model == told


@pytest.mark.parametrize("given", ["vector", "file", "folder"])
def test_a_vector_is_uploaded_from_memory_and_from_disk(server: Hub, tmp_path: Path, given: str) -> None:
    vector = trained(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("private")
    what = {"vector": vector, "file": tmp_path / "run" / "vector.safetensors", "folder": tmp_path / "run"}[
        given
    ]
    push_to_hub(what, "me/v", message="the first", revision="dev")
    files = server.files["me/v"]
    assert sorted(files) == [CARD, *(["log.jsonl"] if given == "folder" else []), "vector.safetensors"]
    assert files["vector.safetensors"] == (tmp_path / "run" / "vector.safetensors").read_bytes()
    assert server.commits == [("dev", {"summary": "the first", "description": ""})]
    push_to_hub(what, "me/v")  # again: the repository is there


@pytest.mark.parametrize("regime", ["standard", "linear"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_edited_model_is_uploaded_without_its_bases_place_here(
    server: Hub, tmp_path: Path, regime: Any, on_disk: bool
) -> None:
    base = load(tiny.save_bert(tmp_path / "base", tiny.bert()))
    tau = finetune(base, texts(), Settings(regime, max_steps=1)).task_vector
    edited = apply(base, tau, 0.5)
    save(edited, tmp_path / "edited")
    push_to_hub(tmp_path / "edited" if on_disk else edited, "me/edited")
    files = server.files["me/edited"]
    written = (file for file in (tmp_path / "edited").rglob("*") if file.is_file())
    on_the_disk = {file.relative_to(tmp_path / "edited").as_posix() for file in written}
    assert {*on_the_disk, CARD} == set(files)
    reference = json.loads(files["tauspan.json"])
    assert "path" not in reference
    card = card_of(server, "me/edited")
    assert card.data.library_name == ("tauspan" if regime == "linear" else "transformers")
    # a list or a table, by the length of the base's path
    assert re.search(rf"(- regime: |\| regime \| ){regime}\b", card.text)
    assert "ts.load(snapshot_download('me/edited'))" in card.text
    assert ("AutoModel.from_pretrained('me/edited')" in card.text) == (regime == "standard")
    back = load(whole(server, "me/edited", tmp_path / "back"), base=tmp_path / "base")
    batch = base.encode(["a b", "c"])
    assert torch.equal(back(batch), edited(batch))


def test_a_merge_is_uploaded_with_its_own_card(server: Hub, tmp_path: Path) -> None:
    for number in range(2):
        write_tensors(tmp_path / f"m{number}" / "model.safetensors", {"w": torch.full((2,), float(number))})
    recipe = {"method": "linear", "models": [str(tmp_path / f"m{n}") for n in range(2)]}
    merge_files(recipe, tmp_path / "out")
    with heard() as told:
        push_to_hub(tmp_path / "out", "me/merged")
    assert any("says where the inputs of the merge lie on this machine" in text for text in told)
    for name, content in server.files["me/merged"].items():
        assert content == (tmp_path / "out" / name).read_bytes()
    assert "merge" in card_of(server, "me/merged").data.tags


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "hf_another", "hf_another\n"])
def test_what_the_hub_refuses_is_told_without_the_token(server: Hub, token: str | None) -> None:
    server.refusing = 403
    with pytest.raises(StoreError, match=r"me/v on the hub could not be written: .*hf auth login") as info:
        tiny.vector(w=[1.0]).push_to_hub("me/v", token=token)
    shown = "".join(traceback.format_exception(info.value))
    assert TOKEN not in shown
    assert "hf_another" not in "".join(traceback.format_exception_only(info.value))
    assert info.value.__context__ is info.value.__cause__ is None
    assert server.files == {}


def test_a_name_that_is_none_is_refused_by_the_client(server: Hub) -> None:
    with pytest.raises(StoreError, match=r"a b/c/d on the hub could not be written: HFValidationError"):
        tiny.vector(w=[1.0]).push_to_hub("a b/c/d")


def test_nothing_else_is_uploaded(server: Hub, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "none", tmp_path / "empty"):
        with pytest.raises(StoreError, match="is neither the file or folder of a task vector"):
            push_to_hub(path, "me/v")
    base, tuned = nn.Linear(2, 2), nn.Linear(2, 2)
    save(apply(base, TaskVector.from_checkpoints(base, tuned), regime="posthoc"), tmp_path / "model")
    (tmp_path / "secret").write_text("x")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match=r"link is a link, and what it leads to would be uploaded"):
        push_to_hub(tmp_path / "model", "me/v")
    (tmp_path / "model" / "link").unlink()
    (tmp_path / "model" / "weights.bin").write_bytes(b"x")
    with pytest.raises(PickleRefusedError):
        push_to_hub(tmp_path / "model", "me/v")
    assert server.files == {}
