"""What an agent that was killed may have left of moves that had not begun."""

import logging
from collections.abc import Sequence

from mycoproxy.netfilter.hold import left_holds
from mycoproxy.netfilter.nft import Nft

log = logging.getLogger(__name__)


def remove_left_holds(known: Sequence[str]) -> None:
    """Those of moves other than ``known``, in the network namespace of the calling thread."""
    with Nft() as nft:
        for table in left_holds(nft, known):
            log.info("removed %s, which was left behind", table)
            nft.delete_table(table)
