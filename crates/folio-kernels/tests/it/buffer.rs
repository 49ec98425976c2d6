//! Buffers: initially zero, aligned to cache lines, of any length.

use folio_kernels::buffer::Buffer;
use folio_kernels::element::{Bf16, Element};

use crate::support::{Random, assert_same_bits};

fn hold_what_is_written<E: Element>() {
    for len in (1..=70).chain([127, 4096, 100_003]) {
        let mut buffers: Vec<Buffer<E>> = (0..4).map(|_| Buffer::zeroed(len)).collect();
        for (seed, buffer) in buffers.iter_mut().enumerate() {
            assert!(buffer.as_ptr().addr().is_multiple_of(64), "{len}");
            assert_same_bits("initial value", buffer, &vec![E::default(); len]);
            buffer.copy_from_slice(&Random(seed as u64).elements::<E>(len, 1.0));
        }
        // Buffers do not overlap, and each may be sent to another thread.
        std::thread::scope(|scope| {
            for (seed, buffer) in buffers.into_iter().enumerate() {
                scope.spawn(move || {
                    assert_same_bits("written", &buffer, &Random(seed as u64).elements::<E>(len, 1.0));
                });
            }
        });
    }
}

#[test]
fn buffers_hold_what_is_written() {
    hold_what_is_written::<f32>();
    hold_what_is_written::<Bf16>();
}

#[test]
fn zero_bits_are_the_value_zero() {
    assert_eq!(Buffer::<f32>::zeroed(3).iter().map(|x| x.to_bits()).collect::<Vec<_>>(), [0; 3]);
    assert_eq!(Buffer::<Bf16>::zeroed(3).iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>(), [0; 3]);
}

#[test]
fn an_empty_buffer_is_a_slice_too() {
    for mut buffer in [Buffer::<Bf16>::zeroed(0), Buffer::default()] {
        assert!(buffer.is_empty() && buffer.iter_mut().next().is_none());
        assert!(buffer.as_ptr().is_aligned());
        assert_eq!(format!("{buffer:?}"), "Buffer of 0 elements");
    }
}
