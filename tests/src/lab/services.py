"""The lab's internet beside the web: echo over TCP and UDP, time over NTP, at every address it is given."""

import selectors
import socket
import struct
import sys
import time

TCP = (22, 25, 4444, 5432)
UDP = (443, 5831, 5832)
NTP = 123

selector = selectors.DefaultSelector()


def main(addresses):
    for address in addresses:
        for port in (*UDP, NTP):
            datagrams = socket.socket(family(address), socket.SOCK_DGRAM)
            datagrams.bind((address, port))
            selector.register(datagrams, selectors.EVENT_READ, told_time if port == NTP else echo_datagram)
    for port in TCP:
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        selector.register(listener, selectors.EVENT_READ, accept)
    while True:
        for key, _ in selector.select():
            try:
                key.data(key.fileobj)
            except OSError:
                forget(key.fileobj)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def accept(listener):
    connection, _ = listener.accept()
    here = connection.getsockname()[0].removeprefix("::ffff:")
    connection.sendall(f"{here}\n".encode())
    selector.register(connection, selectors.EVENT_READ, echo)


def echo(connection):
    data = connection.recv(65536)
    if not data:
        return forget(connection)
    connection.sendall(data)


def forget(connection):
    if connection.type == socket.SOCK_STREAM:
        selector.unregister(connection)
        connection.close()


def echo_datagram(datagrams):
    data, client = datagrams.recvfrom(65536)
    datagrams.sendto(data, client)


def told_time(datagrams):
    """A server's reply to a client's request (RFC 5905 section 7.3), stratum 1."""
    request, client = datagrams.recvfrom(1024)
    if len(request) < 48:
        return
    now = time.time() + 2_208_988_800
    stamp = struct.pack("!II", int(now), int(now % 1 * 2**32))
    reply = struct.pack("!BBbbII4s", 0x24, 1, request[2], -20, 0, 0, b"LAB\0")
    datagrams.sendto(reply + stamp + request[40:48] + stamp + stamp, client)


main(sys.argv[1:])
