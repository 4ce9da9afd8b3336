"""Runs on the other machine, sent there as text: carries connections to its Unix sockets over stdin and stdout.

Both ways go frames: the connection's number, a letter, the length of what follows. The letters: o open the socket of
this path, or it is open; d data; e no more data comes; c closed, or could not be opened. Before its first frame comes
HELLO, because an account's shell may have said something already. It ends with its stdin, and then all connections do.
Keep it to Python 3.4 and the standard library: nobody knows what is there.
"""

import os
import select
import socket
import struct

HEAD = struct.Struct(">IcI")
HELLO = b"deferrable-ops carries from here\n"


def main() -> None:
    """Carry until stdin ends."""
    sockets = {}  # type: dict[int, socket.socket]
    waiting = b""
    write(HELLO)
    while True:
        readable, _, _ = select.select([0] + list(sockets.values()), [], [])  # noqa: RUF005
        for number, found in list(sockets.items()):
            if found in readable:
                answer(sockets, number, found)
        if 0 in readable:
            arrived = os.read(0, 65536)
            if not arrived:
                return
            waiting = take(sockets, waiting + arrived)


def answer(sockets: "dict[int, socket.socket]", number: int, found: socket.socket) -> None:
    """Pass on what a socket says."""
    try:
        data = found.recv(65536)
    except OSError:
        data = b""
    if data:
        send(number, b"d", data)
    else:
        close(sockets, number)


def take(sockets: "dict[int, socket.socket]", waiting: bytes) -> bytes:
    """Do what the frames that are there say, and return what is left: the beginning of another."""
    while len(waiting) >= HEAD.size:
        number, letter, length = HEAD.unpack_from(waiting)
        if len(waiting) < HEAD.size + length:
            break
        data = waiting[HEAD.size : HEAD.size + length]
        waiting = waiting[HEAD.size + length :]
        try:
            if letter == b"o":
                sockets[number] = socket.socket(socket.AF_UNIX)
                sockets[number].settimeout(10)
                sockets[number].connect(data)
                send(number, b"o", b"")
            elif number not in sockets:
                pass
            elif letter == b"d":
                sockets[number].sendall(data)
            elif letter == b"e":
                sockets[number].shutdown(socket.SHUT_WR)
            else:
                sockets.pop(number).close()
        except OSError:
            close(sockets, number)
    return waiting


def close(sockets: "dict[int, socket.socket]", number: int) -> None:
    """Tell that a connection is over."""
    sockets.pop(number).close()
    send(number, b"c", b"")


def send(number: int, letter: bytes, data: bytes) -> None:
    """Send a frame."""
    write(HEAD.pack(number, letter, len(data)) + data)


def write(data: bytes) -> None:
    """Write all of it."""
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
