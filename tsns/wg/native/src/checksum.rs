//! The checksum of IP, TCP and UDP.
//!
//! Source: RFC 1071. Sums are kept in the machine's byte order and written back in it, which gives the right bytes on
//! any machine (RFC 1071, 2 (B)). They are unfolded: 64 bits do not overflow by what a packet holds.

use crate::fields::{short, IPV4_BYTES};

/// What a right packet sums up to, its checksum included.
pub const RIGHT: u16 = 0xffff;

/// The sum of these bytes; they begin at an even place of what is summed up, and an odd one out is the last.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let whole: u64 =
        words.by_ref().map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))).sum();
    let mut tail = [0; 4];
    tail[..words.remainder().len()].copy_from_slice(words.remainder());
    whole + u64::from(u32::from_ne_bytes(tail))
}

/// A number of 16 bits as it counts in a sum.
#[must_use]
pub fn word(value: u16) -> u64 {
    u64::from(value.to_be())
}

/// What takes a number of 16 bits out of a sum again.
#[must_use]
pub fn without(value: u16) -> u64 {
    u64::from(!value.to_be())
}

/// The sum in 16 bits.
#[must_use]
pub fn fold(mut total: u64) -> u16 {
    while u16::try_from(total).is_err() {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap_or(0)
}

/// The sum of the pseudo-header of `length` bytes of TCP or UDP in this packet (RFC 9293 3.1, RFC 8200 8.1).
#[must_use]
pub fn pseudo_header(packet: &[u8], is_ipv6: bool, protocol: u8, length: usize) -> u64 {
    let addresses = if is_ipv6 { &packet[8..40] } else { &packet[12..20] };
    sum(addresses) + word(u16::from(protocol)) + word(short(length))
}

/// The sum that stands in a field.
#[must_use]
pub fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16::from_ne_bytes([bytes[at], bytes[at + 1]]))
}

/// Write a sum as it is.
pub fn put(bytes: &mut [u8], at: usize, total: u64) {
    bytes[at..at + 2].copy_from_slice(&fold(total).to_ne_bytes());
}

/// Write the checksum that goes with a sum. `never_zero`: where 0 would mean that there is none, as in UDP.
pub fn put_complement(bytes: &mut [u8], at: usize, total: u64, never_zero: bool) {
    let checksum = !fold(total);
    let checksum = if never_zero && checksum == 0 { 0xffff } else { checksum };
    bytes[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
}

/// Write the checksum of an IPv4 header of these bytes.
pub fn put_ipv4(header: &mut [u8]) {
    debug_assert!(header.len() >= IPV4_BYTES);
    header[10..12].fill(0);
    let total = sum(header);
    put_complement(header, 10, total, false);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Word by word, as RFC 1071 4.1 has it.
    fn plain(bytes: &[u8]) -> u16 {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        u16::try_from(total).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])).to_be(), 0xddf2);
    }

    #[test]
    fn any_length_and_any_bytes() {
        let mut state = 1u32;
        let bytes: Vec<u8> = (0..2000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state.to_be_bytes()[0]
            })
            .collect();
        for length in (0..70).chain([1279, 1280, 2000]) {
            assert_eq!(fold(sum(&bytes[..length])).to_be(), plain(&bytes[..length]), "{length}");
        }
        let ones = vec![0xff; 65535];
        assert_eq!(fold(sum(&ones)).to_be(), plain(&ones));
    }

    #[test]
    fn what_is_taken_out_was_never_in() {
        for (value, other) in [(0u16, 1u16), (0xffff, 7), (0x1234, 0xfedc)] {
            let total = word(value) + word(other) + without(value);
            assert_eq!(fold(total), other.to_be());
        }
    }

    #[test]
    fn zero_means_none_only_where_it_is_said() {
        let mut field = [0; 2];
        put_complement(&mut field, 0, 0xffff, true);
        assert_eq!(field, [0xff, 0xff]);
        put_complement(&mut field, 0, 0xffff, false);
        assert_eq!(field, [0, 0]);
    }

    #[test]
    fn a_header_sums_up_to_right() {
        // Wikipedia, "Internet checksum": the example has b861.
        let mut header = [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 1, 2, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        put_ipv4(&mut header);
        assert_eq!(header[10..12], [0xb8, 0x61]);
        assert_eq!(fold(sum(&header)), RIGHT);
    }
}
