//! Cuts what the TUN gave into packets as they go on the wire: numbered, with their lengths and whole checksums.
//!
//! Source: `tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment` and `skb_checksum_help` of Linux, which do the
//! same where no tunnel stands in between.

use crate::checksum;
use crate::fields::{
    get16, get32, put16, put32, short, version, CWR, FIN, IPV4_BYTES, IPV6_BYTES, PSH, TCP_BYTES, TCP_CHECKSUM,
    TCP_FLAGS, UDP_BYTES, UDP_CHECKSUM,
};
use crate::frame::{self, Kind};

/// Packets that one frame may become: `UDP_MAX_SEGMENTS` since Linux 6.9, and more than a TUN of ours is given.
pub const MAX_SEGMENTS: usize = 128;

/// How a frame is cut: checked once, so that `write` has nothing left to doubt.
pub struct Cut<'a> {
    packet: &'a [u8],
    how: How,
    /// Packets that it becomes.
    pub count: usize,
}

enum How {
    Whole,
    Complete { start: usize, offset: usize },
    Segments(Shape),
}

/// The headers that all segments share.
struct Shape {
    is_ipv6: bool,
    is_udp: bool,
    transport: usize, // where TCP or UDP begins
    headers: usize,   // bytes of all of them
    segment: usize,   // payload of each packet but the last
    pseudo: u64,      // sum of the pseudo-header but for the length
}

impl<'a> Cut<'a> {
    /// None: the frame makes no sense.
    #[must_use]
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let (header, packet) = frame::split(frame)?;
        let (start, offset) = (header.checksum_start, header.checksum_offset);
        if header.kind == Kind::None {
            let how = match header.needs_checksum {
                true if start + offset + 2 > packet.len() => return None,
                true => How::Complete { start, offset },
                false => How::Whole,
            };
            return Some(Self { packet, how, count: 1 });
        }
        let shape = Shape::of(&header, packet)?;
        let count = (packet.len() - shape.headers).div_ceil(shape.segment).max(1);
        (count <= MAX_SEGMENTS).then_some(Self { packet, how: How::Segments(shape), count })
    }

    /// Bytes of the packet with this number.
    #[must_use]
    pub fn size(&self, number: usize) -> usize {
        match &self.how {
            How::Segments(shape) if number + 1 < self.count => shape.headers + shape.segment,
            How::Segments(shape) => self.packet.len() - number * shape.segment,
            _ => self.packet.len(),
        }
    }

    /// Write the packet with this number into its `size` bytes.
    pub fn write(&self, number: usize, out: &mut [u8]) {
        match &self.how {
            How::Whole => out.copy_from_slice(self.packet),
            How::Complete { start, offset } => {
                out.copy_from_slice(self.packet);
                // Nobody looked whether it is UDP: as the kernel does, never 0, for TCP the other zero is as good.
                let total = checksum::sum(&out[*start..]);
                checksum::put_complement(out, start + offset, total, true);
            }
            How::Segments(shape) => shape.write(self.packet, number, number + 1 == self.count, out),
        }
    }
}

impl Shape {
    fn of(header: &frame::Header, packet: &[u8]) -> Option<Self> {
        let is_ipv6 = match (header.kind, version(packet)) {
            (Kind::TcpV4 | Kind::Udp, 4) => false,
            (Kind::TcpV6 | Kind::Udp, 6) => true,
            _ => return None,
        };
        let is_udp = header.kind == Kind::Udp;
        let (transport, segment) = (header.checksum_start, header.segment_bytes);
        let least = if is_udp { UDP_BYTES } else { TCP_BYTES };
        if !header.needs_checksum || segment == 0 || transport + least > packet.len() {
            return None;
        }
        // What stands between the headers of IPv6 and TCP is not looked at: the sum in the field covers what it must.
        let ip_holds = if is_ipv6 {
            transport >= IPV6_BYTES
        } else {
            transport >= IPV4_BYTES && transport == usize::from(packet[0] & 15) * 4
        };
        let (field, transport_bytes) = if is_udp {
            (UDP_CHECKSUM, UDP_BYTES)
        } else {
            (TCP_CHECKSUM, usize::from(packet[transport + 12] >> 4) * 4)
        };
        let headers = transport + transport_bytes;
        let lies = header.checksum_offset != field || !(headers..=packet.len()).contains(&header.header_bytes);
        if !ip_holds || transport_bytes < least || headers > packet.len() || lies {
            return None;
        }
        let whole = u16::try_from(packet.len() - transport).ok()?;
        let pseudo = checksum::get(packet, transport + field) + checksum::without(whole);
        Some(Self { is_ipv6, is_udp, transport, headers, segment, pseudo })
    }

    fn write(&self, packet: &[u8], number: usize, is_last: bool, out: &mut [u8]) {
        let (transport, headers) = (self.transport, self.headers);
        let (size, begin) = (out.len(), number * self.segment);
        out[..headers].copy_from_slice(&packet[..headers]);
        out[headers..].copy_from_slice(&packet[headers + begin..begin + size]);
        if self.is_ipv6 {
            put16(out, 4, short(size - IPV6_BYTES));
        } else {
            put16(out, 2, short(size));
            put16(out, 4, get16(packet, 4).wrapping_add(short(number)));
            checksum::put_ipv4(&mut out[..transport]);
        }
        let checksum_at = if self.is_udp {
            put16(out, transport + 4, short(size - transport));
            transport + UDP_CHECKSUM
        } else {
            let sequence = get32(packet, transport + 4).wrapping_add(u32::try_from(begin).unwrap_or(0));
            put32(out, transport + 4, sequence);
            let never_first = if number > 0 { CWR } else { 0 };
            let only_last = if is_last { 0 } else { FIN | PSH };
            out[transport + TCP_FLAGS] &= !(never_first | only_last);
            transport + TCP_CHECKSUM
        };
        put16(out, checksum_at, 0);
        let total = checksum::sum(&out[transport..]) + self.pseudo + checksum::word(short(size - transport));
        checksum::put_complement(out, checksum_at, total, self.is_udp);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::checksum::{fold, pseudo_header, sum, RIGHT};
    use crate::fields::{ACK, TCP, UDP};

    /// A super-packet as the kernel hands it over.
    pub(crate) fn frame(is_ipv6: bool, is_udp: bool, payload: usize, segment: usize) -> Vec<u8> {
        let transport = if is_ipv6 { IPV6_BYTES } else { IPV4_BYTES };
        let (protocol, kind, field, headers) = match (is_udp, is_ipv6) {
            (true, _) => (UDP, Kind::Udp, UDP_CHECKSUM, transport + UDP_BYTES),
            (_, true) => (TCP, Kind::TcpV6, TCP_CHECKSUM, transport + TCP_BYTES),
            (_, false) => (TCP, Kind::TcpV4, TCP_CHECKSUM, transport + TCP_BYTES),
        };
        let size = headers + payload;
        let mut frame: Vec<u8> = (0..=250).cycle().take(frame::HEADER_BYTES + size).collect();
        let (raw, packet) = frame.split_at_mut(frame::HEADER_BYTES);
        if is_ipv6 {
            packet[0] = 0x60;
            put16(packet, 4, short(size - IPV6_BYTES));
            packet[6] = protocol;
        } else {
            packet[0] = 0x45;
            put16(packet, 2, short(size));
            put16(packet, 4, 0xfffe);
            put16(packet, 6, 0x4000);
            packet[9] = protocol;
            checksum::put_ipv4(&mut packet[..IPV4_BYTES]);
        }
        if is_udp {
            put16(packet, transport + 4, short(size - transport));
        } else {
            put32(packet, transport + 4, u32::MAX - 1000);
            packet[transport + 12] = 0x50;
            packet[transport + TCP_FLAGS] = ACK | PSH | FIN | CWR;
        }
        let partial = pseudo_header(packet, is_ipv6, protocol, size - transport);
        checksum::put(packet, transport + field, partial);
        let header = frame::Header {
            needs_checksum: true,
            kind,
            header_bytes: headers,
            segment_bytes: segment,
            checksum_start: transport,
            checksum_offset: field,
        };
        header.write(raw, false);
        frame
    }

    pub(crate) fn packets(frame: &[u8]) -> Vec<Vec<u8>> {
        let cut = Cut::of(frame).unwrap();
        (0..cut.count)
            .map(|number| {
                let mut out = vec![0xaa; cut.size(number)];
                cut.write(number, &mut out);
                out
            })
            .collect()
    }

    #[test]
    fn segments_are_whole_packets() {
        for (is_ipv6, is_udp) in [(false, false), (true, false), (false, true), (true, true)] {
            let frame = frame(is_ipv6, is_udp, 2501, 1000);
            let (transport, headers) = (if is_ipv6 { 40 } else { 20 }, frame.len() - 10 - 2501);
            let packets = packets(&frame);
            assert_eq!(packets.iter().map(|packet| packet.len() - headers).collect::<Vec<_>>(), [1000, 1000, 501]);
            let payload: Vec<u8> = packets.iter().flat_map(|packet| packet[headers..].to_vec()).collect();
            assert_eq!(payload, frame[10 + headers..]);
            for (number, packet) in packets.iter().enumerate() {
                let protocol = if is_udp { UDP } else { TCP };
                let pseudo = pseudo_header(packet, is_ipv6, protocol, packet.len() - transport);
                assert_eq!(fold(pseudo + sum(&packet[transport..])), RIGHT);
                if is_ipv6 {
                    assert_eq!(usize::from(get16(packet, 4)), packet.len() - 40);
                } else {
                    assert_eq!(usize::from(get16(packet, 2)), packet.len());
                    assert_eq!(get16(packet, 4), [0xfffe, 0xffff, 0][number]);
                    assert_eq!(fold(sum(&packet[..20])), RIGHT);
                }
                if is_udp {
                    assert_eq!(usize::from(get16(packet, transport + 4)), packet.len() - transport);
                } else {
                    assert_eq!(get32(packet, transport + 4), [u32::MAX - 1000, u32::MAX, 999][number]);
                    assert_eq!(packet[transport + TCP_FLAGS], [ACK | CWR, ACK, ACK | PSH | FIN][number]);
                }
            }
        }
    }

    #[test]
    fn lies_are_refused() {
        let good = frame(false, false, 2501, 1000);
        assert!(Cut::of(&good).is_some());
        let lie = |at: usize, value: u16| {
            let mut bad = good.clone();
            bad[at..at + 2].copy_from_slice(&value.to_ne_bytes());
            Cut::of(&bad).is_none()
        };
        assert!(lie(2, 39) && lie(2, 2542), "header bytes");
        assert!(lie(4, 0) && lie(4, 19), "segment bytes: none, too few");
        assert!(lie(6, 19) && lie(6, 24) && lie(6, 2540) && lie(6, 0xffff), "checksum start");
        assert!(lie(8, 6) && lie(8, 0xffff), "checksum offset");
        for (at, value) in [(0, 0), (1, 4), (10, 0x65), (10, 0x44), (10, 0), (42, 0x40)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Cut::of(&bad).is_none(), "byte {at}");
        }
        for size in 0..50 {
            assert!(size == 10 || Cut::of(&good[..size]).is_none());
        }
    }

    #[test]
    fn a_packet_gets_its_checksum() {
        let mut frame = frame(true, true, 700, 1000);
        frame[1] = 0;
        let packet = &packets(&frame)[0];
        assert_eq!(fold(pseudo_header(packet, true, UDP, 708) + sum(&packet[40..])), RIGHT);
        frame[6] = 0xff;
        frame[7] = 0xff;
        assert!(Cut::of(&frame).is_none());
        frame[0] = 0;
        assert_eq!(packets(&frame)[0], frame[10..]);
    }
}
