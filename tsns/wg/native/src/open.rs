//! From trains of messages to frames.
//!
//! Source: WireGuard paper 5.4.6.

use ring::aead::{Aad, LessSafeKey};
use ring::error::Unspecified;

use crate::fields::inner_length;
use crate::join::{Joiner, MOST_HEADERS};
use crate::message::{self, HEADER_BYTES, HEAD_BYTES, INDEX_BYTES, LEAST_BYTES};
use crate::replay::Window;

/// What became of trains.
#[derive(Default)]
pub struct Opened<'a> {
    /// Bytes of each frame, which lie one behind the other.
    pub sizes: Vec<usize>,
    /// In the frames.
    pub packets: usize,
    /// Messages without a packet.
    pub keepalives: usize,
    /// Bytes of all messages that were authentic.
    pub authentic_bytes: usize,
    /// Messages with a counter that was seen, or is too old or too great.
    pub replayed: usize,
    /// Messages that were not authentic.
    pub forged: usize,
    /// Authentic messages without an IP packet.
    pub malformed: usize,
    /// Messages of others.
    pub strays: Vec<&'a [u8]>,
}

/// The receiving half of a session.
pub struct Opener {
    key: LessSafeKey,
    head: [u8; HEAD_BYTES],
    window: Window,
    join_udp: bool,
}

/// Bytes that hold all frames of messages of so many bytes, and the last one with its tag and what lies around it.
#[must_use]
pub fn room(bytes: usize) -> usize {
    bytes + MOST_HEADERS
}

impl Opener {
    /// For messages to this index.
    ///
    /// # Errors
    /// What `message::key` says.
    pub fn new(key: &[u8; message::KEY_BYTES], index: [u8; INDEX_BYTES], join_udp: bool) -> Result<Self, Unspecified> {
        Ok(Self { key: message::key(key)?, head: message::head(index), window: Window::default(), join_udp })
    }

    /// Open messages in their order; the frames come to lie in `out`, which holds `room` of all their bytes.
    pub fn open<'a>(&mut self, messages: impl Iterator<Item = &'a [u8]>, out: &mut [u8]) -> Opened<'a> {
        let mut opened = Opened::default();
        let mut joiner = Joiner::new(out, self.join_udp);
        for message in messages {
            if message.len() < LEAST_BYTES || message[..HEAD_BYTES] != self.head {
                opened.strays.push(message);
            } else {
                self.open_one(message, &mut joiner, &mut opened);
            }
        }
        joiner.finish();
        opened.sizes = joiner.sizes;
        opened
    }

    fn open_one(&mut self, message: &[u8], joiner: &mut Joiner<'_>, opened: &mut Opened<'_>) {
        let (header, sealed) = message.split_at(HEADER_BYTES);
        let mut counter = [0; 8];
        counter.copy_from_slice(&header[HEAD_BYTES..]);
        let counter = u64::from_le_bytes(counter);
        if !self.window.may_accept(counter) {
            opened.replayed += 1;
            return;
        }
        let Some(place) = joiner.lay(sealed.len()) else {
            debug_assert!(false, "room() is too small");
            opened.malformed += 1;
            return;
        };
        place.copy_from_slice(sealed);
        let Ok(plaintext) = self.key.open_in_place(message::nonce(counter), Aad::empty(), place) else {
            joiner.leave();
            opened.forged += 1;
            return;
        };
        let (is_empty, length) = (plaintext.is_empty(), inner_length(plaintext));
        self.window.accept(counter); // only now: a forged counter must not move the window
        opened.authentic_bytes += message.len();
        if let Some(length) = length {
            joiner.take(length);
            opened.packets += 1;
        } else {
            joiner.leave();
            opened.keepalives += usize::from(is_empty);
            opened.malformed += usize::from(!is_empty);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{Plan, Sealer};
    use crate::segment::tests::{frame, packets};

    const KEY: [u8; 32] = [3; 32];

    fn sealed(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let plan = Plan::of(frames.iter().map(Vec::as_slice), 1280);
        let mut sealer = Sealer::new(&KEY, [1, 2, 3, 4]).unwrap();
        let mut pieces = plan.packets();
        let mut messages = Vec::new();
        for train in &plan.trains {
            let mut room = vec![0; train.bytes];
            sealer.seal(&mut pieces, 1280, &mut room).unwrap();
            messages.extend(room.chunks(train.stride).map(<[u8]>::to_vec));
        }
        messages
    }

    fn open<'a>(opener: &mut Opener, messages: &'a [Vec<u8>]) -> (Opened<'a>, Vec<Vec<u8>>) {
        let mut out = vec![0xee; room(messages.iter().map(Vec::len).sum())];
        let opened = opener.open(messages.iter().map(Vec::as_slice), &mut out);
        let mut at = 0;
        let frames = opened.sizes.iter().map(|size| {
            at += size;
            out[at - size..at].to_vec()
        });
        let frames = frames.collect();
        (opened, frames)
    }

    fn opener() -> Opener {
        Opener::new(&KEY, [1, 2, 3, 4], true).unwrap()
    }

    #[test]
    fn there_and_back() {
        let sent =
            [frame(false, false, 5000, 1240), frame(true, true, 5000, 1232), frame(true, false, 30, 7), vec![0; 10]];
        let messages = sealed(&sent);
        let mut opener = opener();
        let (opened, frames) = open(&mut opener, &messages);
        assert_eq!((opened.packets, opened.keepalives, opened.sizes.len()), (15, 1, 3));
        assert_eq!(opened.authentic_bytes, messages.iter().map(Vec::len).sum::<usize>());
        for (frame, sent) in frames.iter().zip(&sent) {
            assert_eq!(packets(frame), packets(sent));
        }
        let (opened, frames) = open(&mut opener, &messages);
        assert_eq!((opened.replayed, opened.authentic_bytes, frames.len()), (16, 0, 0));
    }

    #[test]
    fn a_broken_message_costs_only_itself() {
        let sent = frame(false, false, 300, 50);
        let good = sealed(std::slice::from_ref(&sent));
        for at in 8..good[2].len() {
            let mut messages = good.clone();
            messages[2][at] ^= 1;
            let (opened, frames) = open(&mut opener(), &messages);
            assert_eq!(opened.forged + opened.replayed, 1, "byte {at}");
            let mut want = packets(&sent);
            want.remove(2);
            assert_eq!(frames.iter().flat_map(|frame| packets(frame)).collect::<Vec<_>>(), want);
        }
        for at in 0..8 {
            let mut messages = good.clone();
            messages[2][at] ^= 1;
            let (opened, _) = open(&mut opener(), &messages);
            assert_eq!(opened.strays, [messages[2].as_slice()]);
        }
    }

    #[test]
    fn what_is_no_packet() {
        let unknown = [[0; 10], [0x55; 10]].concat();
        let short = [[0; 10], [0x45; 10]].concat();
        let mut messages = sealed(&[unknown, vec![0; 10], short]);
        messages.push(vec![4; 31]);
        messages.push(vec![]);
        let (opened, frames) = open(&mut opener(), &messages);
        assert_eq!((opened.malformed, opened.keepalives, opened.strays.len(), frames.len()), (2, 1, 2, 0));
    }
}
