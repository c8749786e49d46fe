"""`twostage push`, and the push at the end of `twostage train`, refuse early what cannot work."""

import pytest


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_some_token")


def test_there_must_be_a_run(mistake):
    assert "`twostage train` makes one" in mistake("push", "none", "me/mine")


def test_the_name_must_be_one_of_the_hub(mistake, finished):
    assert "user/name" in mistake("push", finished, "me/mine/more")


def test_a_run_that_is_to_be_pushed_is_not_trained_in_vain(mistake, photos, tiny_base):
    said = mistake("train", "two-stage", photos, "--class", "x", "--base", tiny_base, "--push-to-hub", "me/mine/more")
    assert "user/name" in said
