"""One conversation of a lab machine, byte by byte, told on standard output a line an event.

probe.py tcp ADDRESS PORT                     then lines of hexadecimal on standard input are sent
probe.py udp ADDRESS PORT SECONDS HEX [SOURCE-PORT [IP-OPTIONS-HEX]]
probe.py raw ADDRESS HEX…                     whole IPv4 packets
"""

import errno
import socket
import struct
import sys
import threading

# The number of the option is not in every Python's socket module.
IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE = 11, 25, 0x2000


def main(kind, address, *rest):
    {"tcp": tcp, "udp": udp, "raw": raw}[kind](address, *rest)


def say(*words):
    print(*words, flush=True)


def name(error):
    return errno.errorcode.get(error.errno, "timeout" if isinstance(error, TimeoutError) else str(error))


def tcp(address, port):
    try:
        stream = socket.create_connection((address, int(port)), timeout=10)
    except OSError as error:
        return say("failed", name(error))
    stream.settimeout(None)
    say("connected", stream.getsockname()[1])
    threading.Thread(target=send_lines, args=(stream,), daemon=True).start()
    try:
        while data := stream.recv(65536):
            say("data", data.hex())
        say("ended", "closed")
    except OSError as error:
        say("ended", name(error))


def send_lines(stream):
    try:
        for line in sys.stdin:
            if line.strip() == "shutdown":
                stream.shutdown(socket.SHUT_WR)
            else:
                stream.sendall(bytes.fromhex(line))
    except OSError:
        pass


def udp(address, port, seconds, payload, source_port="0", options=""):
    v6 = ":" in address
    datagrams = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.setsockopt(*((socket.IPPROTO_IPV6, IPV6_RECVERR) if v6 else (socket.IPPROTO_IP, IP_RECVERR)), 1)
    if options:
        datagrams.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes.fromhex(options))
    datagrams.bind(("", int(source_port)))
    datagrams.settimeout(float(seconds))
    try:
        datagrams.connect((address, int(port)))
        datagrams.send(bytes.fromhex(payload))
        say("answer", datagrams.recv(65536).hex())
    except TimeoutError:
        say("silence")
    except OSError as error:
        say(*icmp_error(datagrams) or ("failed", name(error)))


def icmp_error(datagrams):
    """Type and code of the ICMP message that ended it: struct sock_extended_err of linux/errqueue.h."""
    try:
        _, ancillary, _, _ = datagrams.recvmsg(1, 512, MSG_ERRQUEUE)
    except OSError:
        return None
    for _, _, data in ancillary:
        _, origin, kind, code = struct.unpack_from("=IBBB", data)
        if origin in (2, 3):
            return "icmp", kind, code
    return None


def raw(address, *packets):
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    for packet in packets:
        try:
            sender.sendto(bytes.fromhex(packet), (address, 0))
        except OSError as error:
            return say("failed", name(error))
    say("sent", len(packets))


main(*sys.argv[1:])
