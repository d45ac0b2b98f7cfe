"""A course that many tests share, until one of them fails."""

from netlab.tcp_soak.course import Course
from netlab.tcp_soak.resets import Resets
from netlab.wire.impairment import Impairment

LOSSES_AFTER_MS = 20


class Courses:
    """One course at a time, built when it is wanted.

    A test that fails may leave it in the middle of a move: then ``close``, and the next test gets
    another.
    """

    def __init__(self, impairment: Impairment, *, offload: bool = False) -> None:
        self._impairment = impairment
        self._offload = offload
        self._made: tuple[Course, Resets] | None = None

    def _make(self) -> tuple[Course, Resets]:
        course = Course(self._impairment, offload=self._offload)
        try:
            course.notice_losses_after(LOSSES_AFTER_MS)
            return course, Resets(course.client)
        except BaseException:
            course.close()
            raise

    @property
    def course(self) -> Course:
        self._made = self._made or self._make()
        return self._made[0]

    @property
    def resets(self) -> Resets:
        self._made = self._made or self._make()
        return self._made[1]

    def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            made[0].close()
