"""Connects to Unix sockets, and transfers the data of these connections over stdin and stdout.

The library sends the source code of this program to the remote machine, and runs the program there. The data is sent in
frames, both on stdin and on stdout. A frame consists of a connection number, a letter, the length of the data, and the
data. The letters have these meanings:

- o: from the library, a request to connect to the socket whose path is in the data; from this program, the response
  that the connection is open.
- d: the frame contains data.
- e: the sender will send no more data.
- c: the socket was closed or could not be opened.

The program sends the bytes ``HELLO`` before its first frame, because the shell of the remote account may print other
text first. When stdin ends, this program closes all connections and ends. This program must run with Python 3.4 and
only its standard library, because the Python version on the remote machine is unknown.
"""

import os
import select
import socket
import struct

HEAD = struct.Struct(">IcI")
HELLO = b"deferrable-ops carries from here\n"


def main() -> None:
    """Copy data from stdin to the sockets, and from the sockets to stdout, until stdin ends."""
    sockets = {}  # type: dict[int, socket.socket]
    pending = b""
    write(HELLO)
    while True:
        readable, _, _ = select.select([0] + list(sockets.values()), [], [])  # noqa: RUF005
        for number, connection in list(sockets.items()):
            if connection in readable:
                forward(sockets, number, connection)
        if 0 in readable:
            received = os.read(0, 65536)
            if not received:
                return
            pending = handle_frames(sockets, pending + received)


def forward(sockets: "dict[int, socket.socket]", number: int, connection: socket.socket) -> None:
    """Read data from a connection to a socket, and write the data to stdout as a frame."""
    try:
        data = connection.recv(65536)
    except OSError:
        data = b""
    if data:
        send(number, b"d", data)
    else:
        close(sockets, number)


def handle_frames(sockets: "dict[int, socket.socket]", pending: bytes) -> bytes:
    """Handle the complete frames in `pending`. Return the bytes after the last complete frame, which are the beginning
    of the next frame.
    """
    while len(pending) >= HEAD.size:
        number, letter, length = HEAD.unpack_from(pending)
        if len(pending) < HEAD.size + length:
            break
        data = pending[HEAD.size : HEAD.size + length]
        pending = pending[HEAD.size + length :]
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
    return pending


def close(sockets: "dict[int, socket.socket]", number: int) -> None:
    """Close a connection to a socket, and send a frame with the letter ``c``."""
    sockets.pop(number).close()
    send(number, b"c", b"")


def send(number: int, letter: bytes, data: bytes) -> None:
    """Send one frame to stdout."""
    write(HEAD.pack(number, letter, len(data)) + data)


def write(data: bytes) -> None:
    """Write all bytes of `data` to stdout."""
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
