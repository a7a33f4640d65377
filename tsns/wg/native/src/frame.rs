//! Frames: packets as a TUN with `IFF_VNET_HDR` reads and writes them.
//!
//! Source: `include/uapi/linux/virtio_net.h` of Linux; `tsns/proto/virtio.py` draws the header.

/// Of the header before each packet.
pub const HEADER_BYTES: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const ECN: u8 = 0x80;

/// What a frame is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is one packet.
    None,
    /// TCP segments in IPv4.
    TcpV4,
    /// TCP segments in IPv6.
    TcpV6,
    /// Datagrams of one size, the last one maybe shorter.
    Udp,
}

/// The header, without what it says about ECN: the packet itself says that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether the checksum's field holds the sum of the pseudo-header only.
    pub needs_checksum: bool,
    /// What the frame is to be cut into.
    pub kind: Kind,
    /// From the kernel a hint, and no more: for a forwarded packet it may count payload too.
    pub header_bytes: usize,
    /// Payload of each packet but the last.
    pub segment_bytes: usize,
    /// Where TCP or UDP begins.
    pub checksum_start: usize,
    /// Where in it the checksum stands.
    pub checksum_offset: usize,
}

/// The header and the packet behind it. None: too short, or of a kind that is not known.
#[must_use]
pub fn split(frame: &[u8]) -> Option<(Header, &[u8])> {
    if frame.len() < HEADER_BYTES {
        return None;
    }
    let (raw, packet) = frame.split_at(HEADER_BYTES);
    let kind = match raw[1] {
        0 => Kind::None,
        1 | 0x81 => Kind::TcpV4,
        4 | 0x84 => Kind::TcpV6,
        5 => Kind::Udp,
        _ => return None,
    };
    let number = |at: usize| usize::from(u16::from_ne_bytes([raw[at], raw[at + 1]]));
    let header = Header {
        needs_checksum: raw[0] & NEEDS_CHECKSUM != 0,
        kind,
        header_bytes: number(2),
        segment_bytes: number(4),
        checksum_start: number(6),
        checksum_offset: number(8),
    };
    Some((header, packet))
}

impl Header {
    /// Write it. `first_says_cwr`: whether the first segment, and it alone, has that flag.
    pub fn write(&self, raw: &mut [u8], first_says_cwr: bool) {
        let kind = match self.kind {
            Kind::None => 0,
            Kind::TcpV4 => 1,
            Kind::TcpV6 => 4,
            Kind::Udp => 5,
        };
        raw[0] = if self.needs_checksum { NEEDS_CHECKSUM } else { 0 };
        raw[1] = kind | if first_says_cwr { ECN } else { 0 };
        let numbers = [self.header_bytes, self.segment_bytes, self.checksum_start, self.checksum_offset];
        for (field, number) in raw[2..HEADER_BYTES].chunks_exact_mut(2).zip(numbers) {
            field.copy_from_slice(&crate::fields::short(number).to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let header = Header {
            needs_checksum: true,
            kind: Kind::TcpV6,
            header_bytes: 60,
            segment_bytes: 1220,
            checksum_start: 40,
            checksum_offset: 16,
        };
        let mut frame = [7; HEADER_BYTES + 3];
        header.write(&mut frame, true);
        assert_eq!(frame[1], 0x84);
        assert_eq!(split(&frame), Some((header, &[7u8; 3][..])));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert_eq!(split(&[0; HEADER_BYTES - 1]), None);
        for kind in [2, 3, 6, 0x80, 0x85, 0xff] {
            assert_eq!(split(&[0, kind, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        }
    }
}
