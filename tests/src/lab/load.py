"""Tries, again and again, what is allowed and what is not, and tells a line an attempt: TIME KIND WORKED.

load.py SITE ADDRESS TAGGED FORBIDDEN4 FORBIDDEN6: HTTP to SITE at ADDRESS and UDP 5831 to TAGGED are allowed; nothing
is to the forbidden ones.
"""

import http.client
import os
import socket
import struct
import sys
import threading
import time

# How long what is forbidden is waited for; and what is allowed, which is late on a busy machine and not lost.
PATIENCE = 0.4
ALLOWED_PATIENCE = 5 * PATIENCE
lock = threading.Lock()


def main(site, address, tagged, *forbidden):
    tries = [("http", lambda: says_hello(site, address)), ("udp", lambda: echoes(tagged, 5831, ALLOWED_PATIENCE))]
    for no in forbidden:
        tries += [
            (f"forbidden-tcp-{no}", lambda to=no: greets(to, 4444)),
            (f"forbidden-udp-{no}", lambda to=no: echoes(to, 5831)),
            (f"forbidden-quic-{no}", lambda to=no: echoes(to, 443)),
            (f"forbidden-ping-{no}", lambda to=no: answers_ping(to)),
        ]
    for kind, attempt in tries:
        threading.Thread(target=repeat, args=(kind, attempt), daemon=True).start()
    sys.stdin.read()
    with lock:
        os._exit(0)


def repeat(kind, attempt):
    while True:
        start = time.time()
        try:
            worked = attempt()
        except (OSError, http.client.HTTPException):
            worked = False
        with lock:
            print(f"{start:.6f} {kind} {int(worked)}", flush=True)
        # What is refused at once would leave the others no time.
        time.sleep(0.02)


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def says_hello(site, address):
    connection = http.client.HTTPConnection(address, 80, timeout=ALLOWED_PATIENCE)
    try:
        connection.request("GET", "/whoami", headers={"Host": site})
        return connection.getresponse().read().startswith(site.encode())
    finally:
        connection.close()


def greets(address, port):
    with socket.create_connection((address, port), timeout=PATIENCE) as stream:
        return bool(stream.recv(1))


def echoes(address, port, patience=PATIENCE):
    with socket.socket(family(address), socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(patience)
        datagrams.connect((address, port))
        datagrams.send(b"echo")
        return datagrams.recv(100) == b"echo"


def answers_ping(address):
    v6 = ":" in address
    kind, protocol = (128, socket.IPPROTO_ICMPV6) if v6 else (8, socket.IPPROTO_ICMP)
    with socket.socket(family(address), socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(PATIENCE)
        raw.connect((address, 0))
        message = struct.pack("!BBHHH", kind, 0, 0, 1, 1)
        if not v6:
            message = struct.pack("!BBHHH", kind, 0, ~sum(struct.unpack("!4H", message)) & 0xFFFF, 1, 1)
        raw.send(message)
        # It also hears what comes for others: errors, and neighbours.
        while answer := raw.recv(100):
            if answer[0 if v6 else 20] == (129 if v6 else 0):
                return True
        return False


main(*sys.argv[1:])
