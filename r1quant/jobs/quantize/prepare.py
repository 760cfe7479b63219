"""What comes between a plan and its layers: factors folded into the weights, and bits chosen within the budget."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from r1quant.errors import OutOfSpaceError, RecipeError
from r1quant.jobs.quantize.calibration import CalibrationRun, calibration_of
from r1quant.planning import planner
from r1quant.planning.budget import LossPredictions
from r1quant.planning.plan import Plan
from r1quant.progress import Progress
from r1quant.storage.cache import cache_folder


def decided(plan: Plan, progress: Progress) -> Plan:
    """A plan with the bits of its budget chosen, after a sensitivity pass if none was made yet.

    Raises whatever would stop the run, and RecipeError if there is no budget.
    """
    plan.require()
    if plan.budget is None:
        raise RecipeError("there are no bits to choose", "give a budget, such as --target-bpw 4.5")
    with disk_errors(cache_folder()):
        calibration = calibration_of(plan, progress)
        losses = predicted_losses(with_factors(plan, calibration, progress), calibration, progress)
        return planner.allocated(plan, losses)


def prepared(plan: Plan, calibration: CalibrationRun | None, progress: Progress) -> Plan:
    """The plan as its layers are quantized: with its factors folded into the checkpoint, and decided bits.

    calibration  None for a recipe that reads no text
    """
    if calibration is None or (plan.complete and plan.decided):
        return plan
    plan = with_factors(plan, calibration, progress)
    if not plan.decided:
        plan = planner.allocated(plan, predicted_losses(plan, calibration, progress))
        progress.note(f"chosen: {plan.allocation}")
        if plan.arguments:
            progress.note("\n  ".join(["llama-quantize takes the same types with:", *plan.arguments]))
    return plan


def with_factors(plan: Plan, calibration: CalibrationRun, progress: Progress) -> Plan:
    """The plan with the factors of input channels folded into its checkpoint, if its recipe asks for them."""
    if plan.recipe.factors is None:
        return plan
    from r1quant.jobs.quantize.factors import transformed

    return replace(plan, checkpoint=transformed(plan, calibration, progress))


def predicted_losses(plan: Plan, calibration: CalibrationRun, progress: Progress) -> LossPredictions:
    """What each linear would lose at each number of bits that the budget lets choose. Raises ValueError without one."""
    from r1quant.jobs.quantize.loss_prediction import predicted

    if plan.budget is None:
        raise ValueError("the plan has no budget")
    return predicted(plan, calibration, plan.budget.choices, progress)


@contextmanager
def disk_errors(*folders: Path) -> Iterator[None]:
    """Turns the error of a full disk into OutOfSpaceError, which names the folders that may lie on it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = " or of ".join(map(str, folders))
        raise OutOfSpaceError(
            f"the disk of {full} is full", "free some space and run the same command: finished layers are kept"
        ) from error
