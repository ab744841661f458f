"""Steps that were skipped because their batch was not finite: how many a run goes on after."""

from __future__ import annotations

from vitesse.errors import TrainingError
from vitesse.train.checkpoint import Progress
from vitesse.train.folder import RunFolder
from vitesse.train.step import StepResult, TrainingStep
from vitesse.weights.files import save_tensors

GO_ON_ELSEWHERE = (
    "what was saved before is good: go on from it with init= in another --out, with a lower lr or "
    "precision=fp32"
)


def go_on_or_give_up(result: StepResult, progress: Progress, step: TrainingStep, folder: RunFolder) -> None:
    """Tell that the last step was skipped, unless there were too many in a row.

    Raises:
        TrainingError: there were; this process' pictures of the last are left in the run's folder.
    """
    facts, log, row = folder.facts, folder.log, progress.bad_in_a_row
    skipped, what = progress.step - 1, result.explain()
    names = [facts.train_source.name(index) for index in step.last_indices()]
    first = [*names, *map(facts.train_source.name, result.refused)][0]
    if row < facts.recipe.max_bad_steps:
        log.note(f"step {skipped} was skipped: {what}; its first picture is {first}", progress.step)
        return
    if not result.seen:
        raise TrainingError(
            f"{what} at step {skipped}, and {row} steps in a row were skipped; its first picture is "
            f"{first}: see that the data is there, and run the same command again"
        )
    path, where = facts.out / f"bad_batch_{folder.accelerator.process_index}.safetensors", ""
    with log.survived("the batch"):
        if names:
            save_tensors(path, step.last_pictures(), {"names": "\n".join(names)})
            where = f"; the pictures of this one are {path}"
    raise TrainingError(
        f"{what} at step {skipped}, and {row} steps in a row were not finite{where}; {GO_ON_ELSEWHERE}"
    )
