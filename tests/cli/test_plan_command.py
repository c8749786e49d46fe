"""`twostage plan`, as a user runs it; on the bundled base, which is quick."""

import pytest

from cli.main import app


def _plan(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        app(["plan", *arguments])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_it_prints_each_phase_and_cards_without_photos_or_a_class(capsys):
    code, out, _ = _plan(capsys, "two-stage")
    assert code in (0, None)
    lines = [line.split("\t")[0] for line in out.splitlines()]
    for phase in ("encode", "stage 1", "stage 1, samples", "stage 2", "stage 2, save", "RTX 3060, 12 GB"):
        assert phase in lines
    assert "on disk" in out
    assert "host memory" in out


def test_with_a_card_it_marks_the_rung_that_fits(capsys):
    code, out, _ = _plan(capsys, "dreambooth-lora", "--vram", "8GB")
    assert code in (0, None)
    assert "the recipe as it is" in out
    assert "<- yes" in out


def test_options_of_the_recipe_show_their_effect(capsys):
    def peak(*flags):
        out = _plan(capsys, "dreambooth-lora", "--sample.per-prompt", "0", *flags)[1]
        (line,) = (line for line in out.splitlines() if line.startswith("stage 2\t"))
        return float(line.split("\t")[1])

    assert peak("--train-batch-size", "16") > peak("--train-batch-size", "1")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--vram", "lots"), "'lots' is no size of memory"),
        (("--base", "sdx1"), "did you mean sdxl"),
        (("--base", "nobody/knows"), "is no folder here"),
    ],
)
def test_mistakes_end_in_one_line(capsys, arguments, says):
    code, _, err = _plan(capsys, "dreambooth-lora", *arguments)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_card_too_small_for_anything_gets_the_smallest_that_would_do(capsys):
    code, out, err = _plan(capsys, "textual-inversion", "--vram", "1GB")
    assert code == 2
    assert "smallest card that would do has 2GB" in err
    assert "the recipe as it is" in out
