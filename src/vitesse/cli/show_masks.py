"""What `vitesse segment` prints: a line a mask for people, or one JSON object."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitesse.cli.show import DONE, print_json
from vitesse.progress import say

if TYPE_CHECKING:
    from vitesse.inputs import Picture
    from vitesse.results import Masks
    from vitesse.runtime.decode import ImageLimits


def show_masks(
    picture: Picture, result: Masks, *, as_json: bool, save: Path | None, limits: ImageLimits
) -> int:
    """Score, share of the picture and box of every mask; with `save` the files too."""
    if as_json:
        print_json(result.to_dict())
    else:
        print(result.source)
        for number, mask in enumerate(result.predictions, 1):
            left, top, width, height = mask.bbox
            print(
                f"  mask {number}: expected IoU {mask.score:.1%}, {mask.area / mask.mask_HW.size:.1%} of the "
                f"picture, {width}x{height} pixels at {left},{top}"
            )
    if save is not None:
        from vitesse.runtime.imaging import read_for_display
        from vitesse.runtime.masks import save_masks

        image = read_for_display(picture[1] if isinstance(picture, tuple) else picture, limits)
        say(f"saved {', '.join(str(path) for path in save_masks(save, image, result))}")
    return DONE
