"""`twostage compare` answers mistakes before anything runs, and ends with a table and a report."""

from __future__ import annotations

import pytest

from twostage.pocket import pocket_folder


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "Missing argument"),
        ("two-stag --photos {photos} --class x", "did you mean two-stage?"),
        ("two-stage --class x", "no photos: name their folder"),
        ("two-stage --photos none --class x", "there is no folder of photos none"),
        ("two-stage --subject none", "must be DIR:CLASS or DIR:CLASS:HELD_OUT"),
        ("two-stage --photos {photos}", "what is on the photos"),
        ("two-stage two-stage --photos {photos} --class x", "2 recipes are called 'two-stage'"),
        ("two-stage --photos {photos} --class x --vary stage3.steps=1", "there is no option stage3.steps"),
        ("two-stage --photos {photos} --class x --vary stage2.steps=-1", "--stage2.steps -1: must be at least 1"),
        ("two-stage --photos {photos} --class x --set rank=4", "adapter.rank would do nothing"),
        ("two-stage --photos {photos} --class x --seeds 0,x", "--seeds 0,x"),
        ("two-stage --photos {photos} --class x --budget hours=1", "must be recipe, steps=N or seconds=S"),
        ("two-stage --photos {photos} --class x --budget steps=1", "a budget of 1 steps is too small"),
        ("two-stage --photos {photos} --class x --engine slurm", "'local' or 'ray'"),
        ("two-stage --photos {photos} --class x --address auto", "add --engine ray"),
        ("two-stage --photos {photos} --class x --workers 0", "must be at least 1"),
        ("two-stage --photos {photos} --class x --evaluation.num-class-images 1", "must be at least 2"),
        ("two-stage --photos {photos} --class x --evaluation.suite nosuch", "nosuch"),
        ("two-stage --photos {photos} --class x --held-out none.png", "there is no held-out photo or folder none.png"),
        ("two-stage --photos {photos} --class x --base nosuch", "base 'nosuch' is no folder here"),
        ("two-stage --photos {photos} --class x -o memory://x", "workers cannot share"),
    ],
)
def test_a_mistake_gets_one_line(mistake, photos, arguments, expected):
    assert expected in mistake("compare", *arguments.replace("{photos}", str(photos)).split())


def test_all_mistakes_come_together(twostage):
    result = twostage("compare", "two-stag", "dreambooth", "--photos", "none", "--class", "x")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 2
    result = twostage("compare", "two-stage", "--vary", "x=1", "--set", "y=2", "--seeds", "z")
    assert len(result.stderr.splitlines()) == 4


def test_without_ray_its_engine_says_what_to_install(mistake, photos):
    try:
        import ray  # noqa: F401
    except ImportError:
        said = mistake("compare", "two-stage", "--photos", photos, "--class", "x", "--engine", "ray")
        assert "pip install 'twostage[cluster]'" in said
    else:
        pytest.skip("Ray is installed")


def test_a_comparison_ends_with_a_table_and_a_report(twostage, tmp_path, photos, tiny_base):
    (tmp_path / "suite.txt").write_text("a {} on the beach\n")
    options = {
        "photos": photos,
        "class": "backpack",
        "base": tiny_base,
        "budget": "steps=3",
        "workers": 1,
        "evaluation.suite": "suite.txt",
        "evaluation.images-per-prompt": 1,
        "evaluation.num-class-images": 2,
        "evaluation.num-unrelated-images": 0,
        "evaluation.num-inference-steps": 2,
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    encoders = [f"dino={pocket_folder('vit')}", f"clip={pocket_folder('clip')}", "dinov2=none"]
    flags += [word for encoder in encoders for word in ("--evaluation.encoders", encoder)]
    result = twostage("compare", "textual-inversion", *flags)
    assert result.exit_code == 0, result.output
    assert "textual" in result.stdout
    root = tmp_path / "comparisons" / photos.name
    assert f"the report: {root / 'report.html'}" in result.stdout
    assert (root / "report.html").is_file()
    assert (root / "runs" / "textual-inversion" / photos.name / "seed-0" / "evaluation.json").is_file()
