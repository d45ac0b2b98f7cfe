"""A report on the machine: probes go in, items come out.

A probe asks the machine one thing. It returns what it found, or raises; whatever it raises becomes
an item that is not ok, so that one broken probe never hides the answers of the others.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

OPTIONAL = "optional"
RUN_AS_ROOT = "run as root"


class UnmetError(Exception):
    """What the probe found is not what is needed. ``fix`` replaces the probe's own, if given."""

    def __init__(self, found: str, fix: str | None = None) -> None:
        super().__init__(found)
        self.fix = fix


@dataclass(frozen=True)
class Probe:
    """One question to the machine.

    ``ask`` returns what was found, or raises ``UnmetError`` (or anything else). ``needed`` is in
    words for a person, or ``OPTIONAL``. ``needs_root``: without root the answer would say nothing.
    """

    name: str
    needed: str
    fix: str
    ask: Callable[[], str]
    needs_root: bool = False


@dataclass(frozen=True)
class Item:
    """The answer to one probe. ``fix`` is empty where nothing has to be done."""

    name: str
    ok: bool
    found: str
    needed: str
    fix: str


@dataclass(frozen=True)
class Report:
    """All answers. ``ok``: everything that is not optional is there."""

    items: tuple[Item, ...]

    @property
    def ok(self) -> bool:
        return not self.missing

    @property
    def missing(self) -> tuple[Item, ...]:
        """What is needed and not there."""
        return tuple(item for item in self.items if not item.ok and item.needed != OPTIONAL)

    def as_dict(self) -> dict[str, object]:
        """The report as JSON has it."""
        return {"ok": self.ok, "items": [asdict(item) for item in self.items]}


def examine(probes: Iterable[Probe], *, is_root: bool) -> Report:
    """Ask every probe, in order."""
    return Report(tuple(_answer(probe, is_root=is_root) for probe in probes))


def _answer(probe: Probe, *, is_root: bool) -> Item:
    def item(*, ok: bool, found: str, fix: str = "") -> Item:
        return Item(name=probe.name, ok=ok, found=found, needed=probe.needed, fix=fix)

    if probe.needs_root and not is_root:
        return item(ok=False, found="not tested", fix=RUN_AS_ROOT)
    try:
        return item(ok=True, found=probe.ask())
    except UnmetError as unmet:
        return item(ok=False, found=str(unmet), fix=unmet.fix or probe.fix)
    except Exception as error:  # noqa: BLE001  a probe's own failure is an answer too
        return item(ok=False, found=f"{type(error).__name__}: {error}", fix=probe.fix)
