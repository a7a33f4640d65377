//! Where the parts of IP, TCP and UDP headers lie, and how they are read and written.
//!
//! Source: RFC 791, RFC 8200, RFC 9293, RFC 768. Nothing here checks a length: who calls has done that.

/// Of an IPv4 header without options, the only one that is joined.
pub const IPV4_BYTES: usize = 20;
/// Of an IPv6 header, extensions not counted.
pub const IPV6_BYTES: usize = 40;
/// Of a TCP header without options.
pub const TCP_BYTES: usize = 20;
/// Of a TCP header with all the options it can hold.
pub const TCP_MOST_BYTES: usize = 60;
/// Of a UDP header.
pub const UDP_BYTES: usize = 8;

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;
/// Offset of the flags in a TCP header.
pub const TCP_FLAGS: usize = 13;

/// TCP: the sender has no more data.
pub const FIN: u8 = 0x01;
/// TCP: hand the data on now.
pub const PSH: u8 = 0x08;
/// TCP: the acknowledgment counts.
pub const ACK: u8 = 0x10;
/// TCP: congestion was seen (RFC 3168).
pub const ECE: u8 = 0x40;
/// TCP: the congestion window is reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// IPv4, in the field of the fragment's offset: routers must not fragment.
pub const DF: u16 = 0x4000;

/// The version that an IP packet says it is of; 0 of nothing.
#[must_use]
pub fn version(packet: &[u8]) -> u8 {
    packet.first().map_or(0, |first| first >> 4)
}

/// The length of the IP packet at the start of a plaintext, which may be padded. None: there is none, or not the whole.
#[must_use]
pub fn inner_length(plaintext: &[u8]) -> Option<usize> {
    let (least, length) = match version(plaintext) {
        4 if plaintext.len() >= IPV4_BYTES => (IPV4_BYTES, usize::from(get16(plaintext, 2))),
        6 if plaintext.len() >= IPV6_BYTES => (IPV6_BYTES, IPV6_BYTES + usize::from(get16(plaintext, 4))),
        _ => return None,
    };
    (least..=plaintext.len()).contains(&length).then_some(length)
}

/// The number in two bytes, in network order.
#[must_use]
pub fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// The number in four bytes, in network order.
#[must_use]
pub fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Write a number into two bytes, in network order.
pub fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Write a number into four bytes, in network order.
pub fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// A length that was checked against the 16 bits of its field.
#[must_use]
pub fn short(length: usize) -> u16 {
    debug_assert!(u16::try_from(length).is_ok());
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_inside_is_believed_only_if_it_arrived() {
        let mut packet = vec![0u8; 48];
        packet[0] = 0x45;
        for (length, want) in [(48, Some(48)), (20, Some(20)), (19, None), (49, None)] {
            put16(&mut packet, 2, length);
            assert_eq!(inner_length(&packet), want);
        }
        packet[0] = 0x60;
        for (length, want) in [(8, Some(48)), (0, Some(40)), (9, None), (0xffff, None)] {
            put16(&mut packet, 4, length);
            assert_eq!(inner_length(&packet), want);
        }
        assert_eq!(inner_length(&packet[..39]), None);
        assert_eq!(inner_length(&[]), None);
        assert_eq!(inner_length(&[0x50; 64]), None);
    }
}
