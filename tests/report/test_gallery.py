"""The pictures of a report: which, how large, and in how much memory."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tracemalloc

from PIL import Image

from tests.report.comparisons import large_picture, write_comparison, write_run
from twostage.report import gallery
from twostage.report.gallery import MAX_PANELS, Gallery, choose, data_uri, evenly
from twostage.report.pooling import BASE, Pool
from twostage.report.reading import read_runs


def _opened(uri):
    head, data = uri.split(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_rows_are_the_strategies_the_best_first_and_the_base_last(comparison):
    gallery = choose(Pool(read_runs([comparison])[0]))
    assert [(panel.subject, panel.seed) for panel in gallery.panels][:3] == [
        ("backpack", 0),
        ("backpack", 1),
        ("dog", 0),
    ]
    names = [row.name for row in gallery.panels[0].rows]
    assert names[0] == "two-stage" and names[-1] == BASE and len(names) == 6
    assert [len(row.shots) for row in gallery.panels[0].rows] == [8] * 6
    assert [shot.alt for shot in gallery.panels[0].photos][-1] == "backpack: held-out photo 1"


def test_the_same_picture_is_embedded_once(comparison):
    gallery = choose(Pool(read_runs([comparison])[0]))
    stored = dict(json.loads(line) for line in gallery.stored())
    whole = [uri for uri in stored.values() if not uri.startswith("=")]
    assert len(set(whole)) == len(whole) < len(stored)  # the base's pictures are those of both seeds
    assert all(stored[uri[1:]].startswith("data:") for uri in stored.values() if uri.startswith("="))


def test_large_photos_are_made_small_and_lose_place_and_camera(tmp_path):
    large_picture(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    assert b"Secret camera" in content
    picture = _opened(data_uri(content, 256))
    assert max(picture.size) == 256 and not picture.getexif()


def test_more_pictures_are_smaller_ones(tmp_path):
    few, many = Gallery(), Gallery()
    many.files = {str(number): tmp_path for number in range(800)}
    assert few.side == 512 and 160 <= many.side < 300


def test_of_many_pairs_an_even_sample_is_shown_and_that_is_said(tmp_path):
    write_comparison(tmp_path, ["two-stage"], ["dog"], range(20))
    gallery = choose(Pool(read_runs([tmp_path])[0]))
    assert len(gallery.panels) == MAX_PANELS
    assert any("12 of 20 pairs" in note for note in gallery.notes)
    assert evenly(range(20), 4) == [0, 5, 10, 15]


def test_one_picture_at_a_time_is_in_memory(tmp_path):
    folder = tmp_path / "a"
    data = write_run(folder, "two-stage", "dog", 0)
    large_picture(tmp_path / "large.jpg", 1000)
    for name in data["pictures"]["subject"]:
        shutil.copy(tmp_path / "large.jpg", folder / name)
        with (folder / name).open("ab") as file:
            file.write(name.encode())  # other bytes, the same picture
    gallery = choose(Pool(read_runs([folder])[0]))

    def peak(count):
        tracemalloc.start()
        for _, line in zip(range(count), gallery.stored(), strict=False):
            assert line
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(8) < 1.5 * peak(2)


def test_photos_known_by_name_alone_are_found_where_the_recipe_has_them(tmp_path):
    folder = tmp_path / "runs" / "a"
    data = write_run(folder, "two-stage", "dog", 0)
    photos = tmp_path / "photos" / "dog"
    data["result"] |= {"photos": ["0.png", "1.png"], "held_out": ["3.png"]}
    (folder / "evaluation.json").write_text(json.dumps(data), encoding="utf-8")
    text = f"[data]\nphotos = {json.dumps(str(photos))}\nheld_out = [{json.dumps(str(photos / '3.png'))}]\n"
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    gallery = choose(Pool(read_runs([folder])[0]))
    assert [gallery.files[shot.key].name for shot in gallery.panels[0].photos] == ["0.png", "1.png", "3.png"]
    (folder / "recipe.toml").unlink()
    assert choose(Pool(read_runs([folder])[0])).panels[0].photos == []


def test_no_pictures_at_hand_is_said(tmp_path):
    write_run(tmp_path / "a", "two-stage", "dog", 0)
    shutil.rmtree(tmp_path / "a" / "evaluation")
    gallery = choose(Pool(read_runs([tmp_path / "a"])[0]))
    assert gallery.panels == [] and "not at hand" in gallery.notes[0]


def test_pictures_that_the_base_drew_of_other_prompts_are_in_no_column(tmp_path):
    for name in ("two-stage", "dreambooth"):
        write_run(tmp_path / name, name, "dog", 0, curves=False)
    (without, other) = (tmp_path / name / "evaluation.json" for name in ("two-stage", "dreambooth"))
    data = json.loads(without.read_text())
    del data["pictures"]["base_subject"]
    without.write_text(json.dumps(data))
    data = json.loads(other.read_text())
    data["choices"]["prompts"] = data["choices"]["prompts"][::-1]
    other.write_text(json.dumps(data))
    (panel,) = choose(Pool(read_runs([tmp_path])[0])).panels
    assert [row.name for row in panel.rows] == ["two-stage"]


def test_of_many_strategies_an_even_sample_is_shown_and_that_is_said(comparison, monkeypatch):
    monkeypatch.setattr(gallery, "MAX_PICTURES", 6 * 8 * 3)
    pool = Pool(read_runs([comparison])[0])
    shown = choose(pool)
    for panel in shown.panels:
        assert [row.name for row in panel.rows] == [*evenly(pool.strategies, 3), BASE]
    assert any("Of up to 5 strategies 3 are shown" in note for note in shown.notes)
