"""The process from which keepers come (ring 1).

A client starts it with a connection as descriptor 3; it imports what a node needs and becomes that client's keeper. Here a warmed process
that forks a keeper for each of many clients will have its place.
"""

from __future__ import annotations

import socket

from tsns.node import keeper, warm

CONNECTION_FD = 3


def main() -> None:
    """Be the keeper of the client at the other end of descriptor 3."""
    warm.settle()
    keeper.run(socket.socket(fileno=CONNECTION_FD))


if __name__ == "__main__":
    main()
