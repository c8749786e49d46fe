"""What `push` puts on the hub, against a server that speaks the few of its endpoints that a push needs."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from safetensors.torch import load

from tests.watching import without
from twostage.display import Display
from twostage.errors import UserError
from twostage.pushing import push
from twostage.recipe import Adapter, Prior, Recipe, Sample, Stage2, Token
from twostage.run import generate, train


class Hub(ThreadingHTTPServer):
    """Takes one repository's files.

    Attributes:
        files: by name, as they were uploaded.
        made: what the repository was asked to be.
        refuse: status to answer with, where it is to fail; 0 where it is not.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.made: dict[str, Any] = {}
        self.large: dict[str, bytes] = {}
        self.refuse = 0

    @property
    def is_private(self) -> bool:
        """Older versions of the client library say it in another way."""
        return "private" in (self.made.get("visibility"), "private" if self.made.get("private") else None)


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        data = self._body()
        self.server.large[hashlib.sha256(data).hexdigest()] = data
        self._answer(200, {})

    def do_POST(self) -> None:
        body, path = self._body(), self.path.split("?")[0]
        if self.server.refuse:
            self._answer(self.server.refuse, {"error": "refused\nin two lines"})
        elif path == "/api/repos/create":
            self.server.made = json.loads(body)
            self._answer(200, {"url": f"{self.server.url}/me/mine", "name": "me/mine"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path == "/api/models/me/mine/preupload/main":
            asked = json.loads(body)["files"]
            modes = ["lfs" if file["path"].endswith(".safetensors") else "regular" for file in asked]
            files = [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                for file, mode in zip(asked, modes, strict=True)
            ]
            self._answer(200, {"files": files})
        elif path == "/me/mine.git/info/lfs/objects/batch":
            objects = [
                {**thing, "actions": {"upload": {"href": f"{self.server.url}/upload/{thing['oid']}"}}}
                for thing in json.loads(body)["objects"]
            ]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif path == "/api/models/me/mine/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
            self._answer(200, {"commitUrl": f"{self.server.url}/me/mine/commit/1", "commitOid": "1" * 40})
        else:
            self._answer(404, {"error": f"not here: {path}"})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.large[value["oid"]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_some_token")
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_pushed_run_is_the_result_and_nothing_else(finished: Path, hub: Hub) -> None:
    assert push(finished, "me/mine") == f"{hub.url}/me/mine"
    assert hub.is_private
    assert sorted(hub.files) == [
        "README.md",
        "embedding/rare.safetensors",
        "recipe.toml",
        "run.json",
        "samples/stage2-000006.png",
        *(f"samples/stage2-000006/prompt{prompt}-{seed}.png" for prompt in (1, 2) for seed in (1, 2)),
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]
    assert hub.files["unet/config.json"] == (finished / "unet" / "config.json").read_bytes()
    assert load(hub.files["embedding/rare.safetensors"])["<rare>"].shape[0] == 2


def test_nothing_of_this_machine_or_the_photos_goes_along(
    tiny_recipe: Recipe, photos: Path, tmp_path: Path, hub: Hub
) -> None:
    own = Path(shutil.copytree(photos, tmp_path / "my photos"))
    (own / "0.txt").write_text("a secret {} in my garden")
    recipe = without(
        tiny_recipe,
        data=tiny_recipe.data.model_copy(update={"photos": own, "held_out": (own / "3.png",)}),
        token=Token(placeholder="sks"),
        stage1=None,
        stage2=Stage2(steps=1, learning_rate=1e-2, batch_size=1, train="adapter"),
        adapter=Adapter(),
        prior=Prior(class_images=tmp_path / "class"),
        sample=Sample(per_prompt=0),
    )
    push(train(recipe, tmp_path / "run", display=Display()), "me/mine")
    assert "adapter/unet/adapter_model.safetensors" in hub.files
    told = b"\n".join(data for name, data in hub.files.items() if not name.endswith(".safetensors"))
    for private in (str(tmp_path), str(Path(tiny_recipe.base).parent), "my photos", "secret", "garden", "0.png"):
        assert private.encode() not in told


def test_what_was_pushed_draws_once_it_is_fetched(finished: Path, hub: Hub, tiny_base: Path, tmp_path: Path) -> None:
    push(finished, "me/mine")
    for name, data in hub.files.items():
        (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(data)
    (tmp_path / tiny_base.name).symlink_to(tiny_base)  # The hub is told the name of a base's folder alone.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        (fetched,) = generate(Path("fetched"), "a {}", count=1, num_inference_steps=2)
    (ours,) = generate(finished, "a {}", count=1, num_inference_steps=2)
    assert fetched.tobytes() == ours.tobytes()


def test_the_card_says_where_the_files_are(finished: Path, hub: Hub) -> None:
    push(finished, "mine", public=True)
    assert not hub.is_private
    text = ModelCard(hub.files["README.md"].decode()).text
    assert "repo = 'me/mine'" in text
    assert "hf download me/mine" in text


def refuse(run: Path, repo: str, match: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(UserError, match=match) as error:
        push(run, repo)
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.parametrize(
    ("status", "match"),
    [(401, "hf auth login"), (403, "may not write"), (422, "refused in two lines"), (500, "push .*finished me/mine")],
)
def test_a_hub_that_refuses_costs_nothing_but_a_line(finished: Path, hub: Hub, status: int, match: str) -> None:
    hub.refuse = status
    refuse(finished, "me/mine", match)


def test_a_hub_that_is_not_there_costs_nothing_but_a_line(
    finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refuse(finished, "me/mine", "the run is whole: try again with")


def test_mistakes_are_found_without_asking_the_hub(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", "")
    refuse(finished, "me/mine", "no Hugging Face token")
    refuse(finished, "me/mine/more", "no name for a hub repository")
    refuse(finished, "-me/mine", "no name for a hub repository")


def test_only_a_finished_run_is_pushed(finished: Path, hub: Hub, tmp_path: Path) -> None:
    refuse(tmp_path, "me/mine", "holds no run")
    run = Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "unet")))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"finished": False}))
    refuse(run, "me/mine", "not finished")
    assert hub.files == {}
