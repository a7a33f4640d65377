//! From frames to trains of messages.
//!
//! Source: WireGuard paper 5.4.6; udp(7) of Linux on `UDP_SEGMENT`. A plan is made first, for then the size of each
//! train is known before there is room for it.

use ring::aead::{Aad, LessSafeKey};
use ring::error::Unspecified;

use crate::message::{self, HEADER_BYTES, HEAD_BYTES, INDEX_BYTES, REJECT_AFTER_MESSAGES, TAG_BYTES};
use crate::segment::Cut;

/// `UDP_MAX_SEGMENTS` of Linux before 6.9.
const MAX_TRAIN_MESSAGES: usize = 64;
/// Of UDP in IPv4.
const MAX_TRAIN_BYTES: usize = 65_507;
/// More than this no message can carry.
pub const MAX_PACKET_BYTES: usize = MAX_TRAIN_BYTES - message::LEAST_BYTES;

/// Messages of one size, and maybe a shorter one behind them.
#[derive(Debug, PartialEq, Eq)]
pub struct Train {
    /// Of all its messages.
    pub bytes: usize,
    /// Bytes of each but the last.
    pub stride: usize,
    count: usize,
}

impl Train {
    /// Whether a message of this size was added.
    fn add(&mut self, size: usize) -> bool {
        let is_whole = self.bytes % self.stride == 0;
        let fits = self.count < MAX_TRAIN_MESSAGES && self.bytes + size <= MAX_TRAIN_BYTES && size <= self.stride;
        if is_whole && fits {
            self.bytes += size;
            self.count += 1;
        }
        is_whole && fits
    }
}

/// What becomes of frames.
pub struct Plan<'a> {
    mtu: usize,
    cuts: Vec<Cut<'a>>,
    /// In their order.
    pub trains: Vec<Train>,
    /// Messages in the trains.
    pub packets: usize,
    /// Frames that nothing can be made of.
    pub malformed: usize,
}

impl<'a> Plan<'a> {
    /// For a TUN with this MTU.
    #[must_use]
    pub fn of(frames: impl Iterator<Item = &'a [u8]>, mtu: usize) -> Self {
        let mut plan = Plan { mtu, cuts: Vec::new(), trains: Vec::new(), packets: 0, malformed: 0 };
        for frame in frames {
            // The first packet is the longest; one that no datagram can carry is as good as none.
            match Cut::of(frame).filter(|cut| message::size(cut.size(0), mtu) <= MAX_TRAIN_BYTES) {
                Some(cut) => plan.add(cut),
                None => plan.malformed += 1,
            }
        }
        plan
    }

    fn add(&mut self, cut: Cut<'a>) {
        self.packets += cut.count;
        for number in 0..cut.count {
            let size = message::size(cut.size(number), self.mtu);
            if !self.trains.last_mut().is_some_and(|train| train.add(size)) {
                self.trains.push(Train { bytes: size, stride: size, count: 1 });
            }
        }
        self.cuts.push(cut);
    }

    /// The packets, to be sealed in this order.
    pub fn packets(&self) -> impl Iterator<Item = (&Cut<'a>, usize)> {
        self.cuts.iter().flat_map(|cut| (0..cut.count).map(move |number| (cut, number)))
    }
}

/// The sending half of a session.
pub struct Sealer {
    key: LessSafeKey,
    head: [u8; HEAD_BYTES],
    /// Of the message that is sealed next.
    pub counter: u64,
}

impl Sealer {
    /// For messages to this index.
    ///
    /// # Errors
    /// What `message::key` says.
    pub fn new(key: &[u8; message::KEY_BYTES], index: [u8; INDEX_BYTES]) -> Result<Self, Unspecified> {
        Ok(Self { key: message::key(key)?, head: message::head(index), counter: 0 })
    }

    /// Whether so many messages may still be sealed.
    #[must_use]
    pub fn may_seal(&self, packets: usize) -> bool {
        u64::try_from(packets).is_ok_and(|packets| self.counter.saturating_add(packets) <= REJECT_AFTER_MESSAGES)
    }

    /// Fill the room for one train with the next packets of the plan. Ask `may_seal` first, for all of it.
    ///
    /// # Errors
    /// Where the AEAD refuses, which it does for no packet of this length.
    pub fn seal<'p, 'a: 'p>(
        &mut self,
        packets: &mut impl Iterator<Item = (&'p Cut<'a>, usize)>,
        mtu: usize,
        train: &mut [u8],
    ) -> Result<(), Unspecified> {
        let mut rest = train;
        while !rest.is_empty() {
            let (cut, number) = packets.next().ok_or(Unspecified)?;
            let packet = cut.size(number);
            let (message, behind) = rest.split_at_mut(message::size(packet, mtu));
            let (header, body) = message.split_at_mut(HEADER_BYTES);
            let (padded, tag) = body.split_at_mut(body.len() - TAG_BYTES);
            cut.write(number, &mut padded[..packet]);
            padded[packet..].fill(0);
            header[..HEAD_BYTES].copy_from_slice(&self.head);
            header[HEAD_BYTES..].copy_from_slice(&self.counter.to_le_bytes());
            let nonce = message::nonce(self.counter);
            self.counter += 1; // before it is used, come what may: no nonce twice
            tag.copy_from_slice(self.key.seal_in_place_separate_tag(nonce, Aad::empty(), padded)?.as_ref());
            rest = behind;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::tests::frame;

    /// A frame of one packet of this size.
    fn plain(size: usize) -> Vec<u8> {
        vec![0; 10 + size]
    }

    fn trains(frames: &[Vec<u8>]) -> Vec<(usize, usize)> {
        let plan = Plan::of(frames.iter().map(Vec::as_slice), 1280);
        assert_eq!(plan.trains.iter().map(|train| train.count).sum::<usize>(), plan.packets);
        plan.trains.iter().map(|train| (train.count, train.stride)).collect()
    }

    #[test]
    fn runs_of_one_size_and_a_shorter_one() {
        let sizes = |sizes: &[usize]| sizes.iter().map(|size| plain(*size)).collect::<Vec<_>>();
        assert_eq!(trains(&sizes(&[64, 64, 60, 0, 64])), [(4, 96), (1, 96)]);
        assert_eq!(trains(&sizes(&[16, 32, 32])), [(1, 48), (2, 64)]);
        assert_eq!(trains(&sizes(&[16; 65])), [(64, 48), (1, 48)]);
        assert_eq!(trains(&sizes(&[1280; 50])), [(49, 1312), (1, 1312)]);
        assert_eq!(trains(&[frame(false, false, 2481, 1240), frame(true, false, 1220, 1220)]), [(3, 1312), (1, 1312)]);
    }

    #[test]
    fn what_no_datagram_carries() {
        let frames = [plain(65_475), plain(65_476), plain(65_535)];
        let plan = Plan::of(frames.iter().map(Vec::as_slice), 1280);
        assert_eq!((plan.packets, plan.malformed), (1, 2));
    }

    #[test]
    fn counters_end_at_the_limit() {
        let mut sealer = Sealer::new(&[1; 32], [0; 4]).unwrap();
        sealer.counter = REJECT_AFTER_MESSAGES - 2;
        assert!(sealer.may_seal(2) && !sealer.may_seal(3));
        sealer.counter = u64::MAX;
        assert!(!sealer.may_seal(1));
    }
}
