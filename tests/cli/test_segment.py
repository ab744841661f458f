"""`vitesse segment`: what it prints and writes, and what it refuses in one line."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vitesse.results import Masks


@pytest.fixture
def segment(vitesse, make_promptable, photo, tmp_path):
    """A function that runs the verb on a photo 400 wide and 300 high with the tiny model on one engine."""
    path = tmp_path / "photo.jpg"
    photo(400, 300).save(path)
    model = make_promptable()

    def run(*arguments: object, image: object = path, **options: object):
        return vitesse("segment", image, "--model", model, "--engine", "onnxruntime", *arguments, **options)

    return run


def test_people_get_a_line_a_mask(segment):
    done = segment("--box", "40,60,320,240", "--box", "0,0,90,80")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].endswith("photo.jpg")
    assert lines[1].startswith("  mask 1: expected IoU ")
    assert lines[1].endswith("% of the picture, 280x180 pixels at 40,60")
    assert lines[2].endswith("90x80 pixels at 0,0")
    assert len(lines) == 3


def test_programs_get_one_object_that_holds_the_masks(segment):
    done = segment("--point", "30,20,0", "--point", "200.5,120", "--multimask", "--json")
    assert (done.code, done.err) == (0, "")
    (raw,) = done.records
    result = Masks.from_dict(raw)
    assert (result.size, result.task, result.model) == ((300, 400), "promptable", "tiny_sam")
    assert result.predictions[0].score == pytest.approx(0.9)
    assert raw["predictions"][0]["segmentation"]["size"] == [300, 400]


def test_a_picture_on_standard_input_and_its_files(segment, photo, encode, tmp_path):
    data = encode(photo(400, 300), "PNG")
    done = segment("--box", "40,60,320,240", "--save", tmp_path / "out", image="-", stdin=data)
    assert done.code == 0
    assert done.err.startswith("saved ")
    with Image.open(tmp_path / "out" / "stdin.mask-1.png") as mask:
        inside = np.asarray(mask) > 0
    assert inside[150, 180]
    assert not inside[20, 20]
    assert (tmp_path / "out" / "stdin.masks.jpg").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected a point or a box"),
        (["--box", "1,2,3"], 2, "box: expected left,top,right,bottom"),
        (["--box", "1,2,x,4"], 2, "--box: expected numbers such as 40,60, got '1,2,x,4'"),
        (["--point", "400,5"], 2, "outside the picture of 400x300 pixels"),
        (["--box", "-5,0,5,9"], 2, "reaches out of the picture"),
        (["--box", "7,0,7,9"], 2, "has no area"),
        (["--point", "1,1", "--max-pixels", "1000"], 1, "photo.jpg: expected at most 0.001 megapixels"),
    ],
)
def test_refusals_are_one_line(segment, one_error, arguments, code, message):
    assert message in one_error(segment(*arguments), code)


def test_other_pictures_and_models_are_refused(segment, vitesse, one_error, tiny_artefact, album, tmp_path):
    assert "expected one picture, this names 3" in one_error(segment("--point", "1,1", image=album), 2)
    assert "no such file" in one_error(segment("--point", "1,1", image=tmp_path / "no.jpg"), 1)
    photo = tmp_path / "photo.jpg"
    other = vitesse("segment", photo, "--model", tiny_artefact.path, "--point", "1,1")
    assert "this one's task is classify" in one_error(other, 1)
    unknown = vitesse("segment", photo, "--model", "efficientvit_sam_l9", "--point", "1,1")
    assert "did you mean efficientvit_sam_l" in one_error(unknown, 2)
    one_error(vitesse("segment", photo, "--point", "1,1"), 2)
