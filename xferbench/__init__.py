"""Controlled experiments that say which of the known ways for transfer learning to fail has hit your pipeline.

    import xferbench
    run = xferbench.run("quick")          # a shipped suite's name, or a path to a suite file
    run.findings                          # verdicts, one a contrast and variant
    run.to_frame()                        # every record as a row
    xferbench.cross("strategies").to_frame()  # recipes over many tasks, a row for each task, recipe and seed

    with xferbench.watch(model, optimizer) as watch:  # around a training loop of your own
        ...
    print(watch)                          # each fault with its step, tensor, cause and what to do

The command line says the same: ``xferbench --help``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Any

    from xferbench.design import Phase, Recipe, Suite
    from xferbench.events import Event, TransferWarning
    from xferbench.lab.watch import Watch
    from xferbench.record import Finding, Run
    from xferbench.table import Table

__version__ = "0.1.0"
__all__ = ["Event", "Finding", "Run", "Table", "TransferWarning", "cross", "run", "watch"]


def run(
    suite: str | Path | Suite,
    *,
    output: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    allow_code: bool = False,
    plan: str | Path | None = None,
) -> Run:
    """Carry out a suite, reusing whatever the store holds, and judge it.

    Args:
        suite: a shipped suite's name, a path to a suite file, or a suite.
        output: a folder for the report's files; None writes none.
        store: the file of records; None is the one in the user's cache directory.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        workers: processes that compute side by side; None is one a core.
        allow_code: let the suite run code of its own (``python:module:callable``).
        plan: the file of a frozen plan (``xferbench validate --freeze``); what differs from it is refused.

    Raises:
        xferbench.problem.Problem: for input that cannot be worked with.
    """
    from xferbench import finish

    return finish.run(suite, output=output, store=store, device=device, workers=workers, allow_code=allow_code, plan=plan)


def cross(
    suite: str | Path | Suite,
    *,
    output: str | Path | None = None,
    store: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    allow_code: bool = False,
) -> Table:
    """Carry out a suite with a [matrix]: recipes compared over targets, sizes and backbones.

    Its ``to_frame()`` has a row for each task, recipe and seed.

    Args:
        suite, output, store, device, workers, allow_code: as in :func:`run`.

    Raises:
        xferbench.problem.Problem: for input that cannot be worked with, or a suite without a matrix.
    """
    from xferbench import matrix

    return matrix.cross(suite, output=output, store=store, device=device, workers=workers, allow_code=allow_code)


def watch(
    model: Any,
    optimizer: Any | Iterable[Any],
    *,
    recipe: Recipe | Phase | Mapping[str, Any] | None = None,
    head: str = "",
    shape: Any = None,
    every: int = 10,
    on_event: str = "warn",
) -> Watch:
    """Watch a training loop, and name the step, the tensor and the cause when transfer goes wrong.

    ::

        with xferbench.watch(model, optimizer, recipe={"trainable": "head", "batchnorm": "eval"}) as watch:
            for x, y in loader:
                ...
                optimizer.step()      # seen by itself
                watch.step(loss)      # not needed; tells the loss
        print(watch)

    The steps are seen from the optimizer's own hooks. Each fault is an :class:`xferbench.Event` in ``watch.events`` and one
    warning (:class:`xferbench.TransferWarning`), the tensors that it hit at once and for one cause together; ``print(watch)``
    or ``watch.report()`` tells them all. The training is not changed: no random number is drawn, nothing is written, and the
    hooks go at the exit.

    ``frozen-moved``, ``buffer-moved``, ``not-held``, ``never-moved`` (after 20 steps) and ``non-finite`` are facts. At steps 1,
    2, 3 and 10, every so many, and at the exit, up to 64 values of each tensor are compared with what they were. A frozen
    tensor whose version counter rises is looked at in that very step; at the exit every bit of what is frozen is compared.
    Two kinds are guesses, silent when in doubt, and only heard where losses are told:

    - ``loss-jump``: more tensors train than before, and some 5 consecutive losses of the 20 after it have a median above all
      of the last 40 before (20 at least), above their median by six spreads (1.4826 × the median absolute deviation), and by
      a fifth. Unfreezing that changes nothing sets it off in less than 1 of 1000 cases where losses are spread normally or
      exponentially, in 2 where log-normally (σ = 1), by simulation with 40 before; with 20 before, in 0, 3 and 8.
    - ``head-shock``: the backbone trains from the first step under a head whose first three losses are near those of guessing
      (0.8 × ln classes or more), and goes a tenth of its length within 10 steps. This stands in for the gradient's ratio to
      that under a fitted head, which the plugin ``head-shock`` measures (Kumar et al. 2022, arXiv:2202.10054) and a loop
      cannot. Milder shocks are missed, and whether accuracy was lost is not known: that takes ``xferbench run``. Without a
      recipe, nothing is said of a backbone whose normalisation layers are as they are made, since it is trained from scratch.

    Args:
        model: a torch.nn.Module; what torch.compile or DistributedDataParallel wraps is looked into.
        optimizer: a torch.optim.Optimizer, or several.
        recipe: what is meant to be trained: a recipe or phase, or a mapping with keys of a suite's ``[recipe]``, of which
            ``trainable`` and ``batchnorm``, and the ``steps`` of several phases, count. Where a mapping does not say how
            BatchNorm runs, and without a recipe, running statistics are to stay where their layer's scale and shift are
            frozen. Without a recipe ``requires_grad`` says what is meant, also when it is changed later.
        head: the dotted name of the module that is the head; else the last Linear or Conv2d to be registered.
        shape: of one input, (3, 224, 224) say; needed where ``trainable`` is ``top:N``.
        every: steps between two checks of everything.
        on_event: ``warn``, ``raise`` (a TransferWarning, out of ``optimizer.step()``) or ``collect``.

    Raises:
        xferbench.problem.Problem: for input that cannot be worked with.
    """
    from xferbench import watched

    return watched.watch(model, optimizer, recipe=recipe, head=head, shape=shape, every=every, on_event=on_event)


def __getattr__(name: str) -> object:
    """The public nouns, imported when they are first asked for."""
    if name in {"Finding", "Run"}:
        from xferbench import record

        return getattr(record, name)
    if name == "Table":
        from xferbench import table

        return table.Table
    if name in {"Event", "TransferWarning"}:
        from xferbench import events

        return getattr(events, name)
    raise AttributeError(name)
