"""What the verbs print: lines for people, or with `as_json` one JSON object a line. Gives the exit code."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitesse.progress import say, track

if TYPE_CHECKING:
    from vitesse.evaluate import DenseEvaluation, Evaluation
    from vitesse.inputs import Picture
    from vitesse.results import Record
    from vitesse.runtime.artefact import Artefact
    from vitesse.runtime.decode import ImageLimits

BAR_FROM = 50
"""A progress bar is worth its import from so many pictures on."""

BAR_WIDTH = 20
EQUAL = {
    "equal_pixels": "pixels with torch's class",
    "equal_boxes": "torch's surest boxes found",
    "equal_masks": "pixels of their masks as torch's",
}
"""Of a manifest's parity, what is a share."""
DONE, FAILED, SOME_REFUSED = 0, 1, 3


def print_json(record: Any) -> None:
    """One JSON object on one line of stdout."""
    print(json.dumps(record))


def show_records(
    pictures: Sequence[Picture],
    records: Iterator[Record],
    *,
    as_json: bool,
    save: Path | None,
    limits: ImageLimits,
) -> int:
    """Every record as it comes; with `save`, the picture with its labels too."""
    gallery = _gallery(save)
    refused = 0
    shown = track(records, "predict", len(pictures)) if len(pictures) >= BAR_FROM else records
    for picture, record in zip(pictures, shown, strict=True):
        if as_json:
            print_json(record.to_dict())
        else:
            print("\n".join(_describe(record)))
        refused += record.error is not None
        if gallery is not None and record.error is None:
            refused += not _drawn(gallery, picture, record, limits)
    where = f", saved in {save}" if save is not None else ""
    done = len(pictures) - refused
    say(f"{done} {'picture' if done == 1 else 'pictures'} done, {refused} refused{where}")
    return SOME_REFUSED if refused else DONE


def _drawn(gallery: Any, picture: Picture, record: Record, limits: ImageLimits) -> bool:
    """Save one picture; one that went away since, or is cut short where it was not needed, is named."""
    from vitesse.errors import ImageError
    from vitesse.runtime.imaging import read_for_display

    try:
        gallery.add(read_for_display(picture[1] if isinstance(picture, tuple) else picture, limits), record)
    except ImageError as error:
        say(f"{record.source}: not saved: {error}")
        return False
    return True


def _gallery(save: Path | None) -> Any:
    if save is None:
        return None
    from vitesse.runtime.gallery import Gallery

    return Gallery(save)


def _describe(record: Record) -> list[str]:
    from vitesse.results import Detections, Region

    if record.error is not None:
        return [f"{record.source}: refused: {record.error}"]
    width = max((len(p.label) for p in record.predictions), default=0)
    if isinstance(record, Detections):
        lines = [f"  {p.label:<{width}}  {p.score:6.1%}  {_corners(p.bbox)}" for p in record.predictions]
        return [f"{record.source}: {_counted(record.predictions)}", *lines]
    block = "█" if _can_print("█") else "#"
    shares = [(p.label, p.share if isinstance(p, Region) else p.score) for p in record.predictions]
    bars = [
        f"  {label:<{width}}  {share:6.1%}  {block * round(share * BAR_WIDTH)}".rstrip()
        for label, share in shares
    ]
    return [record.source, *bars]


def _counted(objects: Sequence[Any]) -> str:
    """`12 RBC, 1 WBC`."""
    counts = Counter(found.label for found in objects)
    return ", ".join(f"{count} {label}" for label, count in counts.most_common()) or "nothing found"


def _corners(bbox: tuple[float, float, float, float]) -> str:
    left, top, width, height = bbox
    return f"{left:.0f},{top:.0f} to {left + width:.0f},{top + height:.0f}"


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def show_training(result: Any, model: str, artefact: Artefact | None = None, *, as_json: bool) -> int:
    """Where the weights are and how good they are, the report, and the artefact if one was made."""
    scores, checkpoint = result.scores, result.checkpoint
    if as_json:
        print_json(
            {
                "model": model,
                "checkpoint": str(checkpoint),
                **scores.to_dict(),
                "unreadable": list(result.refused),
                "report": str(result.report),
                **({"artefact": str(artefact.path)} if artefact else {}),
            }
        )
    else:
        print(f"{scores.explain()} on {scores.images} pictures: {checkpoint}")
        print(f"report: {result.report}")
        if artefact is not None:
            show_export(artefact, [], as_json=False)
    return SOME_REFUSED if result.refused or scores.refused else DONE


def show_evaluation(result: Evaluation | DenseEvaluation, *, as_json: bool) -> int:
    """The scores."""
    from vitesse.evaluate import DenseEvaluation

    if as_json:
        print_json(result.to_dict())
    elif isinstance(result, DenseEvaluation):
        refused = f", {result.refused} refused" if result.refused else ""
        print(
            f"{result.model} ({result.precision}, {result.engine}): {result.scores.explain()} on "
            f"{result.scores.images} pictures{refused}"
        )
        print(_rates(result))
    else:
        refused = f", {result.refused} refused" if result.refused else ""
        print(
            f"{result.model} ({result.precision}, {result.engine}): top-1 {result.top1:.2%}, "
            f"top-5 {result.top5:.2%} on {result.images} pictures{refused}"
        )
        print(f"  calibration error {result.ece:.2%}, negative log-likelihood {result.nll:.3f}")
        if result.labels_top1 is not None:
            without = f", {result.labels_left_out} more without labels" if result.labels_left_out else ""
            print(
                f"  by the other labels: top-1 {result.labels_top1:.2%} on {result.labels_images} pictures"
                f"{without}"
            )
        if result.agreement is not None:
            print(
                f"  {result.mux_width} pictures share a pass: worst slot {min(result.slots):.2%}, best "
                f"{max(result.slots):.2%}; beside other pictures {result.agreement:.2%} keep their label"
            )
        print(_rates(result))
    return SOME_REFUSED if result.refused else DONE


def _rates(result: Evaluation | DenseEvaluation) -> str:
    return (
        f"  {result.img_per_s:.1f} pictures a second from file to label, "
        f"{result.engine_img_per_s:.1f} in the engine alone"
    )


def show_export(artefact: Artefact, sidecars: Sequence[Path], *, as_json: bool) -> int:
    """The artefact's path, parity and accuracy; what lies next to it."""
    from vitesse.runtime.artefact import decoder_path

    parity, accuracy = dict(artefact.manifest.parity or {}), artefact.manifest.accuracy
    targets = [{**json.loads(path.read_bytes()), "out": str(path.with_suffix(""))} for path in sidecars]
    if as_json:
        record = {"out": str(artefact.path), "bytes": len(artefact.data), "sha256": artefact.sha256}
        record["precision"] = artefact.manifest.precision
        for target in targets:
            del target["manifest"]
        print_json({**record, "parity": parity, "accuracy": accuracy and dict(accuracy), "targets": targets})
        return DONE
    images, shares = parity.pop("images", None), {key: parity.pop(key) for key in EQUAL if key in parity}
    engines = ", ".join(f"{name} {value:.1e}" for name, value in parity.items())
    print(f"{artefact.path}: {len(artefact.data) / 2**20:.1f} MiB")
    if artefact.manifest.decoder:
        print(f"  the encoder; its decoder {decoder_path(artefact.path).name} lies beside it")
    made_from = " before quantisation" if artefact.manifest.precision == "int8" else ""
    what = "scores" if artefact.manifest.task == "detect" else "logits"
    print(f"  largest difference of {what} from torch on {images} images{made_from}: {engines}")
    for key, share in shares.items():
        print(f"  {EQUAL[key]}: {share:.3%}")
    if accuracy:
        print(f"  {_figures(accuracy)} on {accuracy['images']} pictures")
    for target in targets:
        print(f"{target['out']}: {_proof(target)}")
    return DONE


def _proof(target: dict[str, Any]) -> str:
    """What is known of a file of another format."""
    facts = []
    if "delegated" in target:
        facts.append(f"{target['delegated']:.0%} of the operators in XNNPACK")
    if "operators" in target:
        facts.append(
            f"{sum(target['operators'].values())} operators, checked but not run: it needs Apple's systems"
        )
    for runtime, difference in target.get("parity", {}).items():
        if runtime != "images":
            facts.append(
                f"largest difference of logits from the artefact, run by {runtime}: {difference:.1e}"
            )
    return "; ".join(facts)


def show_conversion(report: Any, out: Path, *, as_json: bool) -> int:
    """What became of the weights."""
    if as_json:
        record = {"out": str(out), "naming": report.naming, "loaded": len(report.loaded)}
        print_json({**record, "renamed": len(report.renamed), "skipped": list(report.skipped)})
    else:
        print(f"{out}: {report.explain()}")
    return DONE


def show_push(where: str, files: Sequence[str], *, as_json: bool) -> int:
    """Where the files are now."""
    if as_json:
        print_json({"url": where, "files": list(files)})
    else:
        print(f"{where}: {', '.join(files)}")
    return DONE


def show_diagnosis(report: dict[str, Any], *, as_json: bool) -> int:
    """The report; it failed where no engine or no artefact works."""
    if as_json:
        print_json(report)
        return DONE if report["ok"] else FAILED
    cpu = report["cpu"]
    print("versions   " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()))
    flags = " ".join(cpu["flags"]) or "no vector instructions seen"
    print(f"processor  {cpu['model']}, {cpu['threads']} threads, {flags}")
    print(f"cache      {report['cache']}")
    for card in report["bundled"]:
        print(f"bundled    {card.get('error') or card_line(card)}")
    for name, engine in report["engines"].items():
        print(f"engine     {name}: {_engine_line(engine)}")
    for name, extra in report["extras"].items():
        lacking = f"missing {', '.join(extra['missing'])}: {extra['install']}"
        print(f"extra      {name}: {'installed' if extra['installed'] else lacking}")
    print("result     " + ("inference works" if report["ok"] else "inference does not work here"))
    return DONE if report["ok"] else FAILED


def _figures(accuracy: Mapping[str, Any]) -> str:
    """The figures of a manifest."""
    names = {
        "top1": "top-1",
        "top5": "top-5",
        "ap": "AP",
        "ap50": "AP50",
        "mask_ap": "mask AP",
        "miou": "mean IoU",
    }
    return ", ".join(f"{name} {accuracy[key]:.2%}" for key, name in names.items() if key in accuracy)


def card_line(card: dict[str, Any]) -> str:
    accuracy = card["accuracy"]
    scored = f", {_figures(accuracy)} on {accuracy['images']} pictures" if accuracy else ""
    size = "x".join(map(str, card["image_size"]))
    data = f"{card['classes']} classes of {card['trained_on'] or 'unnamed data'}"
    return f"{card['name']}: {card['model']} at {size}, {card['precision']}, {data}{scored}"


def _engine_line(engine: dict[str, Any]) -> str:
    if engine["ok"]:
        return f"works, {engine['ms']} ms for one picture, first run"
    return engine.get("error", "broken") if engine["installed"] else "not installed"
