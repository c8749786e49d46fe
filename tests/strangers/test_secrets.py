"""No token, key or password is written to a log, a run folder, a comparison, a report, a card or an export."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.strangers.conftest import refuse
from twostage.comparing.carry_out import Outcomes, _note
from twostage.comparing.engine import Ended
from twostage.comparing.place import Place, find_place
from twostage.comparing.request import Machine
from twostage.display import Display, terminal_display
from twostage.errors import UserError, without_secrets
from twostage.families import load_base
from twostage.pocket import pocket_folder

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "GITHUB_TOKEN", "MY_PASSWORD",
)  # fmt: skip
CANARY = "canary0"
LOGIN = f"s3://key:{CANARY}+/url@bucket/x"
RECIPE = """
base = {base}
token.initializer = "red"
stage1 = {{steps = 2, learning_rate = 5e-3}}
stage2 = {{steps = 2, learning_rate = 1e-3}}
sample = {{prompts = ["a photo of a {{}}"], per_prompt = 1, num_inference_steps = 2}}
checkpoints = {{every = 1}}
"""
# Each command in the same process, which has begun as the command does.
SCRIPT = """
import json, sys
from cli.main import app
for words in json.loads(sys.argv[1]):
    sys.argv = ["twostage", *words, "-o", sys.argv[-1]] if words[0] == "compare" else ["twostage", *words]
    try:
        app(words)
    except SystemExit as ended:
        assert not ended.code, words
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, photos: Path) -> Path:
    """All that the commands leave, and said.txt with what they said, where every place that libraries look for a login
    in has one."""
    folder, home = tmp_path_factory.mktemp("left"), tmp_path_factory.mktemp("home")
    (home / ".netrc").write_text(f"machine huggingface.co login me password {CANARY}-netrc\n")
    (home / "hub").mkdir()
    (home / "hub" / "token").write_text(f"{CANARY}-file")
    (folder / "tiny.toml").write_text(RECIPE.format(base=json.dumps(str(tiny_base))))
    (folder / "suite.txt").write_text("a {} on the beach\n")
    few = (
        "--evaluation.suite suite.txt --evaluation.images-per-prompt 1 --evaluation.num-class-images 2 "
        "--evaluation.num-unrelated-images 0 --evaluation.num-inference-steps 2"
    )
    sources = (f"dino={pocket_folder('vit')}", "dinov2=none", "clip=none")
    encoders = " ".join(f"--evaluation.encoders {source}" for source in sources)
    run = f"compared/runs/tiny/{photos.name}/seed-0"
    commands = [
        f"compare tiny.toml --photos {photos} --class backpack -o compared --workers 1 {few} {encoders}",
        f'generate {run} "a photo of a {{}}" -n 1 --steps 2',
        f"export {run} --to delta",
    ]
    environment = {**os.environ, "HOME": str(home), "HF_HOME": str(home / "hub"), "PYTHONPATH": str(ROOT)}
    environment |= {name: f"{CANARY}-{name}" for name in VARIABLES} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([shlex.split(command) for command in commands]), LOGIN],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    return folder


def test_no_command_leaves_or_says_a_secret(left: Path) -> None:
    files = [path for path in left.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert kinds >= {".toml", ".json", ".jsonl", ".md", ".html", ".csv", ".png", ".safetensors", ".txt"}
    assert {"run.json", "README.md", "metrics.jsonl", "evaluation.json", "compare.json"} <= {f.name for f in files}
    assert (left / "said.txt").read_text().strip()
    found = [str(path.relative_to(left)) for path in files if CANARY.encode() in path.read_bytes()]
    assert found == []


def test_the_command_that_a_comparison_notes_has_its_address_without_the_login(left: Path) -> None:
    noted = json.loads((left / "compared" / "compare.json").read_text())["command"]
    assert noted.endswith("-o s3://***@bucket/x")
    assert "s3://***@bucket/x" in (left / "compared" / "report.html").read_text()


def test_a_login_in_an_address_is_in_no_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        find_place(f"nosuch://key:{CANARY}@bucket/x")
    assert "nosuch://***@bucket/x" in str(error.value) and CANARY not in str(error.value)
    for address in (f"https://me:{CANARY}@host/a/b", f"https://{CANARY}@host/a/b", f"https://h/a?token={CANARY}&b=1"):
        assert CANARY not in refuse(lambda address=address: load_base(address), "no folder here")
    terminal_display().say(f"note: {LOGIN}")
    assert CANARY not in capsys.readouterr().err
    with pytest.raises(ValueError, match="is of a Ray cluster") as wrong:
        Machine(address=LOGIN)
    assert CANARY not in str(UserError(str(wrong.value)))


def test_what_a_variable_keeps_secret_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{CANARY}-{name}")
        assert CANARY not in str(UserError(f"the hub said: Bearer {CANARY}-{name} is expired"))
    monkeypatch.setenv("A_KEY", "short")
    monkeypatch.setenv("A_KEY_FILE", str(ROOT))
    assert without_secrets(f"short {ROOT}") == f"short {ROOT}"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("s3://k:s/e+c@b/x", "s3://***@b/x"),
        ("https://tok@h/x y://a:b@c", "https://***@h/x y://***@c"),
        ("https://h/x?X-Amz-Signature=ab&y=1", "https://h/x?X-Amz-Signature=***&y=1"),
        ("ray://host:10001", "ray://host:10001"),
        ("a@b.c and s3://bucket/name", "a@b.c and s3://bucket/name"),
    ],
)
def test_only_logins_are_taken_out(text: str, safe: str) -> None:
    assert without_secrets(text) == safe


def test_a_failure_of_a_comparison_is_written_down_without_secrets(tmp_path: Path) -> None:
    """What nobody foresaw, too, of which the whole traceback is kept."""
    outcomes = Outcomes()
    for name, error in (("one", RuntimeError(f"no answer from {LOGIN}")), ("two", UserError(f"no {LOGIN}"))):
        _note(Ended(name, None, error), outcomes, Place(str(tmp_path)), Display())
    assert "***" in outcomes.failed["one"] and CANARY not in str(outcomes.failed)
    (written,) = tmp_path.rglob("*.txt")
    assert "no answer from s3://***@bucket/x" in written.read_text() and CANARY not in written.read_text()
