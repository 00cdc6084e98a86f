"""Controlled experiments that diagnose failures of transfer learning in your pipeline.

    import xferbench
    run = xferbench.run("quick")          # a shipped suite's name, or a path to a suite file
    run.findings                          # one verdict for each contrast and variant
    run.to_frame()                        # one row for each record
    xferbench.cross("strategies").to_frame()  # one row for each task, recipe and seed

    with xferbench.watch(model, optimizer) as watch:  # around your own training loop
        ...
    print(watch)                          # each fault with its step, tensor, cause and advice

The command line offers the same: ``xferbench --help``.
"""

from xferbench.core.import_path import clean_import_path

clean_import_path()  # before any import that a file in the current folder could shadow, even __future__

from typing import TYPE_CHECKING  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Executor
    from pathlib import Path
    from typing import Any

    from xferbench.core.pipeline import Phase, Recipe
    from xferbench.core.run import Run
    from xferbench.core.suite import Suite
    from xferbench.lab.monitor.watch import Watch

__all__ = ["Event", "Finding", "Run", "TransferWarning", "cross", "run", "watch"]


def run(
    suite: "str | Path | Suite",
    *,
    output: "str | Path | None" = None,
    store: "str | Path | None" = None,
    device: str = "auto",
    workers: int | None = None,
    engine: "str | Executor" = "local",
    allow_code: bool = False,
    plan: "str | Path | None" = None,
) -> "Run":
    """Run a suite and return its findings. Records in the store are reused.

    Args:
        suite: the name of a shipped suite, a path to a suite file, or a suite, with or without a [matrix].
        output: a folder for the report's files; None writes no files.
        store: the file of records; None uses the one in the user's cache directory.
        device: ``auto``, ``cuda``, ``mps`` or ``cpu``.
        workers: number of worker processes; None uses one for each core.
        engine: where to compute: ``local``, an executor, or ``python:module:factory`` whose factory returns one.
        allow_code: whether the suite may run user code (``python:module:callable``).
        plan: the file of a preregistered plan (``xferbench validate --freeze``); a run that differs from it is refused.

    Returns:
        the finished run.

    Raises:
        xferbench.core.errors.UserError: if an input is not usable.
    """
    from xferbench.report.notebook import register_display
    from xferbench.runner import run as runner

    register_display()
    return runner.run(
        suite,
        output=output,
        store=store,
        device=device,
        workers=workers,
        engine=engine,
        allow_code=allow_code,
        plan=plan,
    )


def cross(
    suite: "str | Path | Suite",
    *,
    output: "str | Path | None" = None,
    store: "str | Path | None" = None,
    device: str = "auto",
    workers: int | None = None,
    engine: "str | Executor" = "local",
    allow_code: bool = False,
) -> "Run":
    """Run a suite with a [matrix], which compares recipes over targets, sizes and backbones.

    The ``to_frame()`` of the run has a row for each task, recipe and seed; ``run.matrix`` has the comparisons and claims.
    :func:`run` accepts such a suite too; this function refuses any other.

    Args:
        suite, output, store, device, workers, engine, allow_code: as in :func:`run`.

    Raises:
        xferbench.core.errors.UserError: if an input is not usable, or the suite has no matrix.
    """
    from xferbench.report.notebook import register_display
    from xferbench.runner import run as runner
    from xferbench.runner.matrix import require_matrix

    register_display()
    loaded = runner.load_suite(suite, allow_code=allow_code)
    require_matrix(loaded)
    return runner.run(loaded, output=output, store=store, device=device, workers=workers, engine=engine)


def watch(
    model: "Any",
    optimizer: "Any | Iterable[Any]",
    *,
    recipe: "Recipe | Phase | Mapping[str, Any] | None" = None,
    head: str = "",
    shape: "Any" = None,
    max_length: int | None = None,
    every: int = 10,
    on_event: str = "warn",
) -> "Watch":
    """Watch a training loop, and report the step, the tensor and the cause when transfer goes wrong.

    ::

        with xferbench.watch(model, optimizer, recipe={"trainable": "head"}) as watch:
            for x, y in loader:
                ...
                optimizer.step()      # the watch sees the step by itself
                watch.step(loss)      # optional; reports the loss
        print(watch)

    The watch sees the steps through hooks of the optimizer, and removes them at the exit. It does not change the training: it
    draws no random number and writes nothing. Each fault is an :class:`xferbench.Event` in ``watch.events`` and a warning
    (:class:`xferbench.TransferWarning`); tensors with the same cause at the same step share an event. ``print(watch)`` and
    ``watch.report()`` show all events. :class:`xferbench.Event` describes the kinds of fault, and how sure each is.

    At steps 1, 2, 3 and 10, then at every ``every`` steps, and at the exit, the watch compares up to 64 values of each tensor
    with their earlier values. If the version counter of a frozen tensor rises, the watch checks that tensor in the same step.
    At the exit it compares every bit of the frozen tensors. In the first three steps it also reads the arguments of networks
    that take ``input_ids``.

    Args:
        model: a torch.nn.Module. The watch looks inside the wrappers of torch.compile and DistributedDataParallel.
        optimizer: a torch.optim.Optimizer, or several.
        recipe: what is meant to be trained: a recipe, a phase, or a mapping with keys of a suite's ``[recipe]``. The watch
            uses ``trainable``, ``batchnorm``, and the ``steps`` of several phases. If neither a recipe nor ``batchnorm`` is
            given, running statistics must stay where the scale and shift of their layer are frozen. Without a recipe,
            ``requires_grad`` says what is trained, also if it changes later.
        head: the dotted name of the module that is the head. By default, the last registered Linear or Conv2d.
        shape: the shape of one input, for example (3, 224, 224). It is needed if ``trainable`` is ``top:N``.
        max_length: the number of tokens at which your tokenizer cuts a text. Without it, the watch notices cut texts only if
            they fill all positions of the network.
        every: the number of steps between two checks of all tensors.
        on_event: ``warn``, ``raise`` (a TransferWarning, raised by ``optimizer.step()``, or by the model for a fault of its
            inputs) or ``collect``.

    Raises:
        xferbench.core.errors.UserError: if an input is not usable.
    """
    from collections.abc import Iterable

    from xferbench.config.recipe_of import recipe_of
    from xferbench.core.interventions import PRETRAINED
    from xferbench.lab.monitor.setup import make_watch

    expected, states_batchnorm = recipe_of(recipe)
    return make_watch(
        model,
        tuple(optimizer) if isinstance(optimizer, Iterable) else (optimizer,),
        phases=expected.phases if expected else (),
        batchnorm=states_batchnorm,
        pretrained=None if expected is None else expected.init == PRETRAINED,
        head=head,
        shape=shape,
        max_length=max_length,
        every=every,
        on_event=on_event,
    )


def __getattr__(name: str) -> object:
    """Return a public type, which is imported at its first use."""
    if name in {"Finding", "Run"}:
        from xferbench.core import run as results

        return getattr(results, name)
    if name in {"Event", "TransferWarning"}:
        from xferbench.lab.monitor import events

        return getattr(events, name)
    raise AttributeError(name)
