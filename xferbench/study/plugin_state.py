"""The state of one plugin in a study: its resolved arms, or why it has none. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xferbench.analysis.estimates import swap_arm
from xferbench.core.transforms import InputTransform, Preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from xferbench.core.plugin import Contrast, Plugin
    from xferbench.core.reason import Reason
    from xferbench.study.selection import ResolvedArm


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginState:
    """The state of a plugin in a study.

    Attributes:
        plugin: the plugin.
        skipped: why the plugin does not apply, or None.
        error: the crash of the plugin, or "".
        trust: what the result takes on trust, or "".
        recorded: the recorded preprocessing, which a suite need not state.
        arms: the resolved arms by name.
    """

    plugin: Plugin
    skipped: Reason | None = None
    error: str = ""
    trust: str = ""
    recorded: InputTransform = field(default_factory=Preprocessing)
    arms: Mapping[str, ResolvedArm] = field(default_factory=dict)

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the induced variants."""
        return tuple(arm.removeprefix("induced:") for arm in self.arms if arm.startswith("induced:"))

    @property
    def exposed(self) -> bool:
        """Whether the cure changes the subject."""
        return self.arms["subject"].pipeline != self.arms["cured"].pipeline

    def contrasts(self, kind: str) -> Iterator[tuple[str, Contrast]]:
        """Yield the contrasts of a kind with the name ``plugin/contrast``; none if the plugin is skipped or crashed."""
        if self.skipped or self.error:
            return
        for contrast in self.plugin.contrasts:
            if contrast.kind == kind:
                yield f"{self.plugin.id}/{contrast.name}", contrast

    def measurements(self) -> Iterator[Contrast]:
        """Yield the ``info`` contrasts whose arms exist, without those that are 0 because subject and cure are equal."""
        for _, contrast in self.contrasts("info"):
            is_zero = not self.exposed and not any(swap_arm(contrast, "cured", "subject").weights.values())
            if not is_zero and all(arm in self.arms for arm, _ in contrast.weights):
                yield contrast

    @property
    def extra_arms(self) -> tuple[str, ...]:
        """The names of the arms that are only measured."""
        return tuple(arm for arm in self.arms if arm.startswith("beside:"))
