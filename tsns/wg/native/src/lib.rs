//! Seals and opens WireGuard transport messages, a whole train per call: the native twin of the pure Python engine.
//!
//! What it must do is said once, in `tsns/wg/transport.py`. All that a stranger sends is parsed here, so there is no
//! `unsafe` of ours, each length is checked before it is believed, and every function works on the caller's buffers:
//! no system calls, no threads, no clock, no policy. `python` is the interface; the rest knows nothing of Python.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod checksum;
pub mod fields;
pub mod frame;
pub mod join;
pub mod message;
pub mod open;
#[cfg(feature = "python")]
mod python;
pub mod replay;
pub mod seal;
pub mod segment;
