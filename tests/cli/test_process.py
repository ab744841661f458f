"""The command as a process of its own: pipes, signals, packages that are not there, tracebacks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from vitesse import cli, doctor
from vitesse.results import Prediction
from vitesse.runtime.drawing import _ascii

COMMAND = [sys.executable, "-W", "error", "-c", "from vitesse.cli import main; main()"]


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell with pipes")
def test_head_ends_it_without_a_word(tiny_artefact, photo, tmp_path):
    photo().save(tmp_path / "a.jpg")
    (tmp_path / "list").write_text(f"{tmp_path / 'a.jpg'}\n" * 2000)  # more than a pipe holds
    predict = f'"$@" predict - --json --engine onnxruntime --model {tiny_artefact.path} < {tmp_path / "list"}'
    script = f"{{ {predict}; echo $? >&2; }} | head -1"
    done = subprocess.run(["sh", "-c", script, "sh", *COMMAND], capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == "1\n"


@pytest.mark.skipif(os.name != "posix", reason="signals are different there")
def test_ctrl_c_is_130_without_a_traceback():
    code = (
        "import os, signal, vitesse.doctor\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
        "vitesse.doctor.diagnose = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "from vitesse.cli import main\n"
        "import sys; sys.argv[1:] = ['doctor']; main()"
    )
    done = python(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


HIDE = "import sys\nfor name in {hidden!r}: sys.modules[name] = None\nfrom vitesse.cli import run\n"


def test_without_torch_the_verbs_that_need_it_say_what_to_install(paint_classes, tmp_path):
    data, out = paint_classes(tmp_path / "data", per_class=1), tmp_path / "x.safetensors"
    (tmp_path / "x.safetensors").touch()
    lines = {
        "train": ["train", str(data), "--model", "efficientvit_m0", "--out", str(tmp_path / "run")],
        "export": ["export", "efficientvit_m0", "--out", str(tmp_path / "x.onnx")],
        "torch": ["convert", str(out), "--model", "efficientvit_m0", "--out", str(out)],
    }
    lines |= {"torch ": ["predict", str(data), "--model", str(out)]}
    lines |= {"torch  ": ["evaluate", str(data), "--model", "efficientvit_m0", "--engine", "torch"]}
    done = python(HIDE.format(hidden=["torch"]) + f"print([run(line) for line in {list(lines.values())!r}])")
    assert done.stdout == "[1, 1, 1, 1, 1]\n"
    said = done.stderr.splitlines()
    assert len(said) == len(lines)
    for extra, line in zip(lines, said, strict=True):
        assert re.fullmatch(
            rf"error: this needs \w+, which is not installed: pip install 'vitesse\[{extra.strip()}\]'", line
        )


def test_the_light_verbs_work_with_the_light_core_alone(tiny_artefact, photo, tmp_path):
    photo().save(tmp_path / "a.jpg")
    heavy = ["torch", "torchvision", "timm", "onnx", "openvino", "safetensors", "pyarrow", "skimage", "yaml"]
    lines = [
        ["predict", str(tmp_path / "a.jpg"), "--json", "--model", str(tiny_artefact.path)],
        ["models"],
        ["doctor"],
    ]
    done = python(HIDE.format(hidden=heavy) + f"sys.exit(max(run(line) for line in {lines!r}))")
    assert done.returncode == 0, done.stderr
    assert "openvino: not installed" in done.stdout


def test_the_light_verbs_import_no_torch():
    light = "from vitesse.cli import run; codes = [run(['models']), run(['doctor']), run(['--help'])]"
    done = python(f"import sys; {light}; print({{'torch', 'timm', 'onnx'}} & set(sys.modules), codes)")
    assert done.stdout.splitlines()[-1] == "set() [0, 0, 0]"


def test_debug_gives_a_traceback_for_this_command_alone(vitesse, tmp_path):
    arguments = ("predict", tmp_path / "a.jpg", "--model", tmp_path / "gone.onnx")
    plain, debugged, again = vitesse(*arguments), vitesse("--debug", *arguments), vitesse(*arguments)
    assert plain.err.startswith("error: ")
    assert debugged.code == plain.code == 1
    assert "Traceback (most recent call last)" in debugged.err
    assert debugged.err.endswith(plain.err)
    assert again == plain


def test_of_several_processes_all_but_the_first_say_whose_error_it_is(vitesse, one_error, monkeypatch):
    gone = ("predict", "a.jpg", "--model", "gone.onnx")
    monkeypatch.setenv("RANK", "0")
    said = one_error(vitesse(*gone), 1)
    assert "rank" not in said
    monkeypatch.setenv("RANK", "2")
    assert one_error(vitesse(*gone), 1) == f"rank 2: {said}"


def test_a_bug_is_one_line_that_asks_for_a_report(vitesse, one_error, monkeypatch):
    def broken():
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr("vitesse.doctor.diagnose", broken)
    said = one_error(vitesse("doctor"), 1)
    assert "ZeroDivisionError: by zero (please report it" in said


def test_the_exit_codes_are_the_promised_ones():
    codes = (cli.DONE, cli.FAILED, cli.WRONG_USAGE, cli.SOME_REFUSED, cli.INTERRUPTED)
    assert codes == (0, 1, 2, 3, 130)


def test_models_prints_the_fields_that_programs_rely_on(vitesse, bundled):
    done = vitesse("models", "--json")
    assert done.err == ""
    for record in done.records:
        assert {"name", "family", "params", "macs", "image_size", "top1"} <= record.keys()
        assert record["top1"] is None or 0 < record["top1"] < 1
    table = vitesse("models", "*_m[45]").out
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["efficientvit_m4", "efficientvit_m5"]
    assert vitesse("models", "nothing*").code == 1


def test_doctor_names_an_engine_whose_installation_is_broken(vitesse, bundled, monkeypatch):
    create = doctor.create_engine

    def broken(artefact, name):
        if name == "openvino":
            raise ImportError("libopenvino.so:\nno such file")
        return create(artefact, name)

    monkeypatch.setattr(doctor, "create_engine", broken)
    monkeypatch.setattr(doctor, "available_engines", lambda: ("onnxruntime", "openvino"))
    done = vitesse("doctor", "--json")
    (report,) = done.records
    assert done.code == 1
    assert (report["ok"], report["engines"]["onnxruntime"]["ok"]) == (False, True)
    assert report["engines"]["openvino"]["error"] == "ImportError: libopenvino.so: no such file"
    assert "openvino: ImportError: libopenvino.so" in vitesse("doctor").out


def test_doctor_without_an_artefact_fails_and_says_so(vitesse, monkeypatch):
    from vitesse.errors import ArtefactError

    def none(name):
        raise ArtefactError("found 0; reinstall vitesse")

    monkeypatch.setattr(doctor, "bundled_artefact", none)
    done = vitesse("doctor")
    assert done.code == 1
    assert "found 0; reinstall vitesse" in done.out
    assert "inference does not work here" in done.out


def test_evaluate_s_fractions_are_those_of_predict(vitesse, paint_classes, tmp_path, make_artefact):
    names = ["blue", "green", "red", *(f"other {index}" for index in range(7))]
    model = make_artefact({"class_names": names})
    data = paint_classes(tmp_path, per_class=5)
    shared = ("--model", model, "--engine", "onnxruntime", "--json")
    (scores,) = vitesse("evaluate", data, *shared).records
    records = vitesse("predict", data, *shared).records
    ranked = [[p["label"] for p in record["predictions"]] for record in records]
    truth = [name for name in names[:3] for _ in range(5)]
    expected = {
        f"top{k}": sum(own in best[:k] for own, best in zip(truth, ranked, strict=True)) / 15 for k in (1, 5)
    }
    assert {key: scores[key] for key in expected} == expected
    assert 0 < scores["top5"] < 1 or 0 < scores["top1"] < 1
    assert (scores["images"], scores["refused"]) == (15, 0)
    assert vitesse("evaluate", data, *shared, "--limit", 4).records[0]["images"] == 4


def test_convert_goes_there_and_back(vitesse, one_error, tmp_path):
    torch = pytest.importorskip("torch")
    from vitesse import create_model

    model = create_model("efficientvit_m0", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    shared = ("--model", "efficientvit_m0", "--json", "--out")
    (record,) = vitesse("convert", tmp_path / "a.pth", *shared, tmp_path / "b.safetensors").records
    assert (record["out"], record["skipped"]) == (str(tmp_path / "b.safetensors"), [])
    back = vitesse("convert", tmp_path / "b.safetensors", "--to", "timm", *shared, tmp_path / "c.pth")
    assert back.records[0]["loaded"] == record["loaded"]
    again = vitesse("convert", tmp_path / "c.pth", *shared, tmp_path / "d.safetensors")
    assert again.records[0]["renamed"] > 0
    from safetensors.torch import load_file

    first, last = (load_file(tmp_path / name) for name in ("b.safetensors", "d.safetensors"))
    assert first.keys() == last.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    wrong = ("--model", "efficientvit_m5", "--out", tmp_path / "e.safetensors")
    one_error(vitesse("convert", tmp_path / "a.pth", *wrong), 1)


def test_convert_runs_no_code(vitesse, one_error, tmp_path):
    pytest.importorskip("torch")
    import pickle

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "boom"),))

    (tmp_path / "a.pth").write_bytes(pickle.dumps({"weight": Bomb()}))
    done = vitesse(
        "convert", tmp_path / "a.pth", "--model", "efficientvit_m0", "--out", tmp_path / "b.safetensors"
    )
    one_error(done, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


def test_export_writes_artefacts_only(vitesse, one_error, tmp_path):
    pytest.importorskip("torch")
    done = vitesse("export", "efficientvit_m0", "--out", tmp_path / "model.pt")
    assert "expected a file ending in .onnx" in one_error(done, 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("label", "drawn"), [("rocket", "rocket"), ("café", "cafe"), ("naïve\x1b[1m", "naive[1m"), ("語", "?")]
)
def test_labels_are_drawn_in_the_letters_of_the_font(label, drawn):
    assert _ascii(Prediction(label=label, index=0, score=1.0).label) == drawn


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="this system has no SIGCHLD")
def test_a_signal_after_an_engine_was_freed_elsewhere_does_not_end_the_process(tiny_artefact):
    """OpenVINO gives signal handlers a stack of its own, and takes it away with its plugin."""
    pytest.importorskip("openvino")
    code = f"""
import gc, signal, subprocess, threading
from vitesse.runtime.artefact import read_artefact
from vitesse.runtime.engines import create_engine

signal.signal(signal.SIGCHLD, lambda *_: None)
held = [create_engine(read_artefact({str(tiny_artefact.path)!r}), "openvino")]
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
subprocess.run(["true"])
print("alive")
"""
    done = python(f"import faulthandler; faulthandler.enable()\n{code}")
    assert (done.returncode, done.stdout.split()) == (0, ["alive"]), done.stderr
