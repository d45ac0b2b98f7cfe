"""TAP devices: an interface whose packets a process reads and writes (Documentation/networking/
tuntap.rst). The device is there as long as a descriptor of it is open.
"""

import fcntl
import os
import struct

from mycoproxy.errors import MycoError, RefusedError
from netlab.links import rtnetlink

_CLONE_DEVICE = "/dev/net/tun"

TUNSETIFF = 0x400454CA  # linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
TUNSETCARRIER = 0x400454E2
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08

_IFREQ = struct.Struct("16sH22x")  # linux/if.h, struct ifreq with ifr_flags
_NAME_BYTES = 15  # IFNAMSIZ - 1

# Packets that the device keeps for its reader. The usual 1000 are a few milliseconds of a fast
# sender, and this reader may have to wait for a processor that long.
_QUEUE_PACKETS = 20_000


def open_tap(ifname: str, *, mtu: int, offload: bool) -> int:
    """Make a TAP device in the calling thread's namespace and take it up; its descriptor.

    A read on the descriptor (non-blocking, close-on-exec) is one Ethernet frame, a write too. With
    ``offload`` each has a ``struct virtio_net_hdr`` of 10 bytes in front, checksums may be missing,
    and TCP segments come up to 64 KiB at a time, as between the ends of a veth.

    Raises ``RefusedError`` without /dev/net/tun, ``MycoError`` if the kernel refuses the name or
    the MTU (up to 65521 bytes).
    """
    name = ifname.encode()
    if not 0 < len(name) <= _NAME_BYTES:
        raise MycoError(f"an interface name of 1 to {_NAME_BYTES} bytes is wanted: {ifname!r}")
    try:
        descriptor = os.open(_CLONE_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedError(f"a wire needs TAP devices: {error}") from error
    try:
        flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if offload else 0)
        fcntl.ioctl(descriptor, TUNSETIFF, _IFREQ.pack(name, flags))
        if offload:
            features = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
            fcntl.ioctl(descriptor, TUNSETOFFLOAD, features)
        with rtnetlink(f"cannot take up {ifname} with an MTU of {mtu} bytes") as netlink:
            number = netlink.link_lookup(ifname=ifname)[0]
            netlink.link("set", index=number, mtu=mtu, txqlen=_QUEUE_PACKETS, state="up")
        # It has had a carrier since before it was up, so its operational state stays "unknown",
        # which is as good as "up", but not to everybody. It says "up" once the carrier comes back.
        for carrier in (0, 1):
            fcntl.ioctl(descriptor, TUNSETCARRIER, struct.pack("i", carrier))
    except OSError as error:
        os.close(descriptor)
        raise MycoError(f"cannot make the TAP device {ifname}: {error}") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
