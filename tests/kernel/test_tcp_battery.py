"""One battery of byte-stream checks, and every kind of connection goes through all of it."""

from collections.abc import Iterator

import pytest
from tcp_courses import Courses

from netlab.tcp_soak.battery import CHECKS
from netlab.tcp_soak.kinds import KINDS, make_pair
from netlab.wire.impairment import Impairment

pytestmark = pytest.mark.root

# Long enough that what was just sent is still under way when it is moved.
DELAY = Impairment(delay=0.001)


@pytest.fixture(scope="module")
def courses() -> Iterator[Courses]:
    made = Courses(DELAY, offload=True)
    yield made
    made.close()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("moving", ["server", "client"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_byte_stream(courses: Courses, kind: str, version: int, moving: str, check: str) -> None:
    """``moving``: which of the check's two parts the end that moves has."""
    try:
        pair = make_pair(courses.course, version, KINDS[kind])
        try:
            CHECKS[check](pair if moving == "server" else pair.flipped())
        finally:
            pair.close()
    except BaseException:
        courses.close()
        raise
