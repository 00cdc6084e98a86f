"""Profile a pipeline: digest the files that a suite names, and read or compute its profile. Reads files and the store."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xferbench.core import files
from xferbench.core.canonical import digest
from xferbench.core.errors import UserError
from xferbench.core.pipeline import (
    DEFAULT_SCRATCH_GRID,
    TEXT_SCRATCH_GRID,
    AuxiliaryDataset,
    Backbone,
    Pipeline,
    PipelineData,
    Recipe,
    Serving,
)
from xferbench.core.plugin import ProfileRequest
from xferbench.core.reason import Code
from xferbench.core.record import MAX_CLASSES_WITH_PROBABILITIES
from xferbench.core.strategies import resolve_steps, virtual_tokens
from xferbench.core.transforms import INPUT_KINDS, InputTransform, Preprocessing, Tokens, complete_tokens
from xferbench.core.version import LAB_VERSION
from xferbench.data import inputs, sources, weights_settings
from xferbench.report.messages import write_sentence
from xferbench.runner import discovery, store
from xferbench.runner.engines import local
from xferbench.study import feasibility

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable
    from concurrent.futures import Future

    from xferbench.core.pipeline import Checkpoint, UserCode
    from xferbench.core.plugin import Profile
    from xferbench.core.suite import Suite

PROFILED_DEVICES = ("cpu", "cuda", "mps")
MIN_AUDIT_IMAGES = 8  # minimum number of test examples of an audit
PROFILE_VERSION = 14  # raise when a profile has new fields


def profile_pipeline(
    suite: Suite,
    db: sqlite3.Connection,
    cache: Path,
    engine: Callable[[], Callable[..., Future[Any]]] | None,
    device: str = "cpu",
) -> tuple[Pipeline, Profile]:
    """Return the user's pipeline with the digests of its files, and its profile from the store or from a worker.

    Raises:
        UserError: if the pipeline or its files cannot be used.
        LookupError: if the store has no profile and ``engine`` is None.
    """
    inputs.check_inputs(suite)
    digester = store.cached_digester(db, files.sha256)
    request = replace(_profile_request(suite, digester), device=device)
    key = _profile_key(request)
    profile = store.get_profile(db, key)
    if profile is None:
        if engine is None:
            raise LookupError("the store has no profile of this suite")
        profile = _compute_profile(suite, engine, request, cache)
        if not profile.user_code.crash:
            store.put_profile(db, key, profile)
    _check_profile(suite, profile)
    profile = replace(profile, data=replace(profile.data, notes=_data_notes(suite)))
    if isinstance(profile.preprocessing, Tokens):  # a stored profile may know another place
        weights = request.checkpoint.after if request.checkpoint else request.weights
        folder = weights_settings.tokenizer_folder(Path(weights.path).parent)
        profile = replace(profile, preprocessing=replace(profile.preprocessing, tokenizer_path=str(folder)))
    _check_input_kind(suite, profile)
    recorded = complete_transform(profile.preprocessing, profile)
    profile = replace(profile, preprocessing=recorded)
    source, shifted = request.source, request.shifted
    checkpoint = request.checkpoint
    if checkpoint:
        checkpoint = replace(checkpoint, sigmoid=profile.has_sigmoid, head=profile.model.finished_head)
    trained = complete_transform(suite.data.train_preprocessing or recorded, profile)
    served = suite.serving.preprocessing or (recorded if checkpoint else trained)
    pipeline = Pipeline(
        backbone=Backbone(arch=request.arch, weights=request.weights, code=request.code, pooling=request.pooling),
        data=PipelineData(
            target=request.target,
            train_size=request.train_size,
            test_size=min(request.test_size, profile.data.test) if checkpoint and request.test_size else request.test_size,
            train_preprocessing=trained,
            source=AuxiliaryDataset(data=source, classes=profile.data.source, preprocessing=recorded) if source else None,
            shifted=AuxiliaryDataset(data=shifted, classes=profile.data.shifted) if shifted else None,
            manifest=inputs.digest_manifest(suite, digester),
            interventions=suite.data.interventions,
        ),
        recipe=_recipe(suite, profile),
        serving=Serving(  # what is said of the training of a finished network does not change how it is served
            preprocessing=complete_transform(served, profile), mode=suite.serving.mode
        ),
        training=request.training,
        checkpoint=checkpoint,
        expected_training=suite.checkpoint.expected_training,
        evaluation_split="confirm" if checkpoint else "test",
        baseline=adapt_search(suite, recorded).scratch,
    )
    return pipeline, profile


def _check_input_kind(suite: Suite, profile: Profile) -> None:
    """Refuse a preprocessing of the recipe that is for another kind of examples than the network's, or is too long for it.

    Raises:
        UserError: that names the key.
    """
    kind, limit = type(profile.preprocessing), max(profile.model.accepted_sizes, default=0)
    stated = {"train_preprocessing": suite.data.train_preprocessing, "serve_preprocessing": suite.serving.preprocessing}
    for key, transform in stated.items():
        location = f"{suite.invocation.path}: [recipe] {key}"
        if transform is not None and type(transform) is not kind:
            found, expected = INPUT_KINDS[type(transform)], f'kind = "{INPUT_KINDS[kind]}", as the network takes it'
            raise UserError(f"{location}: kind", found=found, expected=expected)
        completed = None if transform is None else complete_transform(transform, profile)
        length = completed.max_length + completed.extra_padding if isinstance(completed, Tokens) else 0
        added = virtual_tokens(suite.recipe) if suite.recipe else 0
        if length + added > limit > 0:
            found = f"{length} tokens" + (f" and {added} virtual ones" if added else "")
            raise UserError(f"{location}: max_length", found=found, expected=f"at most {limit}, the limit of the network")
    if suite.recipe is not None and suite.recipe.augment and kind is not Preprocessing:
        found = f"{suite.recipe.augment} of {INPUT_KINDS[kind]}s"
        raise UserError(f"{suite.invocation.path}: [recipe] augment", found=found, expected="images", do="leave it out")


def adapt_search(suite: Suite, recorded: InputTransform) -> Suite:
    """Return a suite whose search of the from-scratch baseline fits the kind of examples.

    For texts there is no augmentation, and the default search has lower rates.
    """
    if not isinstance(recorded, Tokens):
        return suite
    grid = TEXT_SCRATCH_GRID if suite.scratch == DEFAULT_SCRATCH_GRID else suite.scratch
    return replace(suite, scratch=replace(grid, augment=(None,)))


def _recipe(suite: Suite, profile: Profile) -> Recipe:
    """Return the suite's recipe in steps, or the default one.

    Raises:
        UserError: if the warm-up of a phase is as long as its epochs.
    """
    try:
        return resolve_steps(suite.recipe or Recipe(), profile.data.train)
    except UserError as error:
        raise error.at(f"{suite.invocation.path}: {error.what}") from error


def _profile_request(suite: Suite, digester: Callable[[Path], str]) -> ProfileRequest:
    checkpoint = inputs.digest_checkpoints(suite, digester)
    weights = (checkpoint.before or checkpoint.after) if checkpoint else inputs.digest_weights(suite, digester)
    target = inputs.digest_data(suite.data.target, digester)
    source, shifted = (inputs.digest_data(spec, digester) if spec else None for spec in (suite.data.source, suite.data.shifted))
    code, training = inputs.digest_code(suite, digester)
    return ProfileRequest(
        arch=suite.backbone.arch,
        weights=weights,
        target=target,
        preprocessing=suite.backbone.preprocessing,
        train_size=suite.data.train_size,
        test_size=suite.data.test_size,
        source=source,
        source_classes=suite.data.source_classes,
        shifted=shifted,
        code=code,
        pooling=suite.backbone.pooling,
        training=training,
        checkpoint=checkpoint,
    )


def _profile_key(request: ProfileRequest) -> str:
    """Return the key of a profile in the store. It has user inputs only if there are any, as in stores of earlier versions."""
    backbone = (request.arch, request.weights, request.target, request.preprocessing)
    data = (request.train_size, request.test_size, request.source, request.source_classes, request.shifted)
    user_inputs: tuple[UserCode | Checkpoint | None, ...] = ()
    device = () if request.device == "cpu" else (request.device,)  # a profile has times
    pooling = (request.pooling,) if request.pooling else ()
    if request.checkpoint:
        user_inputs = (request.code, request.training, request.checkpoint)
    elif request.code or request.training:
        user_inputs = (request.code, request.training)
    return digest((LAB_VERSION, PROFILE_VERSION, *backbone, *data, *user_inputs, *device, *pooling))


def _compute_profile(
    suite: Suite, engine: Callable[[], Callable[..., Future[Any]]], request: ProfileRequest, cache: Path
) -> Profile:
    try:
        profile: Profile = engine()("xferbench.lab.worker.profile:profile", request, cache).result()
    except UserError as problem:
        raise problem.at(f"{suite.invocation.path}: {problem.what}") from problem
    return profile


def complete_transform(transform: InputTransform, profile: Profile) -> InputTransform:
    """Return a preprocessing with the values that it leaves open.

    Photographs are turned upright if some have an EXIF orientation. Texts get the tokenizer of the weights.
    """
    recorded = profile.preprocessing
    if isinstance(transform, Tokens) and isinstance(recorded, Tokens):
        return complete_tokens(transform, recorded)
    if profile.data.rotated and isinstance(transform, Preprocessing) and transform.orientation == "auto":
        return replace(transform, orientation="upright")
    return transform


def _data_notes(suite: Suite) -> tuple[str, ...]:
    """Return notes on how the folders of the suite's datasets were understood; those of the target have no prefix."""
    specs = {"": suite.data.target, "[source] data: ": suite.data.source, "[shifted] data: ": suite.data.shifted}
    return tuple(f"{prefix}{note}" for prefix, spec in specs.items() if spec for note in sources.layout_notes(spec)[1])


def _check_profile(suite: Suite, profile: Profile) -> None:
    """Refuse a suite that its data or its backbone cannot satisfy, before anything is trained or evaluated.

    Raises:
        UserError: that names the key of the suite.
    """
    if suite.rules.metric == "auroc" and len(profile.data.classes) > MAX_CLASSES_WITH_PROBABILITIES:
        expected = f"at most {MAX_CLASSES_WITH_PROBABILITIES} classes, because records keep all probabilities only up to that"
        raise UserError(
            f"{suite.invocation.path}: metric: auroc", found=f"{len(profile.data.classes)} classes", expected=expected
        )
    if suite.is_audit and profile.data.test < MIN_AUDIT_IMAGES:
        expected = f"at least {MIN_AUDIT_IMAGES}, and many more for a verdict"
        what = f"{suite.invocation.path}: {profile.data.test} test examples can decide nothing"
        raise UserError(what, found=f"{profile.data.test} test examples", expected=expected, do="add labeled test examples")
    if profile.user_code.crash:
        return
    for key, recipe in {
        "[recipe] trainable": suite.recipe,
        "[checkpoint] believed": suite.checkpoint.expected_training,
    }.items():
        if recipe is not None and (reason := feasibility.why_missing_layers(recipe, profile)):
            raise UserError(
                f"{suite.invocation.path}: {key}",
                found=write_sentence(reason),
                expected=feasibility.describe_trainable(profile),
                do="use fewer, or a lower max_length" if reason.code == Code.NO_ROOM_FOR_TOKENS else "choose one of them",
            )
    if suite.recipe is not None and (reason := feasibility.why_no_dropout(suite.recipe, profile)):
        raise UserError(f"{suite.invocation.path}: [recipe] dropout", found=write_sentence(reason), do="leave it out")
    if suite.recipe is not None and (reason := feasibility.why_missing_inputs(suite.recipe, profile)):
        expected = "a regularizer and a finish whose inputs are available"
        raise UserError(
            f"{suite.invocation.path}: [recipe]",
            found=write_sentence(reason),
            expected=expected,
            do="leave it out, or add what is missing",
        )


def check_weights(suite: Suite) -> None:
    """Check in a worker whether the weights of a suite belong to its architecture, before they are profiled with the data.

    Nothing is checked for an audit, for weights that are part of the package, for user code, and without torch.

    Raises:
        UserError: if the weights cannot be read or do not fit.
    """
    backbone = suite.backbone
    if suite.is_audit or not backbone.weights or backbone.arch.startswith("python:") or find_spec("torch") is None:
        return
    path = inputs.digest_weights(suite, lambda _: "").path
    with local.start_workers(1) as call:
        try:
            values = (backbone.arch, path, backbone.preprocessing, backbone.pooling)
            call("xferbench.lab.worker.check_weights:check_weights", *values).result()
        except UserError as problem:
            raise problem.at(f"{suite.invocation.path}: {problem.what}") from problem


def cached_profile(suite: Suite, path: Path) -> Profile | None:
    """Check the inputs of a suite without torch, and return its profile; None if the store does not contain it.

    Raises:
        UserError: if the input cannot be used.
    """
    discovery.suite_plugins(suite)
    if not path.is_file():
        inputs.check_inputs(suite)
        return None
    with store.open_store(path) as db:
        for device in PROFILED_DEVICES:
            with suppress(LookupError):
                return profile_pipeline(suite, db, store.cache_folder(path), None, device)[1]
    return None
