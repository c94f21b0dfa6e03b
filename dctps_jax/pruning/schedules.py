"""How many weights stay after each step of iterative pruning."""

import math


def exponential_densities(total: int, density: float, num_steps: int) -> list[float]:
    """Return densities that fall by the same factor at every step. A last density of 0 counts as half a weight."""
    factor = math.log(max(density, 0.5 / total)) / num_steps
    return [math.exp((step + 1) * factor) for step in range(num_steps)]


def linear_densities(total: int, density: float, num_steps: int) -> list[float]:
    """Return densities that fall by the same difference at every step."""
    return [1 - (step + 1) * (1 - density) / num_steps for step in range(num_steps)]


# Name → a function of the number of weights, the last density and the number of steps, which returns the density after
# each step.
SCHEDULES = {"exp": exponential_densities, "linear": linear_densities}


def keep_counts(total: int, density: float, num_steps: int, schedule: str, rounds: str = "kept") -> list[int]:
    """Return how many of ``total`` weights stay after each step; the last count is ``round(density · total)``.

    ``schedule`` is a key of :data:`SCHEDULES`. ``rounds`` says which number of weights is rounded down before the last
    step: "kept", as the authors of FORCE do, or "pruned", as the authors of SynFlow do. No count is below the last.
    """
    last = round(density * total)
    densities = SCHEDULES[schedule](total, density, num_steps)[:-1]
    if rounds == "pruned":
        counts = [total - int((1 - density) * total) for density in densities]
    else:
        counts = [int(density * total) for density in densities]
    return [*(max(count, last) for count in counts), last]
