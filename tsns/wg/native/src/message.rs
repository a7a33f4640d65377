//! Transport messages: their header, sizes and nonce.
//!
//! Source: WireGuard paper 5.4.6 and 6.1. The first four bytes are 4 0 0 0, then the receiver's index, the counter
//! (8 bytes, little-endian), the sealed packet and its tag.

use ring::aead::{LessSafeKey, Nonce, UnboundKey, CHACHA20_POLY1305};
use ring::error::Unspecified;

/// Of each of the two keys.
pub const KEY_BYTES: usize = 32;
/// Of a session's index.
pub const INDEX_BYTES: usize = 4;
/// Before the sealed packet.
pub const HEADER_BYTES: usize = 16;
/// Behind the sealed packet.
pub const TAG_BYTES: usize = 16;
/// Of a keepalive, the shortest message.
pub const LEAST_BYTES: usize = HEADER_BYTES + TAG_BYTES;
/// Of the type and the index, by which a message is known to be ours.
pub const HEAD_BYTES: usize = 8;
/// No counter is as great.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// Packets are padded to a multiple of this.
const PADDING_MULTIPLE: usize = 16;

/// How each message to this index begins.
#[must_use]
pub fn head(index: [u8; INDEX_BYTES]) -> [u8; HEAD_BYTES] {
    [4, 0, 0, 0, index[0], index[1], index[2], index[3]]
}

/// The nonce of the message with this counter.
#[must_use]
pub fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// A key that is ready for use.
///
/// # Errors
/// Never for this algorithm, says ring's source; its interface leaves it open.
pub fn key(bytes: &[u8; KEY_BYTES]) -> Result<LessSafeKey, Unspecified> {
    UnboundKey::new(&CHACHA20_POLY1305, bytes).map(LessSafeKey::new)
}

/// The size of the message for a packet of this size: padded, but not past the MTU unless the packet is longer itself.
#[must_use]
pub fn size(packet: usize, mtu: usize) -> usize {
    LEAST_BYTES + packet.next_multiple_of(PADDING_MULTIPLE).min(mtu.max(packet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_ends_at_the_mtu() {
        for (packet, mtu, padded) in [
            (0, 1280, 0),
            (1, 1280, 16),
            (16, 1280, 16),
            (1279, 1280, 1280),
            (1417, 1420, 1420),
            (1430, 1420, 1430),
            (5, 0, 5),
        ] {
            assert_eq!(size(packet, mtu), 32 + padded);
        }
    }

    #[test]
    fn the_limit_is_the_papers() {
        assert_eq!(u128::from(REJECT_AFTER_MESSAGES), (1u128 << 64) - (1 << 13) - 1);
    }
}
