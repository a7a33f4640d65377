//! The window that refuses counters seen before.
//!
//! Source: RFC 6479; the same window as `tsns/wg/replay.py`. A ring of words of bits; the word being filled is the one
//! that is not part of the window, so that moving forward clears whole words and never shifts.

use crate::message::REJECT_AFTER_MESSAGES;

const WORD_BITS: u64 = 64;
const WORDS: usize = 128;
/// Counters this far below the greatest are still accepted.
pub const WINDOW: u64 = (WORDS as u64 - 1) * WORD_BITS;

/// Which counters have arrived.
pub struct Window {
    last: u64,
    words: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { last: 0, words: [0; WORDS] }
    }
}

/// Where the word and the bit of a counter are.
fn place(counter: u64) -> (usize, u64) {
    (usize::try_from(counter / WORD_BITS % WORDS as u64).unwrap_or(0), 1 << (counter % WORD_BITS))
}

impl Window {
    /// Whether this counter is neither too old, nor too great, nor seen; remembers nothing.
    #[must_use]
    pub fn may_accept(&self, counter: u64) -> bool {
        if counter > self.last {
            return counter < REJECT_AFTER_MESSAGES;
        }
        let (word, bit) = place(counter);
        self.last - counter <= WINDOW && self.words[word] & bit == 0
    }

    /// Remember the counter of an authenticated message, for which `may_accept` holds.
    pub fn accept(&mut self, counter: u64) {
        if counter > self.last {
            let block = counter / WORD_BITS;
            for stale in (self.last / WORD_BITS + 1).max(block.saturating_sub(WORDS as u64 - 1))..=block {
                self.words[place(stale * WORD_BITS).0] = 0;
            }
            self.last = counter;
        }
        let (word, bit) = place(counter);
        self.words[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    /// A window and a set of all that was seen, which must agree.
    #[derive(Default)]
    struct Pair {
        window: Window,
        seen: HashSet<u64>,
        last: u64,
    }

    impl Pair {
        fn offer(&mut self, counter: u64) {
            let fresh = counter < REJECT_AFTER_MESSAGES
                && !self.seen.contains(&counter)
                && (counter > self.last || self.last - counter <= WINDOW);
            assert_eq!(self.window.may_accept(counter), fresh, "{counter} after {}", self.last);
            if fresh {
                self.window.accept(counter);
                self.seen.insert(counter);
                self.last = self.last.max(counter);
            }
        }
    }

    #[test]
    fn edges() {
        let mut pair = Pair::default();
        let far = 1 << 40;
        for counter in
            [0, 0, 1, WINDOW, 0, WINDOW + 1, 0, 1, 2, far, far - WINDOW - 1, far - WINDOW, far, far + 64 * 128]
        {
            pair.offer(counter);
        }
        for counter in [REJECT_AFTER_MESSAGES, u64::MAX, REJECT_AFTER_MESSAGES - 1, REJECT_AFTER_MESSAGES - 1] {
            pair.offer(counter);
        }
    }

    #[test]
    fn against_a_set() {
        let (mut pair, mut state) = (Pair::default(), 9u64);
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let random = state >> 33;
            let back = match random % 8 {
                0 => random % 9000,
                1 => WINDOW - 1 + random % 3,
                _ => random % 70,
            };
            let forward = if random % 501 == 0 { random % 20_000 } else { random % 80 };
            pair.offer((pair.last + forward).saturating_sub(back));
        }
    }
}
