"""Where a move keeps its files: images and gates on the tmpfs, logs where they outlive it."""

import re
import shutil
from contextlib import suppress
from pathlib import Path

from migrate.machine.plan import MovePlan

# A CRIU log line that tells of a failure: ``(00.012345) Error (criu/files.c:1234): ...``.
_ERROR = re.compile(r"^(?:\([0-9.]+\)\s*)?(?:pie: )?(?:\d+: )?Error \([^)]*\): (.*)$")
# Without CAP_SYS_RESOURCE it goes on with the descriptors that it may have.
_HARMLESS = "rlimit: Can't setup RLIMIT_NOFILE for self"


class Places:
    """The directories of one move."""

    def __init__(self, plan: MovePlan) -> None:
        self.source_images = plan.source.images / f"{plan.move_id}-source"
        self.target_images = plan.target.images / f"{plan.move_id}-target"
        self.dump_gate = self.source_images / "gate"
        self.restore_gate = self.target_images / "gate"
        self.logs = plan.logs / plan.move_id

    @property
    def journals(self) -> tuple[Path, Path]:
        """The journal of either side."""
        return self.source_images / "journal", self.target_images / "journal"

    def make(self) -> None:
        """Make the directories; what an earlier attempt of this move left is removed."""
        for directory in (self.source_images, self.target_images):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700)

    def copy_descriptors(self) -> None:
        """runc's note of the container's standard streams, which its restore reads first."""
        name = "descriptors.json"
        shutil.copy(self.source_images / name, self.target_images / name)

    def blame(self, kind: str, error: Exception) -> str:
        """What to say when CRIU's ``dump`` or ``restore`` failed: its own words, and where."""
        directory = self.source_images if kind == "dump" else self.target_images
        cause = first_error(directory / f"{kind}.log") or str(error) or "it did not end in time"
        return f"{kind} failed: {cause}; CRIU's log: {self.logs / kind}.log"

    def save_logs(self) -> None:
        """Keep the logs and the journals, after a failure."""
        self.logs.mkdir(parents=True, exist_ok=True)
        for side in (self.source_images, self.target_images):
            for log in side.glob("*.log"):
                shutil.copy(log, self.logs / log.name)
        for name, journal in zip(("source", "target"), self.journals, strict=True):
            with suppress(FileNotFoundError):
                shutil.copy(journal, self.logs / f"{name}.journal")

    def remove(self) -> None:
        """Remove everything but saved logs."""
        for directory in (self.source_images, self.target_images):
            shutil.rmtree(directory, ignore_errors=True)


def first_error(log: Path) -> str | None:
    """The first error in a CRIU log: those after it mostly follow from it."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    found = (match[1] for line in lines if (match := _ERROR.match(line)))
    return next((one for one in found if not one.startswith(_HARMLESS)), None)
