"""What `vitesse models` prints: a table for people, or one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vitesse.catalogue import ModelFacts, WeightFacts
from vitesse.cli.show import DONE, FAILED, card_line, print_json
from vitesse.doctor import bundled_cards
from vitesse.progress import say
from vitesse.spec import Task, to_mapping

ARCHITECTURES = ("name", "family", "licence", "params M", "MACs M", "image")
MEASURES: Mapping[Task, str] = {
    "classify": "top-1",
    "detect": "AP",
    "segment": "mIoU",
    "promptable": "mask AP",
}
"""What the published accuracy is called."""
WEIGHTS = ("name", "hugging face repository", "licence", "image", "crop", "top-1 %", "top-5 %")


def show_models(found: Sequence[ModelFacts], *, weights: bool, as_json: bool) -> int:
    """The architectures, or with `weights` every published set of them; gives the exit code."""
    if not found:
        say("no model meets all of these conditions; leave one out, or run `vitesse models` for all")
        return FAILED
    bundled = bundled_cards()
    if as_json:
        for facts in found:
            mine = [card for card in bundled if card.get("model") == facts.name]
            print_json({**to_mapping(facts), "bundled": mine[0] if mine else None})
        return DONE
    if weights:
        sets = [(facts, entry) for facts in found for entry in facts.weights]
        _print_table(WEIGHTS, [_weights_row(facts, entry) for facts, entry in sets])
        _print_sources(
            "top-1: ImageNet-1k", ((facts.family, entry.source) for facts, entry in sets if entry.top1)
        )
        return DONE
    for number, task in enumerate(dict.fromkeys(facts.task for facts in found)):
        if number:
            print()
        _print_architectures(task, [facts for facts in found if facts.task == task])
    for card in bundled:
        if "error" not in card:
            print(f"bundled: {card_line(card)}")
    return DONE


def _print_architectures(task: Task, found: Sequence[ModelFacts]) -> None:
    measure = MEASURES[task]
    _print_table((*ARCHITECTURES, f"{measure} %"), [_row(facts) for facts in found])
    datasets = dict.fromkeys(facts.dataset for facts in found)
    _print_sources(f"{measure}: {' and '.join(datasets)}", ((facts.family, facts.source) for facts in found))


def _row(facts: ModelFacts) -> tuple[str, ...]:
    licence = facts.weights[0].licence if facts.weights else "-"
    sizes = f"{facts.params / 1e6:.1f}", f"{facts.macs / 1e6:.0f}", _size(facts.image_size)
    return facts.name, facts.family, licence, *sizes, _per_cent(facts.accuracy)


def _weights_row(facts: ModelFacts, entry: WeightFacts) -> tuple[str, ...]:
    name, size = f"{facts.name}.{entry.tag}", _size(entry.image_size)
    accuracy = _per_cent(entry.top1), _per_cent(entry.top5)
    return name, entry.hub_id, entry.licence, size, f"{entry.crop_pct:g}", *accuracy


def _size(image_size: tuple[int, int]) -> str:
    return "x".join(map(str, image_size))


def _per_cent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.1f}"


def _print_sources(measure: str, sources: Iterable[tuple[str, str]]) -> None:
    """Where the accuracies were published, once each."""
    published = [(family, source) for family, source in dict.fromkeys(sources) if source]
    if published:
        print(f"{measure} validation, published in")
    for family, source in published:
        print(f"  {family}: {source}")


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns aligned: words, the first three, to the left, numbers to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [
            f"{cell:<{width}}" if column < 3 else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
