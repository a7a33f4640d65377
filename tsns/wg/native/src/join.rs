//! Joins packets of one flow that follow one another to super-packets, such that the kernel cuts them into the very
//! packets that came; but for the identification of IPv4 packets that may not be fragmented, which means nothing
//! (RFC 6864), and is 0 in all packets of some senders.
//!
//! Source: `tcp_gro_receive`, `udp_gro_receive_segment` and `inet_gro_flush` of Linux; what the kernel makes of it is
//! in `segment`. Since `inet_gso_segment` numbers IPv4 packets one by one, without DF only such numbers are joined;
//! and since it gives the first segment alone CWR, only the first may have it.

use crate::checksum::{self, fold, RIGHT};
use crate::fields::{
    get16, get32, put16, short, version, ACK, CWR, DF, ECE, FIN, IPV4_BYTES, IPV6_BYTES, PSH, TCP, TCP_BYTES,
    TCP_CHECKSUM, TCP_FLAGS, TCP_MOST_BYTES, UDP, UDP_BYTES, UDP_CHECKSUM,
};
use crate::frame::{Header, Kind};

/// Packets in one super-packet.
const MAX_JOINED: usize = 64;
/// Bytes of one super-packet.
const MAX_JOINED_BYTES: usize = 0xffff;
/// Of the headers of a packet that may be joined.
pub const MOST_HEADERS: usize = IPV6_BYTES + TCP_MOST_BYTES;

/// What has to be known of a packet that others may be joined to.
struct Facts {
    is_ipv6: bool,
    is_udp: bool,
    transport: usize, // where TCP or UDP begins
    headers: usize,   // bytes of all of them
    payload: usize,
    is_last: bool, // by its flags, nothing follows it
}

impl Facts {
    /// None: a packet that is joined to none.
    fn of(packet: &[u8], join_udp: bool) -> Option<Self> {
        let is_ipv6 = version(packet) == 6;
        let (transport, protocol) = if is_ipv6 { (IPV6_BYTES, packet[6]) } else { (IPV4_BYTES, packet[9]) };
        // Options and fragments are rare; the checksums must be those that the kernel would write (RFC 1624 has two zeros).
        if !is_ipv6 && (packet[0] != 0x45 || get16(packet, 6) & !DF != 0 || get16(packet, 10) == 0xffff) {
            return None;
        }
        let rest = packet.len() - transport; // an IP header is there whole: see `inner_length`
        let is_udp = protocol == UDP;
        let (transport_bytes, is_last) = match protocol {
            UDP if join_udp && rest > UDP_BYTES => {
                if usize::from(get16(packet, transport + 4)) != rest || get16(packet, transport + UDP_CHECKSUM) == 0 {
                    return None;
                }
                (UDP_BYTES, false)
            }
            TCP if rest > TCP_BYTES => {
                let flags = packet[transport + TCP_FLAGS];
                if flags & !(PSH | FIN | ECE | CWR) != ACK || get16(packet, transport + TCP_CHECKSUM) == 0xffff {
                    return None;
                }
                (usize::from(packet[transport + 12] >> 4) * 4, flags & (PSH | FIN) != 0)
            }
            _ => return None,
        };
        if rest <= transport_bytes || transport_bytes < UDP_BYTES || (!is_udp && transport_bytes < TCP_BYTES) {
            return None;
        }
        let total = checksum::pseudo_header(packet, is_ipv6, protocol, rest) + checksum::sum(&packet[transport..]);
        let is_right = fold(total) == RIGHT && (is_ipv6 || fold(checksum::sum(&packet[..IPV4_BYTES])) == RIGHT);
        let headers = transport + transport_bytes;
        is_right.then_some(Self { is_ipv6, is_udp, transport, headers, payload: packet.len() - headers, is_last })
    }
}

/// Packets that were joined, one behind the other behind the headers of the first.
struct Run {
    at: usize, // of its first packet, in the room
    size: usize,
    count: usize,
    is_open: bool, // whether more may follow
    facts: Option<Facts>,
}

impl Run {
    /// Bytes at its end that the headers of a packet to be joined may cover for a while.
    fn lap(&self) -> usize {
        self.facts.as_ref().filter(|_| self.is_open).map_or(0, |facts| facts.headers)
    }

    /// Whether a packet follows this run: its headers (`theirs`) are those of the run (`ours`) but for what the cut rewrites.
    fn is_followed_by(&self, next: &Facts, ours: &[u8], theirs: &[u8]) -> bool {
        let Some(facts) = self.facts.as_ref().filter(|_| self.is_open) else {
            return false;
        };
        let alike = (facts.is_ipv6, facts.is_udp, facts.headers) == (next.is_ipv6, next.is_udp, next.headers);
        let fits =
            next.payload <= facts.payload && self.count < MAX_JOINED && self.size + next.payload <= MAX_JOINED_BYTES;
        if !alike || !fits {
            return false;
        }
        let same = |from: usize, to: usize| ours[from..to] == theirs[from..to];
        let count = short(self.count);
        let same_ip = if facts.is_ipv6 {
            same(0, 4) && same(6, IPV6_BYTES)
        } else {
            let is_next = get16(theirs, 4) == get16(ours, 4).wrapping_add(count) || get16(ours, 6) & DF != 0;
            same(0, 2) && is_next && same(6, 10) && same(12, IPV4_BYTES)
        };
        let at = facts.transport;
        if !same_ip || !same(at, at + 4) {
            return false;
        }
        if facts.is_udp {
            return true;
        }
        let sequence = get32(ours, at + 4).wrapping_add(u32::from(short(self.size - facts.headers)));
        let flags = (ours[at + TCP_FLAGS] & !CWR, theirs[at + TCP_FLAGS] & !(PSH | FIN));
        get32(theirs, at + 4) == sequence
            && same(at + 8, at + TCP_FLAGS)
            && flags.0 == flags.1
            && same(at + TCP_FLAGS + 1, at + TCP_CHECKSUM)
            && same(at + TCP_CHECKSUM + 2, facts.headers)
    }

    /// Write the frame's header and set right what the first packet's headers say of the whole; its bytes in all.
    fn finish(&self, frame: &mut [u8]) -> usize {
        let (raw, packet) = frame.split_at_mut(crate::frame::HEADER_BYTES);
        raw.fill(0);
        if let Some(facts) = self.facts.as_ref().filter(|_| self.count > 1) {
            let (kind, protocol, field) = match (facts.is_udp, facts.is_ipv6) {
                (true, _) => (Kind::Udp, UDP, UDP_CHECKSUM),
                (false, true) => (Kind::TcpV6, TCP, TCP_CHECKSUM),
                (false, false) => (Kind::TcpV4, TCP, TCP_CHECKSUM),
            };
            let transport = facts.transport;
            let says_cwr = !facts.is_udp && packet[transport + TCP_FLAGS] & CWR != 0;
            let header = Header {
                needs_checksum: true,
                kind,
                header_bytes: facts.headers,
                segment_bytes: facts.payload,
                checksum_start: transport,
                checksum_offset: field,
            };
            header.write(raw, says_cwr);
            if facts.is_ipv6 {
                put16(packet, 4, short(self.size - IPV6_BYTES));
            } else {
                put16(packet, 2, short(self.size));
                checksum::put_ipv4(&mut packet[..IPV4_BYTES]);
            }
            if facts.is_udp {
                put16(packet, transport + 4, short(self.size - transport));
            }
            let partial = checksum::pseudo_header(packet, facts.is_ipv6, protocol, self.size - transport);
            checksum::put(packet, transport + field, partial);
        }
        crate::frame::HEADER_BYTES + self.size
    }
}

/// Lays frames one behind the other into a room. A packet comes to lie where its payload belongs if it is joined.
///
/// For each packet: `lay`, write it to where that points, then `take` or `leave` it.
pub struct Joiner<'o> {
    room: &'o mut [u8],
    join_udp: bool,
    end: usize, // of the run, or of the last frame
    run: Option<Run>,
    covered: [u8; MOST_HEADERS], // what the packet covers of the run
    lap: usize,                  // bytes of it
    /// Bytes of each frame.
    pub sizes: Vec<usize>,
}

impl<'o> Joiner<'o> {
    /// The room must hold the frames, each packet with ten bytes before it, and the last one with what is laid behind it.
    pub fn new(room: &'o mut [u8], join_udp: bool) -> Self {
        Self { room, join_udp, end: 0, run: None, covered: [0; MOST_HEADERS], lap: 0, sizes: Vec::new() }
    }

    /// The place for so many bytes with a packet at their beginning. None: the room is too small.
    pub fn lay(&mut self, size: usize) -> Option<&mut [u8]> {
        self.lap = self.run.as_ref().map_or(0, Run::lap);
        let place = self.place();
        let room = self.room.get_mut(place..place + size.max(self.lap))?;
        self.covered[..self.lap].copy_from_slice(&room[..self.lap]);
        Some(&mut room[..size])
    }

    fn place(&self) -> usize {
        if self.lap > 0 {
            self.end - self.lap
        } else {
            self.end + crate::frame::HEADER_BYTES
        }
    }

    /// Nothing came of what was laid.
    pub fn leave(&mut self) {
        let place = self.place();
        self.room[place..place + self.lap].copy_from_slice(&self.covered[..self.lap]);
    }

    /// Join the packet of this size, or begin a frame with it. It is a whole IP packet: see `inner_length`.
    pub fn take(&mut self, size: usize) {
        let (lap, place) = (self.lap, self.place());
        let facts = Facts::of(&self.room[place..place + size], self.join_udp);
        // Its headers may lie on those of the run, if that is a short one: the run gets its bytes back first.
        self.covered[..lap].swap_with_slice(&mut self.room[place..place + lap]);
        if let (Some(run), Some(next)) = (self.run.as_mut().filter(|_| lap > 0), facts.as_ref()) {
            let ours = &mut self.room[run.at..];
            if run.is_followed_by(next, ours, &self.covered) {
                if !next.is_udp {
                    let at = next.transport + TCP_FLAGS;
                    ours[at] |= self.covered[at] & (PSH | FIN);
                }
                run.is_open = !next.is_last && run.facts.as_ref().is_some_and(|first| first.payload == next.payload);
                run.size += next.payload;
                run.count += 1;
                self.end += next.payload;
                return;
            }
        }
        self.finish();
        let at = self.end + crate::frame::HEADER_BYTES;
        if lap > 0 {
            let covered = lap.min(size);
            self.room.copy_within(self.end..self.end + (size - covered), at + covered);
            self.room[at..at + covered].copy_from_slice(&self.covered[..covered]);
        }
        let is_open = facts.as_ref().is_some_and(|facts| !facts.is_last);
        self.run = Some(Run { at, size, count: 1, is_open, facts });
        self.end = at + size;
    }

    /// End the run: nothing more is joined to it.
    pub fn finish(&mut self) {
        if let Some(run) = self.run.take() {
            self.sizes.push(run.finish(&mut self.room[run.at - crate::frame::HEADER_BYTES..]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::tests::{frame, packets};

    const SLACK: usize = 32;

    /// The frames that become of packets.
    fn joined(packets: &[Vec<u8>], join_udp: bool) -> Vec<Vec<u8>> {
        let mut room = vec![0xee; packets.iter().map(|packet| packet.len() + 10).sum::<usize>() + SLACK];
        let mut joiner = Joiner::new(&mut room, join_udp);
        for packet in packets {
            let place = joiner.lay(packet.len() + SLACK - 10).unwrap();
            place.fill(0xdd);
            joiner.leave();
            let place = joiner.lay(packet.len() + SLACK - 10).unwrap();
            place[..packet.len()].copy_from_slice(packet);
            place[packet.len()..].fill(0xcc);
            joiner.take(packet.len());
        }
        joiner.finish();
        let sizes = std::mem::take(&mut joiner.sizes);
        let mut rest = room.as_slice();
        sizes
            .into_iter()
            .map(|size| {
                let (frame, behind) = rest.split_at(size);
                rest = behind;
                frame.to_vec()
            })
            .collect()
    }

    fn cut(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        frames.iter().flat_map(|frame| packets(frame)).collect()
    }

    #[test]
    fn what_is_joined_is_what_was_cut() {
        for (is_ipv6, is_udp) in [(false, false), (true, false), (false, true), (true, true)] {
            for (payload, segment) in [(20, 1), (50, 7), (2501, 1000), (64 * 100, 100), (3000, 1000)] {
                let sent = frame(is_ipv6, is_udp, payload, segment);
                let packets = packets(&sent);
                let frames = joined(&packets, true);
                assert_eq!(frames.len(), 1);
                assert_eq!(frames[0][10..], sent[10..]);
                assert_eq!(cut(&frames), packets);
                assert_eq!(joined(&packets, false).len(), if is_udp { packets.len() } else { 1 });
            }
        }
    }

    #[test]
    fn at_most_so_many() {
        let packets = packets(&frame(true, false, 128 * 50, 50));
        let frames = joined(&packets, true);
        assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [10 + 60 + 64 * 50; 2]);
        assert_eq!(cut(&frames), packets);
    }

    #[test]
    fn one_bit_is_enough_to_stay_alone() {
        for (is_ipv6, is_udp) in [(false, false), (true, false), (false, true), (true, true)] {
            let whole = packets(&frame(is_ipv6, is_udp, 300, 100));
            for bit in 0..whole[1].len() * 8 {
                let mut packets = whole.clone();
                packets[1][bit / 8] ^= 1 << (bit % 8);
                if crate::fields::inner_length(&packets[1]) != Some(packets[1].len()) {
                    continue;
                }
                let frames = joined(&packets, true);
                assert!(frames.len() > 1, "bit {bit}");
                assert!(frames.iter().any(|frame| frame[..10] == [0; 10] && frame[10..] == packets[1]), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_longer_one_and_one_behind_a_shorter_one_begin_anew() {
        let long = packets(&frame(false, true, 300, 100));
        let mut short = packets(&frame(false, true, 50, 50)).remove(0);
        let place = [0xffff, 0, 1];
        for (number, id) in place.into_iter().enumerate() {
            put16(&mut short, 4, id);
            put16(&mut short, 6, 0);
            checksum::put_ipv4(&mut short[..20]);
            let mut packets = long.clone();
            for packet in &mut packets {
                put16(packet, 6, 0);
                checksum::put_ipv4(&mut packet[..20]);
            }
            packets[number] = short.clone();
            assert_eq!(cut(&joined(&packets, true)), packets);
        }
    }

    #[test]
    fn the_number_of_a_packet_counts_where_it_may_be_fragmented() {
        for (flags, frames) in [(0, 3), (DF, 1)] {
            let mut packets = packets(&frame(false, true, 300, 100));
            for packet in &mut packets {
                put16(packet, 4, 7);
                put16(packet, 6, flags);
                checksum::put_ipv4(&mut packet[..20]);
            }
            assert_eq!(joined(&packets, true).len(), frames);
        }
    }

    #[test]
    fn a_room_too_small_is_said() {
        let mut room = [0; 20];
        assert!(Joiner::new(&mut room, true).lay(11).is_none());
    }
}
