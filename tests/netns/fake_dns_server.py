"""A DNS server for tests, over UDP and TCP: `fake_dns_server.py ADDRESS PORT`. It says `ready` when it is.

host.*      A 192.0.2.7           slow.*      not over UDP       silent.*   never
long.*      TXT, 3,000 bytes      refused.*   REFUSED            fails.*    SERVFAIL
all else    NXDOMAIN
"""

from __future__ import annotations

import socketserver
import struct
import sys
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


def answer(data: bytes, over: str) -> bytes | None:
    query = dns.message.from_wire(data)
    [question] = query.question
    label = question.name.labels[0]
    reply = dns.message.make_response(query, recursion_available=True)
    if label == b"silent" or (label == b"slow" and over == "udp"):
        return None
    if label == b"host" and question.rdtype == dns.rdatatype.A:
        reply.answer.append(dns.rrset.from_text(question.name, 300, "IN", "A", "192.0.2.7"))
    elif label in {b"host", b"slow"}:
        reply.authority.append(dns.rrset.from_text("example.", 60, "IN", "SOA", "a. b. 1 2 3 4 60"))
    elif label == b"long":
        if over == "udp":
            reply.flags |= dns.flags.TC
        else:
            texts = [f'"{"x" * 200}{number:02}"' for number in range(15)]
            reply.answer.append(dns.rrset.from_text(question.name, 300, "IN", "TXT", *texts))
    elif label == b"refused":
        reply.set_rcode(dns.rcode.REFUSED)
    elif label == b"fails":
        reply.set_rcode(dns.rcode.SERVFAIL)
    else:
        reply.set_rcode(dns.rcode.NXDOMAIN)
        reply.authority.append(dns.rrset.from_text("example.", 60, "IN", "SOA", "a. b. 1 2 3 4 60"))
    return reply.to_wire(max_size=0xFFFF)


class Datagrams(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        reply = answer(data, "udp")
        if reply is not None:
            sock.sendto(reply, self.client_address)


class Streams(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        (length,) = struct.unpack(">H", self.rfile.read(2))
        reply = answer(self.rfile.read(length), "tcp")
        if reply is not None:
            self.wfile.write(struct.pack(">H", len(reply)) + reply)


def main() -> None:
    address = (sys.argv[1], int(sys.argv[2]))
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    streams = socketserver.ThreadingTCPServer(address, Streams)
    threading.Thread(target=streams.serve_forever, daemon=True).start()
    with socketserver.ThreadingUDPServer(address, Datagrams) as datagrams:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        datagrams.serve_forever()


if __name__ == "__main__":
    main()
