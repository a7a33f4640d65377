"""The kernel's offloads at both ends of the pump: super-packets of the TUN, trains of UDP (ring 1).

Source: Documentation/networking/tuntap.rst, udp(7), include/uapi/linux/{if_tun,udp}.h; TCP and UDP segmentation over a TUN since Linux
2.6.27 and 6.2, UDP_SEGMENT since 4.18, UDP_GRO since 5.0. One system call then carries up to 64 packets.

Each of them may be missing, and is then done without, alone: what the kernel refuses at the start, or says is impossible for a device
when a train is sent, is switched off; `Offloads` says what is on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from tsns.netns.tun import IFF_VNET_HDR
from tsns.proto.virtio import MAX_FRAME_BYTES, PLAIN, Frame
from tsns.ways import Train
from tsns.wg.segments import packets_of

TUNSETOFFLOAD: Final = 0x400454D0
TUNGETIFF: Final = 0x800454D2
TUN_F_CSUM: Final = 1
TUN_F_TSO: Final = 2 | 4  # IPv4, IPv6
TUN_F_USO: Final = 0x20 | 0x40

SOL_UDP: Final = 17
UDP_SEGMENT: Final = 103
UDP_GRO: Final = 104
MAX_DATAGRAM_BYTES: Final = 0xFFFF
ANCILLARY_BYTES: Final = socket.CMSG_SPACE(struct.calcsize("i"))

# What sending a train to a device without checksum offload gives (the first), and what older kernels say of the option itself.
_IMPOSSIBLE: Final = frozenset({errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT})
# The messages are longer than the path takes: by themselves the kernel will cut them into fragments.
_TOO_LONG: Final = frozenset({errno.EMSGSIZE, errno.EINVAL})


@dataclass(slots=True)
class Offloads:
    """What is on; a person sees it in `status -v`."""

    tun_header: bool = False  # virtio headers: packets may be joined
    tun_tcp: bool = False  # and come joined
    tun_udp: bool = False
    udp_segment: bool = True
    udp_gro: bool = True

    def named(self) -> dict[str, bool]:
        """By the names that they have in the kernel."""
        return {
            "vnet_hdr": self.tun_header,
            "TSO": self.tun_tcp,
            "USO": self.tun_udp,
            "UDP_SEGMENT": self.udp_segment,
            "UDP_GRO": self.udp_gro,
        }


class TunDevice:
    """A TUN's descriptor (IFF_NO_PI, non-blocking) as a source and sink of frames. It stays its owner's to close."""

    def __init__(self, fd: int, offloads: Offloads) -> None:
        self.fd = fd
        self._offloads = offloads
        try:
            (flags,) = struct.unpack_from("H", fcntl.ioctl(fd, TUNGETIFF, bytes(40)), 16)
        except OSError:
            flags = 0
        offloads.tun_header = bool(flags & IFF_VNET_HDR)
        if offloads.tun_header:
            offloads.tun_udp = self._offer(TUN_F_CSUM | TUN_F_TSO | TUN_F_USO)
            offloads.tun_tcp = offloads.tun_udp or self._offer(TUN_F_CSUM | TUN_F_TSO)

    def _offer(self, features: int) -> bool:
        try:
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, features)
        except OSError:
            return False
        return True

    def read(self) -> bytes:
        """The next frame; BlockingIOError when there is none, another OSError when the device is gone."""
        frame = os.read(self.fd, MAX_FRAME_BYTES)
        return frame if self._offloads.tun_header else PLAIN + frame

    def write(self, frame: Frame) -> None:
        """Give the host a frame; OSError where it does not take it."""
        if self._offloads.tun_header:
            os.write(self.fd, frame)
            return
        for packet in packets_of(bytes(frame)):
            os.write(self.fd, packet)


class UdpPort:
    """A UDP socket (non-blocking) as a source and sink of trains. It stays its owner's to close."""

    def __init__(self, sock: socket.socket, offloads: Offloads) -> None:
        self.sock = sock
        self._offloads = offloads
        try:
            sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        except OSError:
            offloads.udp_gro = False

    def receive(self) -> tuple[Train, tuple[str, int]]:
        """The next datagrams of one sender and where they came from; OSError as of `recvmsg`."""
        data, ancillary, _, address = self.sock.recvmsg(MAX_DATAGRAM_BYTES, ANCILLARY_BYTES)
        stride = len(data)
        for level, kind, value in ancillary:
            if level == SOL_UDP and kind == UDP_GRO:
                (stride,) = struct.unpack("i", value)
        return Train(data, stride), (address[0], address[1])

    def send(self, train: Train, address: tuple[str, int]) -> None:
        """Send a train; OSError where the kernel does not take it, or not all of it."""
        data, stride = train
        if len(data) <= stride:
            self.sock.sendto(data, address)
            return
        if self._offloads.udp_segment:
            try:
                self.sock.sendmsg((data,), ((SOL_UDP, UDP_SEGMENT, struct.pack("H", stride)),), 0, address)
            except OSError as error:
                if error.errno in _IMPOSSIBLE:
                    self._offloads.udp_segment = False
                elif error.errno not in _TOO_LONG:
                    raise
            else:
                return
        for message in train.messages():
            self.sock.sendto(message, address)
