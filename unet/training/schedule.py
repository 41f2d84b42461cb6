"""Where a run comes round: the steps after which it reports, evaluates, saves or profiles.

for boundary in schedule.boundaries(0, 100, log_every=50, eval_every=100, save_every=40):
    ...  # 0, 40, 50, 80, 100
"""

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Boundary:
    """A number of completed steps, and what is due there.

    Attributes:
      step: completed steps.
      log, evaluate, save: whether metrics are to be reported, the model evaluated, a checkpoint saved.
      start_profile, stop_profile: whether a profiler trace begins or ends here.
    """

    step: int
    log: bool
    evaluate: bool
    save: bool
    start_profile: bool
    stop_profile: bool


def boundaries(
    start: int,
    num_steps: int,
    *,
    log_every: int,
    eval_every: int,
    save_every: int,
    profile: tuple[int, int] = (0, 0),
) -> Iterator[Boundary]:
    """Yields every boundary from `start` to `num_steps`, both included.

    Args:
      start: completed steps, from 0. What is due there comes first: a run may have been stopped before it was done.
      num_steps: the last step, at which all is due.
      log_every, eval_every, save_every: steps between reports, evaluations and checkpoints.
      profile: the first and the last boundary of a profiler trace; no trace if they are equal.
    """
    traced = profile if profile[0] < profile[1] else ()

    def due(step: int, interval: int) -> bool:
        return step > 0 and (step % interval == 0 or step == num_steps)

    step = start
    while True:
        yield Boundary(
            step,
            log=due(step, log_every),
            evaluate=due(step, eval_every),
            save=due(step, save_every),
            start_profile=step in traced[:1],
            stop_profile=step in traced[1:],
        )
        if step >= num_steps:
            return
        multiples = [(step // interval + 1) * interval for interval in (log_every, eval_every, save_every)]
        step = min([num_steps, *multiples, *(edge for edge in traced if edge > step)])
