"""`vitesse predict`: one record an input whatever happens, people's text apart from machines'."""

from __future__ import annotations

import dataclasses
import os
import sys

import numpy as np
import pytest
from PIL import Image

from vitesse.runtime.imaging import load_tensor

RECORD = ["source", "task", "model", "predictions", "error"]
PREDICTION = ["label", "index", "score"]


def sources(done):
    return [record["source"] for record in done.records]


def test_a_record_has_the_promised_fields_and_the_model_s_answer(
    predict, album, tiny_artefact, tiny_reference
):
    done = predict(album / "b.jpg", "--json")
    (record,) = done.records
    assert done.code == 0
    assert sorted(record) == sorted(RECORD)
    assert (record["source"], record["task"], record["model"]) == (str(album / "b.jpg"), "classify", "tiny")
    assert record["error"] is None
    logits = tiny_reference(load_tensor(album / "b.jpg", tiny_artefact.manifest.preprocess)[None])[0]
    shares = np.exp(logits) / np.exp(logits).sum()
    assert [list(p) for p in record["predictions"]] == [PREDICTION] * 5
    assert [p["index"] for p in record["predictions"]] == np.argsort(-logits)[:5].tolist()
    assert [p["label"] for p in record["predictions"]] == [
        f"class {index}" for index in np.argsort(-logits)[:5]
    ]
    np.testing.assert_allclose([p["score"] for p in record["predictions"]], -np.sort(-shares)[:5], atol=1e-5)


def test_json_goes_to_stdout_and_words_to_stderr(predict, album):
    done = predict(album, "--json")
    assert len(done.records) == len(done.out.splitlines()) == 3
    assert "3 pictures done, 0 refused" in done.err
    assert "{" not in done.err


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (3, 3), (99, 10)])
def test_top_k(predict, album, asked, given):
    (record,) = predict(album / "b.jpg", "--json", "--top-k", asked).records
    assert len(record["predictions"]) == given


def test_options_do_not_change_the_answer(predict, album):
    plain = predict(album, "--json").out
    assert predict(album, "--json", "--batch-size", 1, "--threads", 1).out == plain
    assert predict(album, "--json", "--batch-size", 64).out == plain
    assert predict(album, "--json", "--batch-size", 1, "--threads", 2, "--streams", 2).out == plain


def test_a_model_for_any_size_takes_the_size_asked_for(
    vitesse, album, make_artefact, tiny_artefact, tiny_reference
):
    model = make_artefact(size=("height", "width"))
    arguments = [album / "b.jpg", "--model", model, "--engine", "onnxruntime", "--json"]
    for text, size in (("40x20", (40, 20)), ("31", (31, 31))):
        (record,) = vitesse("predict", *arguments, "--image-size", text).records
        spec = dataclasses.replace(tiny_artefact.manifest.preprocess, image_size=size)
        logits = tiny_reference(load_tensor(album / "b.jpg", spec)[None])[0]
        scores = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(
            [p["score"] for p in record["predictions"]], -np.sort(-scores)[:5], atol=1e-6
        )
    assert len({vitesse("predict", *arguments, "--image-size", text).out for text in ("40x20", "20x40")}) == 2


def test_a_model_for_one_size_refuses_another(predict, one_error, album):
    assert predict(album / "b.jpg", "--image-size", "24X32").code == 0
    said = one_error(predict(album / "b.jpg", "--image-size", "32x24"), 2)
    assert said.endswith(
        "takes 24x32 pixels alone, got 32x24; export it with --dynamic-size, or for that size"
    )


@pytest.mark.parametrize("text", ["0", "0x64", "-64", "64x", "x64", "64x64x3", "6.5", "big", "", "64 x 64"])
def test_what_is_no_size_is_refused(predict, one_error, text):
    said = one_error(predict("x.jpg", "--image-size", text), 2)
    assert said == f"--image-size: expected pixels such as 384, or 384x512, got {text!r}"


def test_folders_are_searched_to_any_depth_by_name(predict, album):
    expected = [album / "b.jpg", album / "deep" / "a.PNG", album / "deep" / "er" / "c.webp"]
    assert sources(predict(album, "--json")) == list(map(str, expected))


def test_globs(predict, album, monkeypatch):
    monkeypatch.chdir(album)
    assert sources(predict("*.jpg", "deep/*.PNG", "--json")) == ["b.jpg", "deep/a.PNG"]
    assert sources(predict("deep/**/*.webp", "--json")) == ["deep/er/c.webp"]


def test_a_recursive_glob_gives_every_picture_once(predict, album):
    (album / "notes.txt").unlink()
    (album / "empty").mkdir()
    done = predict(f"{album}/**", "--json")
    expected = [album / "b.jpg", album / "deep" / "a.PNG", album / "deep" / "er" / "c.webp"]
    assert sorted(sources(done)) == sorted(map(str, expected))
    assert done.code == 0


def test_a_file_whose_name_looks_like_a_glob_or_a_sample_is_that_file(predict, album, photo, monkeypatch):
    monkeypatch.chdir(album)
    photo(seed=8).save("[1].jpg")
    photo(seed=9).save("sample:rocket", "JPEG")
    done = predict("[1].jpg", "sample:rocket", "--json")
    named, sampled = done.records
    assert [named["source"], sampled["source"]] == ["[1].jpg", "sample:rocket"]
    assert predict("./sample:rocket", "--json").records[0]["predictions"] == sampled["predictions"]


def test_a_picture_on_standard_input(predict, album):
    for path in (album / "b.jpg", album / "deep" / "a.PNG", album / "deep" / "er" / "c.webp"):
        (piped,) = predict("-", "--json", stdin=path.read_bytes()).records
        (direct,) = predict(path, "--json").records
        assert piped == {**direct, "source": "-"}


def test_a_list_of_paths_on_standard_input(predict, album):
    listed = f"{album / 'b.jpg'}\r\n\n{album / 'deep'}\n{album / 'gone.jpg'}"
    done = predict("-", "--json", stdin=listed.encode())
    deeper = [album / "deep" / "a.PNG", album / "deep" / "er" / "c.webp"]
    assert sources(done) == list(map(str, [album / "b.jpg", *deeper, album / "gone.jpg"]))
    assert done.code == 3


def test_standard_input_that_is_neither_is_one_refusal(predict):
    done = predict("-", "--json", stdin=b"GIF89a\x01\x00\x01\x00" + bytes(40))
    (record,) = done.records
    assert done.code == 3
    assert record["source"] == "-"
    assert "JPEG, PNG or WebP" in record["error"]


@pytest.mark.parametrize("stdin", [b"", b"  \n\n"])
def test_empty_standard_input_is_wrong_usage(predict, one_error, stdin):
    assert "standard input is empty" in one_error(predict("-", stdin=stdin), 2)


def test_closed_standard_input_is_wrong_usage(predict, one_error, monkeypatch):
    monkeypatch.setattr("io.TextIOWrapper", lambda stream: None)
    assert "standard input is empty" in one_error(predict("-"), 2)


def test_an_unknown_sample_is_wrong_usage(predict, one_error):
    assert "did you mean rocket?" in one_error(predict("sample:rokcet"), 2)
    assert "known: astronaut, chelsea, coffee" in one_error(predict("sample:"), 2)


def test_bad_files_are_refused_and_all_others_delivered(predict, album):
    whole = (album / "b.jpg").read_bytes()
    (album / "corrupt.jpg").write_bytes(whole[:60] + bytes(len(whole) - 60))
    (album / "empty.png").touch()
    bad = [album / "gone.jpg", album / "corrupt.jpg", album / "empty.png"]
    good = [album / "b.jpg", album / "deep" / "a.PNG", album / "deep" / "er" / "c.webp"]
    mixed = [bad[0], good[0], bad[1], good[1], bad[2], good[2]]
    done = predict(*mixed, "--json", "--batch-size", 2)
    assert done.code == 3
    assert sources(done) == list(map(str, mixed))
    for record in done.records:
        assert sorted(record) == sorted(RECORD)
        refused = record["source"] in map(str, bad)
        assert (record["error"] is not None, record["predictions"] == []) == (refused, refused)
        assert "\n" not in (record["error"] or "")
    alone = {record["source"]: record for record in predict(*good, "--json").records}
    assert [r for r in done.records if r["error"] is None] == [alone[str(path)] for path in good]
    assert "3 pictures done, 3 refused" in done.err
    assert "Traceback" not in done.err


def test_people_read_the_reason_too(predict, tmp_path):
    done = predict(tmp_path / "gone.jpg")
    assert done.code == 3
    reason = "the file cannot be read: no such file or directory"
    assert done.out == f"{tmp_path / 'gone.jpg'}: refused: {reason}\n"


@pytest.mark.parametrize(("flag", "says"), [("--max-pixels", "megapixels"), ("--max-bytes", "MiB")])
def test_caps_can_be_lowered(predict, album, flag, says):
    done = predict(album / "b.jpg", "--json", flag, 100)
    assert done.code == 3
    assert says in done.records[0]["error"]


def test_a_folder_or_pattern_without_pictures_is_wrong_usage(predict, one_error, tmp_path, album):
    (tmp_path / "empty").mkdir()
    assert "holds no pictures (.jpeg, .jpg, .npy, .png, .webp)" in one_error(predict(tmp_path / "empty"), 2)
    assert "holds no pictures" in one_error(predict(album, tmp_path / "empty"), 2)
    assert "no file matches" in one_error(predict(f"{album}/*.gif"), 2)
    assert "no file matches" in one_error(predict(f"{tmp_path}/emp*"), 2)


def test_an_empty_name_is_not_the_current_folder(predict, one_error, album, monkeypatch):
    monkeypatch.chdir(album)
    assert "empty name" in one_error(predict(""), 2)


def test_save_draws_every_good_picture_and_keeps_names_apart(predict, album, photo, tmp_path):
    for folder, size in {"one": (100, 80), "two": (600, 300), "three": (3000, 1500)}.items():
        (tmp_path / folder).mkdir()
        photo(*size).save(tmp_path / folder / "Same.jpg")
    photo(20, 200).save(tmp_path / "one" / "same.png")
    (tmp_path / "one" / "bad.jpg").touch()
    out = tmp_path / "out" / "deeper"
    done = predict(*(tmp_path / folder for folder in ("one", "two", "three")), "--save", out, "--top-k", 2)
    assert done.code == 3
    assert f"saved in {out}" in done.err
    saved = {}
    for path in out.iterdir():
        with Image.open(path) as image:
            saved[path.name] = image.size
    for name, (width, height) in {
        "Same.labels.jpg": (480, 384),
        "same-2.labels.jpg": (480, 480),
        "Same-3.labels.jpg": (600, 300),
        "Same-4.labels.jpg": (1280, 640),
    }.items():
        drawn_width, drawn_height = saved.pop(name)
        assert drawn_width == width
        assert width / 36 * 1.75 * 2 < drawn_height - height < width / 36 * 1.75 * 4
    assert saved == {}


def test_save_shows_the_picture_and_the_score(predict, tmp_path):
    Image.new("RGB", (500, 300), (200, 30, 30)).save(tmp_path / "red.png")
    (record,) = predict(tmp_path / "red.png", "--save", tmp_path / "out", "--json", "--top-k", 1).records
    with Image.open(tmp_path / "out" / "red.labels.jpg") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(drawn[5:290] - (200, 30, 30)).max() <= 4
    green = (np.abs(drawn[300:] - (0x3F, 0xBF, 0x8F)).sum(axis=2) < 60).any(axis=0)
    track = 500 - round(500 / 36) - round(500 / 36 * 4.2) - 200
    assert green.sum() == pytest.approx(record["predictions"][0]["score"] * track, abs=4)


def test_save_writes_nowhere_else(predict, tmp_path, photo, monkeypatch):
    inside = tmp_path / "work" / "in"
    inside.mkdir(parents=True)
    names = ["..jpg", "...jpg", "a:b.jpg", "-.png", "back\\slash.jpg", "naïve.jpg", "noending"]
    names.append("語" * 80 + ".jpg")
    for name in names:
        photo().save(inside / name, "PNG")
    (tmp_path / "victim").write_text("safe")
    out = tmp_path / "work" / "out"
    out.mkdir()
    (out / "noending.labels.jpg").symlink_to(tmp_path / "victim")
    monkeypatch.chdir(inside)
    before = sorted(path for path in tmp_path.rglob("*") if out not in path.parents)
    done = predict(*(f"./{name}" for name in names), "../in/../in/a:b.jpg", "--save", out)
    assert done.code == 0
    assert sorted(path for path in tmp_path.rglob("*") if out not in path.parents) == before
    assert (tmp_path / "victim").read_text() == "safe"
    assert len(list(out.iterdir())) == len(names) + 1
    assert all(path.is_file() and not path.is_symlink() for path in out.iterdir())


def test_a_picture_that_went_away_before_it_was_drawn_spoils_no_other(predict, album, tmp_path, monkeypatch):
    from vitesse.errors import ImageError
    from vitesse.runtime import imaging

    read = imaging.read_for_display

    def gone(source, *rest):
        if source == album / "b.jpg":
            raise ImageError("the file cannot be read")
        return read(source, *rest)

    monkeypatch.setattr(imaging, "read_for_display", gone)
    done = predict(album, "--json", "--save", tmp_path / "out")
    assert done.code == 3
    assert [record["error"] for record in done.records] == [None] * 3
    assert f"{album / 'b.jpg'}: not saved: the file cannot be read" in done.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.labels.jpg", "c.labels.jpg"]


def test_save_into_a_file_fails_in_one_line(predict, one_error, album):
    assert "b.jpg: file exists" in one_error(predict(album, "--save", album / "b.jpg"), 1)


def test_an_unknown_model_lists_the_nearest(vitesse, one_error, album, bundled):
    said = one_error(vitesse("predict", album, "--model", "efficientvit_m9"), 2)
    assert "efficientvit_m9" in said
    assert "did you mean efficientvit_m" in said


def test_a_published_model_that_cannot_be_fetched_is_one_line_more(vitesse, album, bundled, hub):
    done = vitesse("predict", album, "--model", "efficientvit_m5")
    assert (done.code, done.out) == (1, "")
    announced, said = done.err.splitlines()
    assert (
        announced
        == "efficientvit_m5.r224_in1k: fetching timm/efficientvit_m5.r224_in1k and exporting it, once"
    )
    assert said.startswith("error: timm/efficientvit_m5.r224_in1k/model.safetensors: not found on")


def test_a_hub_out_of_reach_says_so_without_its_clients_warnings(vitesse, album, bundled, hub, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}",
    )
    done = vitesse("predict", album, "--model", "hf:me/mine")
    assert done.err.splitlines() == [done.err.strip()]
    assert "not in the cache and" in done.err


def test_the_bundled_model_is_the_default(vitesse, album, bundled):
    (record,) = vitesse("predict", album / "b.jpg", "--engine", "onnxruntime", "--json").records
    assert record["model"] == "tiny"


def test_models_of_other_kinds_are_refused(vitesse, one_error, album, bundled, make_artefact, tmp_path):
    plain = one_error(vitesse("predict", album, "--model", make_artefact(None)), 1)
    assert "plain ONNX model without a Vitesse manifest" in plain
    assert "vitesse export" in plain
    gone = one_error(vitesse("predict", album, "--model", tmp_path / "gone.onnx"), 1)
    assert "does not exist" in gone
    assert "vitesse convert" in one_error(vitesse("predict", album, "--model", tmp_path / "gone.pth"), 2)
    (tmp_path / "torn.onnx").write_bytes(make_artefact().read_bytes()[:200])
    assert "torn.onnx" in one_error(vitesse("predict", album, "--model", tmp_path / "torn.onnx"), 1)


def test_a_checkpoint_wants_no_other_engine(vitesse, one_error, album):
    said = one_error(vitesse("predict", album, "--model", "a.safetensors", "--engine", "openvino"), 2)
    assert "vitesse export" in said


def test_arch_is_for_checkpoints(predict, one_error, album):
    assert "expected a checkpoint" in one_error(predict(album, "--arch", "efficientvit_m0"), 2)


def test_a_missing_engine_names_its_install_command(vitesse, one_error, album, tiny_artefact, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    arguments = ("predict", album, "--model", tiny_artefact.path)
    said = one_error(vitesse(*arguments, "--engine", "openvino"), 1)
    assert said == "this needs openvino, which is not installed: pip install 'vitesse[openvino]'"
    assert vitesse(*arguments).code == 0  # auto takes what there is


def test_missing_samples_name_their_install_command(predict, one_error, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert "pip install 'vitesse[demo]'" in one_error(predict("sample:rocket"), 1)


def test_an_interrupt_is_130_and_keeps_what_was_printed(predict, album, monkeypatch):
    from vitesse.runtime.predictor import Predictor

    stream = Predictor.stream

    def interrupted(self, pictures):
        yield next(iter(stream(self, pictures)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "stream", interrupted)
    done = predict(album, "--json")
    assert done.code == 130
    assert sources(done) == [str(album / "b.jpg")]
    assert done.err == "interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes there alone")
def test_a_name_that_is_no_text_is_escaped(predict, album, tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    (album / "b.jpg").rename(album / name)
    done = predict(album / name, "--json", "--save", tmp_path / "out")
    assert (done.code, sources(done)) == (0, [str(album / name)])
    assert done.out.isascii()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["caf_.labels.jpg"]


def test_people_get_a_table(predict, album):
    done = predict(album / "b.jpg", "--top-k", 2)
    first, *rows = done.out.splitlines()
    assert first == str(album / "b.jpg")
    assert len(rows) == 2
    assert all(row.lstrip().startswith("class ") and "%" in row for row in rows)
    assert "1 picture done" in done.err


def test_samples(predict):
    pytest.importorskip("skimage")
    names = [f"sample:{name}" for name in ("rocket", "coffee", "motorcycle", "astronaut", "chelsea")]
    done = predict(*names, "--json")
    assert (done.code, sources(done)) == (0, names)
    assert len({str(record["predictions"]) for record in done.records}) == len(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.jpg", "--top-k", "0"], "top-k"),
        (["x.jpg", "--engine", "tensorrt"], "engine"),
        (["x.jpg", "--modle", "x"], "--model"),
        ([], "SOURCE"),
    ],
)
def test_wrong_usage(vitesse, one_error, arguments, message):
    said = one_error(vitesse("predict", *arguments), 2)
    assert message in said
    assert said.endswith("see `vitesse predict --help`")
