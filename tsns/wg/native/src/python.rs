//! The interface to Python: `tsns.wg._native`, which `tsns/wg/_native.pyi` describes.
//!
//! It checks types and sizes, lets go of the GIL while the work is done, and makes the results. An object is for one
//! thread at a time: who calls it while another does gets a `RuntimeError`.

#![allow(clippy::needless_pass_by_value)] // PyO3 hands over what it has made of an argument

use pyo3::exceptions::{PyOverflowError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::message::{INDEX_BYTES, KEY_BYTES};
use crate::open::{room, Opener};
use crate::seal::{Plan, Sealer, MAX_PACKET_BYTES};

/// Seals and opens for one session.
#[pyclass(module = "tsns.wg._native")]
struct Transport {
    sealer: Sealer,
    opener: Opener,
}

type Trains<'py> = Vec<(Bound<'py, PyBytes>, usize)>;
type Opened<'py> =
    (Bound<'py, PyBytes>, Vec<usize>, usize, usize, usize, usize, usize, usize, Vec<Bound<'py, PyBytes>>);

/// Exactly so many bytes; the error names them, but does not show them.
fn exactly<const N: usize>(bytes: &[u8], name: &str) -> PyResult<[u8; N]> {
    bytes.try_into().map_err(|_| PyValueError::new_err(format!("{name}: {N} bytes are wanted, not {}", bytes.len())))
}

/// The messages of a train; one without a stride is one message.
fn messages(data: &[u8], stride: usize) -> impl Iterator<Item = &[u8]> {
    let alone = data.is_empty().then_some(data);
    data.chunks(if stride == 0 { data.len().max(1) } else { stride }).chain(alone)
}

fn refused(_: ring::error::Unspecified) -> PyErr {
    PyRuntimeError::new_err("the AEAD refused")
}

#[pymethods]
impl Transport {
    #[new]
    fn new(
        send_key: &[u8],
        receive_key: &[u8],
        remote_index: &[u8],
        local_index: &[u8],
        join_udp: bool,
    ) -> PyResult<Self> {
        let send_key = exactly::<KEY_BYTES>(send_key, "send_key")?;
        let receive_key = exactly::<KEY_BYTES>(receive_key, "receive_key")?;
        let remote_index = exactly::<INDEX_BYTES>(remote_index, "remote_index")?;
        let local_index = exactly::<INDEX_BYTES>(local_index, "local_index")?;
        Ok(Self {
            sealer: Sealer::new(&send_key, remote_index).map_err(refused)?,
            opener: Opener::new(&receive_key, local_index, join_udp).map_err(refused)?,
        })
    }

    /// The counter of the message that is sealed next.
    #[getter]
    fn counter(&self) -> u64 {
        self.sealer.counter
    }

    #[setter]
    fn set_counter(&mut self, counter: u64) {
        self.sealer.counter = counter;
    }

    /// Frames to trains: (trains with their strides, packets, malformed).
    fn seal_train<'py>(
        &mut self,
        py: Python<'py>,
        frames: Vec<PyBackedBytes>,
        mtu: usize,
    ) -> PyResult<(Trains<'py>, usize, usize)> {
        let mtu = mtu.min(MAX_PACKET_BYTES);
        let plan = Plan::of(frames.iter().map(AsRef::as_ref), mtu);
        let sealer = &mut self.sealer;
        if !sealer.may_seal(plan.packets) {
            return Err(PyOverflowError::new_err("the session's counter is at its limit"));
        }
        let mut packets = plan.packets();
        let mut trains = Vec::with_capacity(plan.trains.len());
        for train in &plan.trains {
            let data = PyBytes::new_with(py, train.bytes, |data| {
                py.detach(|| sealer.seal(&mut packets, mtu, data)).map_err(refused)
            })?;
            trains.push((data, train.stride));
        }
        drop(packets);
        Ok((trains, plan.packets, plan.malformed))
    }

    /// Trains to frames, which lie one behind the other: (buffer, sizes, packets, keepalives, bytes of authentic
    /// messages, replayed, forged, malformed, strays).
    fn open_train<'py>(&mut self, py: Python<'py>, trains: Vec<(PyBackedBytes, usize)>) -> PyResult<Opened<'py>> {
        let bytes = trains.iter().map(|(data, _)| data.len()).sum();
        let opener = &mut self.opener;
        let mut opened = crate::open::Opened::default();
        let buffer = PyBytes::new_with(py, room(bytes), |out| {
            py.detach(|| opened = opener.open(trains.iter().flat_map(|(data, stride)| messages(data, *stride)), out));
            Ok(())
        })?;
        let strays = opened.strays.iter().map(|stray| PyBytes::new(py, stray)).collect();
        Ok((
            buffer,
            opened.sizes,
            opened.packets,
            opened.keepalives,
            opened.authentic_bytes,
            opened.replayed,
            opened.forged,
            opened.malformed,
            strays,
        ))
    }
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Transport>()
}
