"""`twostage train --from RUN` takes from the run what it knows, and refuses what contradicts it."""


def test_a_run_of_another_base_is_not_forked(mistake, photos, finished):
    said = mistake("train", "two-stage", photos, "--from", finished, "--base", "pocket", "-o", "fork")
    assert "--base" in said


def test_stage_1_of_a_fork_has_no_options(mistake, photos, finished):
    said = mistake("train", "two-stage", photos, "--from", finished, "--stage1.learning-rate", "1", "-o", "fork")
    assert "--stage1.learning-rate would do nothing" in said
    assert "learned another token" in mistake("train", "two-stage", photos, "--from", finished, "--class", "dog")


def test_a_fork_asks_for_nothing_that_its_origin_knows(twostage, photos, finished, tmp_path):
    options = "--stage2.steps 1 --train-batch-size 2 --num-validation-images 0 -o fork".split()
    done = twostage("train", "two-stage", "--from", finished, *options)
    assert done.exit_code == 0, done.output
    assert '"a photo of a {}' in done.stdout
    assert (tmp_path / "fork" / "README.md").is_file()
