"""What some processes of a job do for all: an error of one is raised in every one, so that none waits for ever."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

T = TypeVar("T")
ERRORS = (OSError, ValueError, RuntimeError)


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What ``action`` returns in the main process, which alone runs it; all processes wait for it.

    Raises:
        OSError, ValueError, RuntimeError: in every process, what it raised in the main one.
    """
    outcome: list = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except ERRORS as error:
            outcome[1] = error
    result, problem = broadcast_object_list(outcome)
    if problem is not None:
        raise problem
    return result


def in_all(action: Callable[[], object]) -> None:
    """Run ``action`` in every process; all wait until it has ended in each.

    Raises:
        OSError, ValueError, RuntimeError: in every process, the first of what it raised in any.
    """
    problem: Exception | None = None
    try:
        action()
    except ERRORS as error:
        problem = error
    problems = [raised for raised in gather_object([problem]) if raised is not None]
    if problems:
        raise problems[0]
